"""From the commit to the receiver's first byte with an idle daemon: with the doorbell, and with it lost.

`python -m benchmarks.latency [events]`. The clock is the machine's monotonic one, which both processes share. The
commit counts from the moment in which its answer is back.
"""

import random
import statistics
import sys
import time

import psycopg

from benchmarks import stage

POLL_INTERVAL = 1.0


def latencies(*, events: int, doorbell: bool) -> list[float]:
    """Return the seconds that each event took."""
    dice = random.Random(1)  # noqa: S311 - spread, not secrecy
    with stage.database() as dsn, stage.receiver(keep_times=True) as receiver, psycopg.connect(dsn) as conn:
        conn.autocommit = True
        stage.add_config(conn, receiver.url)
        if not doorbell:
            conn.execute("set outbox.doorbell = 'off'")
        committed = []
        with stage.daemon(dsn, OUTBOX_POLL_INTERVAL=str(POLL_INTERVAL)) as daemon:
            daemon.wait_until_started()
            for number in range(events):
                stage.add_contacts(conn, 1)
                committed.append(time.monotonic())
                while receiver.ask("count") <= number:
                    time.sleep(0.001)
                time.sleep(dice.uniform(0.05, 0.15))
        arrived = sorted(receiver.ask("times").values())
    return [max(0.0, there - here) for here, there in zip(committed, arrived, strict=True)]


def measure(events: int = 200) -> None:
    """Measure and record."""
    rung = sorted(latencies(events=events, doorbell=True))
    lost = sorted(latencies(events=max(10, events // 10), doorbell=False))
    stage.record(
        "latency",
        {
            "with the doorbell, median ms": statistics.median(rung) * 1000,
            "with the doorbell, p99 ms": rung[int(len(rung) * 0.99)] * 1000,
            "doorbell lost, median ms": statistics.median(lost) * 1000,
            "doorbell lost, greatest ms": lost[-1] * 1000,
        },
        {"events": events, "poll interval, s": POLL_INTERVAL},
    )


if __name__ == "__main__":
    measure(*(int(argument) for argument in sys.argv[1:]))
