"""What slow and flooded subscribers cost the healthy ones: from commit to first byte, with the sick and without.

`python -m benchmarks.neighbours [seconds] [rounds] [debt] [events a second]`. A hundred configs get equal traffic, far
below what the daemon can do. In turn all are healthy; one hangs, one answers in 5 s and one refuses; one more owes
`debt`, to a receiver that answers at once and to one that answers in 50 ms; and BATCH changes for one more, with these
receivers, are captured in one statement. The clock is the machine's monotonic one.
"""

import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import psycopg

from benchmarks import debt, stage

CONFIGS = 100
BATCH = 50_000
BATCHED = CONFIGS
"""The number of the config that the batch is for."""
HANG, SLOW, REFUSING = 0, 1, 2
"""The numbers of the sick ones."""
WARM_UP = 2.0
"""Seconds of traffic that are not counted."""
LATEST = 60.0
"""Seconds that the last arrival is waited for."""

INSERT = """
insert into public.contacts (location_id, last_name, first_name, email, address, city)
values (%s, 'Jones', 'Zoë', 'zoe@example.com', '1 Main St & Co', 'Örebro') returning id
"""
_BATCH = """
insert into public.contacts (location_id, last_name, first_name, email, address, city)
select %s, 'Jones', 'Zoë', 'zoe@example.com', '1 Main St & Co', 'Örebro' from generate_series(1, %s)
"""
# As they were before: what went wrong in one run is nothing to the next.
RECOVER = """
update outbox.postback_configs set circuit_opened_at = null, exhausted_at = null, disabled_at = null,
    disabled_reason = null, is_active = true;
delete from outbox.config_state;
truncate outbox.outbox;
delete from outbox.deliveries where config_id in (select id from outbox.postback_configs where resource = 'contact');
truncate public.contacts
"""


@dataclass(frozen=True)
class Scene:
    """A way in which some are sick: the receivers of configs by number, and that of the flooded one, if it sends.

    There is a batch where BATCHED is among the numbers.
    """

    name: str
    sick: Mapping[int, str]
    flooded: str | None = None


def run(
    dsn: str, receiver: stage.ReceiverProcess, scene: Scene, *, seconds: float, rate: float
) -> tuple[list[float], float]:
    """Return the milliseconds of each delivery of those that are healthy in every scene, sorted; and MB of memory."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(RECOVER)
        _point(conn, receiver.url, scene)
        receiver.ask("times")  # begins anew
        with stage.daemon(dsn, OUTBOX_DRAIN_TIMEOUT="1") as daemon, ThreadPoolExecutor(1) as beside:
            daemon.wait_until_started()
            batch = beside.submit(_capture_batch, dsn) if BATCHED in scene.sick else None
            committed = _write(conn, seconds=WARM_UP + seconds, rate=rate)
            if batch:
                batch.result()
            arrived = arrivals(conn, receiver, committed)
            peak = daemon.memory()
    begun = min(committed.values()) + WARM_UP
    # What arrived before the answer to the commit was back took no time.
    took = [max(0.0, arrived[each] - at) * 1000 for each, at in committed.items() if at >= begun]
    return sorted(took), peak


def _point(conn: psycopg.Connection, url: str, scene: Scene) -> None:
    """Let the configs have the receivers of the scene."""
    conn.execute("update outbox.postback_configs set url = %s where resource = 'contact'", [url])
    for number, sick in scene.sick.items():
        conn.execute(
            "update outbox.postback_configs set url = %s where resource = 'contact' and location_id = %s",
            [sick, f"location-{number}"],
        )
    conn.execute(
        "update outbox.postback_configs set url = %s, paused_at = case when %s then now() end where resource = 'flood'",
        [scene.flooded or url, scene.flooded is None],
    )


def _capture_batch(dsn: str) -> None:
    """Have the batch captured when what is counted begins."""
    time.sleep(WARM_UP)
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(_BATCH, [f"location-{BATCHED}", BATCH])


def _write(conn: psycopg.Connection, *, seconds: float, rate: float) -> dict[str, float]:
    """Insert at an even pace, a config after the other; return when those of the healthy ones were committed."""
    committed = {}
    for number in evenly(seconds, rate):
        config = number % CONFIGS
        row = conn.execute(INSERT, [f"location-{config}"]).fetchone()
        if row and config > REFUSING:
            committed[row[0]] = time.monotonic()
    return committed


def evenly(seconds: float, rate: float) -> Iterator[int]:
    """Count from 0 on, so many a second; one that is late makes no other late."""
    begun = time.monotonic()
    for number in range(int(seconds * rate)):
        time.sleep(max(0.0, begun + number / rate - time.monotonic()))
        yield number


def arrivals(
    conn: psycopg.Connection, receiver: stage.ReceiverProcess, wanted: Mapping[str, float]
) -> dict[str, float]:
    """Return when each of these contacts came; TimeoutError when one does not come."""
    deadline = time.monotonic() + LATEST
    arrived: dict[str, float] = {}
    while not wanted.keys() <= arrived.keys():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(wanted.keys() - arrived.keys())} of {len(wanted)} did not arrive")
        time.sleep(0.5)
        times = receiver.ask("times")
        names = dict(
            conn.execute("select id::text, resource_id from outbox.events where resource = 'contact'").fetchall()
        )
        arrived |= {names[event]: at for event, at in times.items()}
    return arrived


def measure(seconds: int = 20, rounds: int = 3, owed: int = 1_000_000, rate: int = 500) -> None:
    """Measure and record."""
    found: dict[str, list[list[float]]] = {}
    peaks: dict[str, float] = {}
    with ExitStack() as ends:
        dsn = ends.enter_context(stage.database(max_wal_size="4GB"))
        healthy = ends.enter_context(stage.receiver(keep_times=True))
        hanging, slow, at_once, distant = (
            ends.enter_context(stage.receiver(delay=delay)) for delay in (3600.0, 5.0, 0.0, 0.05)
        )
        refusing = f"http://127.0.0.1:{stage.free_port()}/"
        scenes = [
            Scene("all healthy", {}),
            Scene("3 sick", {HANG: hanging.url, SLOW: slow.url, REFUSING: refusing}),
            Scene("1 owes much, answers at once", {}, at_once.url),
            Scene("1 owes much, answers in 50 ms", {}, distant.url),
            Scene("a batch of 1, answers at once", {BATCHED: at_once.url}),
            Scene("a batch of 1, answers in 50 ms", {BATCHED: distant.url}),
        ]
        with psycopg.connect(dsn, autocommit=True) as conn:
            debt.add_configs(conn, healthy.url, CONFIGS + 1)  # and that of the batch
            debt.add_configs(conn, healthy.url, 1, resource="flood")
            debt.owe(conn, owed, configs=1, resource="flood")
            for _ in range(rounds):
                for scene in scenes:
                    took, peak = run(dsn, healthy, scene, seconds=seconds, rate=rate)
                    found.setdefault(scene.name, []).append(took)
                    peaks[scene.name] = max(peak, peaks.get(scene.name, 0.0))
            left = conn.execute("select count(*) from outbox.deliveries as d").fetchone()
    figures: dict[str, float] = {}
    baseline = found[scenes[0].name]
    for name, runs in found.items():
        for share, word in ((0.5, "p50"), (0.99, "p99")):
            figures[f"{name}: {word} ms (median of rounds)"] = statistics.median(at_share(each, share) for each in runs)
            figures[f"{name}: {word}, ratio to all healthy (median)"] = statistics.median(
                at_share(each, share) / at_share(without, share) for each, without in zip(runs, baseline, strict=True)
            )
        figures[f"{name}: daemon's memory, peak MB"] = peaks[name]
    figures["still owed at the end"] = left[0] if left else 0
    stage.record(
        "neighbours", figures,
        {"configs": CONFIGS, "events/s": rate, "seconds": seconds, "rounds": rounds, "one owes": owed, "batch": BATCH},
    )  # fmt: skip


def at_share(ordered: Sequence[float], share: float) -> float:
    """Return the value that this share of them is not above."""
    return ordered[int(len(ordered) * share)]


if __name__ == "__main__":
    measure(*(int(argument) for argument in sys.argv[1:]))
