"""The daemon's resident memory while it works on a large backlog: all of it owed, part of it delivered.

`python -m benchmarks.memory [backlog] [deliveries]`: `1000000 1000000` for whether it stays flat over a million.
"""

import sys
import time

import psycopg

from benchmarks import stage


def measure(backlog: int = 1_000_000, deliveries: int = 50_000) -> None:
    """Measure and record."""
    with stage.database() as dsn, stage.receiver() as receiver, psycopg.connect(dsn, autocommit=True) as conn:
        stage.add_config(conn, receiver.url)
        stage.add_contacts(conn, backlog)
        with stage.daemon(dsn) as daemon:
            daemon.wait_until_started()
            began = time.monotonic()
            while conn.execute("select exists (select from outbox.outbox)").fetchone() == (True,):
                time.sleep(0.5)
            routed_in = time.monotonic() - began
            tenths: list[float] = []
            while len(tenths) < 10:
                tenths += [daemon.memory("VmRSS")] * (receiver.ask("count") * 10 // deliveries - len(tenths))
                time.sleep(0.2)
            peak, now = daemon.memory(), daemon.memory("VmRSS")
            row = conn.execute("select count(*) from outbox.deliveries").fetchone()
    stage.record(
        "memory",
        {
            "resident memory, peak MB": peak,
            "resident memory at the end, MB": now,
            "resident memory after a tenth of the deliveries, MB": tenths[0],
            "grown since then, MB": tenths[-1] - tenths[0],
            "seconds until all was routed": routed_in,
            "still owed at the end": row[0] if row else 0,
        },
        {"backlog": backlog, "deliveries at least": deliveries},
    )


if __name__ == "__main__":
    measure(*(int(argument) for argument in sys.argv[1:]))
