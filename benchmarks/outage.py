"""What it costs the others when many endpoints fall silent, or slow, in the same moment: from commit to first byte.

`python -m benchmarks.outage [seconds] [events a second]`. CONFIGS configs get equal traffic; BEFORE seconds after the
beginning so many of them get an endpoint that hangs, or that answers in 5 s, and stay so for `seconds`; then the daemon
is restarted and knows none of them any more. The figures are those of the others: before, until the first POSTs have
timed out and a little longer, after that, and after the restart.
"""

import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass

import psycopg

from benchmarks import debt, stage
from benchmarks.neighbours import INSERT, RECOVER, arrivals, at_share, evenly

CONFIGS = 400
BEFORE = 5.0
LEARNING = 20.0
"""Seconds in which the first POSTs time out, whose deadline is 15, and what was held up is made good."""

_POINT = """
update outbox.postback_configs set url = %s, revision = revision + 1 where substr(location_id, 10)::integer < %s
"""


@dataclass(frozen=True)
class Scene:
    """How many fall ill, and what they have then."""

    name: str
    sick: int
    url: str


def run(
    dsn: str, receiver: stage.ReceiverProcess, scene: Scene, *, seconds: float, rate: float
) -> dict[str, list[float]]:
    """Return the milliseconds of each delivery of those that stay well, sorted, for each part of the time."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(RECOVER)
        conn.execute(_POINT, [receiver.url, CONFIGS])
        receiver.ask("times")  # begins anew
        with stage.daemon(dsn, OUTBOX_DRAIN_TIMEOUT="1") as daemon:
            daemon.wait_until_started()
            committed = _write(conn, scene, before=BEFORE, seconds=seconds, rate=rate)
        restarted_at = time.monotonic()
        with stage.daemon(dsn, OUTBOX_DRAIN_TIMEOUT="1") as daemon:
            daemon.wait_until_started()
            committed |= _write(conn, scene, before=0.0, seconds=LEARNING, rate=rate)
            arrived = arrivals(conn, receiver, committed)
    ill_at = min(committed.values()) + BEFORE
    parts: dict[str, list[float]] = {"before": [], "at first": [], "then": [], "restarted": []}
    for contact, at in committed.items():
        part = "before" if at < ill_at else "at first" if at < ill_at + LEARNING else "then"
        part = "restarted" if at > restarted_at else part
        # What arrived before the answer to the commit was back took no time.
        parts[part].append(max(0.0, arrived[contact] - at) * 1000)
    return {part: sorted(took) for part, took in parts.items()}


def _write(conn: psycopg.Connection, scene: Scene, *, before: float, seconds: float, rate: float) -> dict[str, float]:
    """Insert at an even pace, the configs mixed; return when those of the ones that stay well were committed.

    The others are so for `seconds`, and are not for as many `before`.
    """
    committed = {}
    for number in evenly(before + seconds, rate):
        if number == int(before * rate):
            conn.execute(_POINT, [scene.url, scene.sick])
        config = number * 7 % CONFIGS
        row = conn.execute(INSERT, [f"location-{config}"]).fetchone()
        if row and config >= scene.sick:
            committed[row[0]] = time.monotonic()
    return committed


def measure(seconds: int = 60, rate: int = 200) -> None:
    """Measure and record."""
    figures: dict[str, float] = {}
    with ExitStack() as ends:
        dsn = ends.enter_context(stage.database())
        healthy = ends.enter_context(stage.receiver(keep_times=True))
        hanging, slow = (ends.enter_context(stage.receiver(delay=delay)) for delay in (3600.0, 5.0))
        scenes = [
            Scene("50 hang", 50, hanging.url),
            Scene("150 hang", 150, hanging.url),
            Scene("300 hang", 300, hanging.url),
            Scene("300 answer in 5 s", 300, slow.url),
        ]
        with psycopg.connect(dsn, autocommit=True) as conn:
            debt.add_configs(conn, healthy.url, CONFIGS)
        for scene in scenes:
            for part, took in run(dsn, healthy, scene, seconds=seconds, rate=rate).items():
                for share, word in ((0.5, "p50"), (0.99, "p99")) if took else ():
                    figures[f"{scene.name}: {word} ms, {part}"] = at_share(took, share)
    settings = {"configs": CONFIGS, "events/s": rate, "seconds": seconds, "at first, s": LEARNING, "in flight": 200}
    stage.record("outage", figures, settings)


if __name__ == "__main__":
    measure(*(int(argument) for argument in sys.argv[1:]))
