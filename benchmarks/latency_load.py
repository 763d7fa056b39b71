"""From the commit to the receiver's first byte: idle, beside two peers, and while commits come at a pace.

`python -m benchmarks.latency_load [events] [seconds] [--peers] [--peak N]`. Idle: `events` single inserts, each when
the one before has arrived; with `--peers` the same of graphile-worker and pgqueuer, in turns, woken by their
notifications. At a pace: for so many seconds each, 10, 50 and 80 % of the peak. The peak is how many single commits a
second this machine takes and delivers: 16 connections commit as fast as they can, and the time is from the first of
them until the last has arrived. A backlog is delivered faster, because here the writer takes its part of the cores.
With `--peak` it is that number instead.

The clock is the machine's monotonic one, which all processes share. The commit counts from the moment in which the
writer has read its answer; at a pace that is a busy process, which reads late, so the time from when the insert was
due, the commit's own time and all waiting included, stands beside it.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psycopg

from benchmarks import stage
from benchmarks.paced import CONNECTIONS
from benchmarks.peers import contestants, install
from benchmarks.peers.contestants import Contestant, Course

SHARES = (0.1, 0.5, 0.8)
BLOCKS = 4
"""How often each of those that are measured idle has its turn."""

Insert = Callable[[psycopg.Connection, str], None]
"""Commits one event; what arrives is found by the id that it is given."""

_SETTINGS = {
    "OUTBOX_CONCURRENCY": str(4 * contestants.IN_FLIGHT),
    "OUTBOX_MAX_IN_FLIGHT_PER_CONFIG": str(contestants.IN_FLIGHT),
}
_GRAPHILE_WORKER = {"concurrentJobs": 10, "maxPoolSize": 12}
_PGQUEUER = {"managers": 1, "run": {"batch_size": 10, "dequeue_timeout": 30}}
_BODY = "x" * 900


def _contact(conn: psycopg.Connection, identity: str) -> None:
    conn.execute(
        "insert into public.contacts (id, location_id, last_name, first_name, email, address, city) "
        "values (%s, %s, 'Jones', 'Zoë', 'zoe@example.com', '1 Main St & Co', 'Örebro')",
        [identity, stage.LOCATION],
    )


def _graphile_job(conn: psycopg.Connection, identity: str) -> None:
    job = json.dumps({"id": identity, "body": _BODY})
    conn.execute("select graphile_worker.add_job('post', %s::json)", [job])


def _pgqueuer_job(conn: psycopg.Connection, identity: str) -> None:
    # As its own enqueue() writes it, the log included.
    conn.execute(
        "with queued as (insert into pgqueuer.pgqueuer (priority, entrypoint, payload, execute_after, status) "
        "values (0, 'post', %s, now(), 'queued') returning id, entrypoint, priority) "
        "insert into pgqueuer.pgqueuer_log (job_id, status, entrypoint, priority) "
        "select id, 'queued', entrypoint, priority from queued",
        [f"{identity} {_BODY}".encode()],
    )


def idle(course: Course, each: Contestant, insert: Insert, receiver: stage.ReceiverProcess, events: int) -> list[float]:
    """Return the seconds that each event took, with a process that had nothing to do before it."""
    dice = random.Random(1)  # noqa: S311 - spread, not secrecy
    committed: dict[str, float] = {}
    process = course.start(each, stage.RESULTS / "latency_load.tmp")
    try:
        for number in range(-20, events):
            identity = uuid.uuid4().hex[:24] if each.name == "outbox" else str(uuid.uuid4())
            before = receiver.ask("count")
            insert(course.conn, identity)
            if number >= 0:  # those before it only warm up
                committed[identity] = time.monotonic()
            time.sleep(0.01)  # a receiver that is asked all the time is no idle one
            _until(receiver, before + 1)
            time.sleep(dice.uniform(0.02, 0.08))
    finally:
        contestants.stop(process)
    arrived = _arrivals(course.conn, receiver, committed if each.name == "outbox" else None)
    return [max(0.0, arrived[identity] - moment) for identity, moment in committed.items()]


def _until(receiver: stage.ReceiverProcess, count: int) -> None:
    while receiver.ask("count") < count:
        time.sleep(0.005)


def _arrivals(
    conn: psycopg.Connection, receiver: stage.ReceiverProcess, contacts: dict[str, Any] | None
) -> dict[str, float]:
    """Return when each came: by webhook-id, or by the id of its contact."""
    times: dict[str, float] = receiver.ask("times")
    if contacts is None:
        return times
    rows = conn.execute(
        "select resource_id, id::text from outbox.events where resource_id = any(%s)", [list(contacts)]
    ).fetchall()
    return {contact: times[event] for contact, event in rows}


def paced(
    conn: psycopg.Connection, dsn: str, receiver: stage.ReceiverProcess, count: int, rate: float
) -> dict[str, list[float]]:
    """Let a writer commit at a pace while the daemon runs.

    Return for each event when it was `due`, `sent`, `answered` and `arrived`.
    """
    with tempfile.TemporaryDirectory() as folder, stage.daemon(dsn, **_SETTINGS) as daemon:
        daemon.wait_until_started()
        before = receiver.ask("count")
        file = Path(folder) / "written"
        subprocess.run(  # noqa: S603 - ourselves
            [sys.executable, "-m", "benchmarks.paced", dsn, str(count), str(rate), str(file)], check=True
        )
        written = {identity: rest for identity, *rest in json.loads(file.read_text())}
        _until(receiver, before + count)
    arrived = _arrivals(conn, receiver, written)
    columns = zip(*((*moments, arrived[identity]) for identity, moments in written.items()), strict=True)
    return dict(zip(("due", "sent", "answered", "arrived"), map(list, columns), strict=True))


def peak(conn: psycopg.Connection, dsn: str, receiver: stage.ReceiverProcess, count: int) -> float:
    """Return how many single commits a second are taken and delivered."""
    moments = paced(conn, dsn, receiver, count, 0)
    return count / (max(moments["arrived"]) - min(moments["sent"]))


def _percentiles(name: str, seconds: Sequence[float]) -> dict[str, float]:
    """Return p50, p99 and p99.9 in ms; of fewer than a thousand the last is the greatest."""
    ordered = sorted(seconds)
    return {
        f"{name}, {words} ms": ordered[min(int(len(ordered) * share), len(ordered) - 1)] * 1000
        for words, share in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999))
    }


def measure(events: int = 1_000, seconds: float = 20.0, *, peers: bool = False, top: float | None = None) -> None:
    """Measure and record; `top`: the commits per second that count as the peak, None to measure it."""
    field: list[tuple[Contestant, Insert]] = [(contestants.outbox(), _contact)]
    if peers:
        install.install()
        field += [
            (contestants.graphile_worker(_GRAPHILE_WORKER), _graphile_job),
            (contestants.pgqueuer(_PGQUEUER), _pgqueuer_job),
        ]
    figures: dict[str, float] = {}
    with (
        stage.server() as server,
        stage.receiver(keep_times=True) as receiver,
        psycopg.connect(server.dsn, autocommit=True) as conn,
        tempfile.TemporaryDirectory() as folder,
    ):
        bodies = Path(folder) / "bodies"
        contestants.write_bodies(conn, bodies, 1)
        stage.add_config(conn, receiver.url)
        course = Course(conn, server.dsn, receiver.url, bodies)
        took: dict[str, list[float]] = {each.name: [] for each, _ in field}
        for each, _ in field:
            course.install(each)
        for _ in range(BLOCKS):
            for each, insert in field:
                took[each.name] += idle(course, each, insert, receiver, max(1, events // BLOCKS))
        for name, found in took.items():
            figures |= _percentiles(f"idle, {name}", found)
        measured = "asked for" if top else "measured"
        top = top or peak(conn, server.dsn, receiver, 10_000)
        figures[f"peak, {measured}, commits delivered/s"] = top
        for share in SHARES:
            rate = share * top
            moments = paced(conn, server.dsn, receiver, max(1, int(rate * seconds)), rate)
            figures |= _paced_figures(f"at {share:.0%} of the peak", moments)
        version = server.version
    settings: dict[str, Any] = {"idle events": events, "seconds at each pace": seconds, "connections": CONNECTIONS}
    settings |= {each.name: each.settings for each, _ in field}
    versions = {"postgresql": str(version)} | (install.versions() if peers else {})
    stage.record("latency_load", figures, settings, versions)


def _paced_figures(name: str, moments: dict[str, list[float]]) -> dict[str, float]:
    after_commit = [there - here for there, here in zip(moments["arrived"], moments["answered"], strict=True)]
    after_due = [there - here for there, here in zip(moments["arrived"], moments["due"], strict=True)]
    ordered = _percentiles(name, [max(0.0, each) for each in after_commit])
    return {
        f"{name}, commits/s": len(after_due) / (max(moments["answered"]) - min(moments["due"])),
        **ordered,
        f"{name}, p99 / p50": ordered[f"{name}, p99 ms"] / max(ordered[f"{name}, p50 ms"], 0.001),
        **_percentiles(f"{name}, from when due", after_due),
        f"{name}, arrived before the writer knew": sum(each < 0 for each in after_commit) / len(after_commit),
    }


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency_load")
    parser.add_argument("events", nargs="?", type=int, default=1_000)
    parser.add_argument("seconds", nargs="?", type=float, default=20.0)
    parser.add_argument("--peers", action="store_true", help="measure graphile-worker and pgqueuer idle, too")
    parser.add_argument("--peak", dest="top", type=float, help="commits per second that count as the peak")
    measure(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
