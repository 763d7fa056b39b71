"""How fast a backlog becomes POSTs, against a loop without a database and against other queues on PostgreSQL.

`python -m benchmarks.peers [deliveries] [rounds] [--only NAME …]`, or with `--workers N`: outbox with N workers against
outbox with one. All take turns in one run, on one PostgreSQL and one nginx, with the same bodies and as many POSTs in
flight; the order turns each round. What counts is the ratio within a round. The rate is from the first POST to the
last. Processor time is from the first POST until nothing is owed any more, so that no start is in it. The first run
fetches the peers; later ones need nothing.
"""

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from benchmarks import nginx, processor, stage
from benchmarks.peers import contestants, install
from benchmarks.peers.contestants import Contestant, Course

PATIENCE = 120.0
"""Seconds without a POST or a job done after which a run has failed."""

LOOK_EVERY = 0.02


@dataclass(frozen=True)
class Run:
    """What one backlog took: POSTs per second, and processor seconds per POST of the process and of PostgreSQL."""

    rate: float
    own: float
    postgres: float


def measure(deliveries: int = 20_000, rounds: int = 3, only: Sequence[str] = (), workers: int = 1) -> None:
    """Measure and record: against everybody, or with `workers` outbox against itself."""
    if workers > 1:
        field = [contestants.outbox(), contestants.outbox(workers)]
    else:
        install.install()
        field = [each for each in contestants.everybody() if not only or each.name in only]
    runs: dict[str, list[Run]] = {each.name: [] for each in field}
    with (
        # Peers may hold a connection for each POST in flight.
        stage.server(max_connections="300") as server,
        nginx.receiver() as receiver,
        psycopg.connect(server.dsn, autocommit=True) as conn,
        tempfile.TemporaryDirectory() as folder,
    ):
        stage.add_config(conn, receiver.url)
        bodies = Path(folder) / "bodies"
        contestants.write_bodies(conn, bodies, deliveries)
        course = Course(conn, server.dsn, receiver.url, bodies)
        for each in field:
            course.install(each)
        for number in range(rounds):
            for each in field[number % len(field) :] + field[: number % len(field)]:
                found = _run(course, each, receiver, deliveries, server.pid or 0)
                runs[each.name].append(found)
                print(f"round {number + 1}: {each.name:<24}{found.rate:>10,.0f}/s", flush=True)
        where = nginx.name(receiver)
        postgres = server.version
    settings: dict[str, Any] = {
        "deliveries": deliveries,
        "rounds": rounds,
        "in flight": contestants.IN_FLIGHT,
        "receiver": where,
        **{each.name: each.settings for each in field if each.settings},
    }
    versions = {"postgresql": str(postgres)} | ({} if workers > 1 else install.versions())
    stage.record("workers" if workers > 1 else "peers", _figures(runs), settings, versions)


def _run(
    course: Course, each: Contestant, receiver: nginx.Nginx | stage.ReceiverProcess, deliveries: int, postmaster: int
) -> Run:
    """Let one of them deliver its backlog; RuntimeError when it stops before the end, or POSTs more than there is."""
    course.seed(each)
    receiver.ask("span")  # begins anew
    before = receiver.ask("count")
    log = stage.RESULTS / "peers.tmp"
    process = course.start(each, log)
    try:
        first = _wait(receiver, before + 1, process, log)
        own, postgres = processor.seconds(process.pid), processor.seconds(postmaster)
        _wait(receiver, before + deliveries, process, log)
        count, seconds = receiver.ask("span")
        end = time.monotonic() + PATIENCE
        while course.owed(each):
            if time.monotonic() > end:
                raise RuntimeError(f"{each.name} did not finish: see {log}")
            time.sleep(LOOK_EVERY)
        left = deliveries - (first - before)
        # A bare loop ends by itself, and what the kernel knew of it with it; until it is waited for that stays.
        own, postgres = processor.seconds(process.pid) - own, processor.seconds(postmaster) - postgres
    finally:
        contestants.stop(process)
    if (posted := receiver.ask("count") - before) != deliveries:
        raise RuntimeError(f"{each.name} POSTed {posted} times, not {deliveries}")
    return Run(count / seconds, own / left, postgres / left)


def _wait(
    receiver: nginx.Nginx | stage.ReceiverProcess, count: int, process: subprocess.Popen[bytes], log: Path
) -> int:
    """Wait until so many POSTs came; return how many."""
    last, since = -1, time.monotonic()
    while (now := int(receiver.ask("count"))) < count:
        if now != last:
            last, since = now, time.monotonic()
        if time.monotonic() > since + PATIENCE or _failed(process):
            raise RuntimeError(f"{process.args!r} failed or stands still, {count - now} short: see {log}")
        time.sleep(LOOK_EVERY)
    return now


def _failed(process: subprocess.Popen[bytes]) -> bool:
    """Tell whether it ended badly; it is not waited for, because the kernel would then forget its processor time."""
    ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return ended is not None and ended.si_status != 0


def _figures(runs: dict[str, list[Run]]) -> dict[str, float]:
    """Return medians of each, and of the ratios of outbox to each in the same round."""
    figures = {}
    for name, found in runs.items():
        figures[f"{name}: deliveries/s"] = statistics.median(run.rate for run in found)
        figures[f"{name}: its processor time per delivery, µs"] = statistics.median(run.own for run in found) * 1e6
        figures[f"{name}: PostgreSQL's, µs"] = statistics.median(run.postgres for run in found) * 1e6
        figures[f"{name}: both, µs"] = statistics.median(run.own + run.postgres for run in found) * 1e6
    for name, found in runs.items():
        if name != "outbox" and "outbox" in runs:
            ratios = [ours.rate / theirs.rate for ours, theirs in zip(runs["outbox"], found, strict=True)]
            if name.startswith("outbox"):
                ratios = [1 / ratio for ratio in ratios]
            words = f"{name} / outbox" if name.startswith("outbox") else f"outbox / {name}"
            figures[f"{words} (median of rounds)"] = statistics.median(ratios)
            figures[f"{words} (least)"] = min(ratios)
    return figures


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers")
    parser.add_argument("deliveries", nargs="?", type=int, default=20_000)
    parser.add_argument("rounds", nargs="?", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=(), help="the names of those that take part")
    parser.add_argument("--workers", type=int, default=1, help="measure outbox with so many workers against one")
    measure(**vars(parser.parse_args()))
