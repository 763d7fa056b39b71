"""Who takes part: how each is given its backlog, started, and known to have done all of it. All SQL on peers is here.

The settings are each project's own advice for throughput where it gives one (the source stands beside them), and where
it does not, what was fastest of the values tried here.
"""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from benchmarks import stage
from benchmarks.peers import install
from outbox.core import postback

IN_FLIGHT = 100

GRAPHILE_WORKER = {
    "concurrentJobs": IN_FLIGHT,
    # worker.graphile.org/docs/performance has 500 in its own record and 250 ms as its "reasonable default". In three
    # rounds here: 500 and 0 ms (its record) 10,200/s, 500 and 250 ms 13,100/s, these 13,900/s.
    "localQueue": {"size": 1000},
    "completeJobBatchDelay": 250,
    "failJobBatchDelay": 250,
    # docs/config: "10 or concurrentJobs + 2, whichever is larger"; with 10 it was no faster.
    "maxPoolSize": IN_FLIGHT + 2,
}
PG_BOSS = {
    "boss": {"schedule": False},
    "work": {
        # docs/api/workers. Two batches at once, because a batch is settled only when its slowest job is done; the HTTP
        # client's pool of 100 connections is what limits the POSTs in flight. In three rounds here: one of 400 9,400/s,
        # one of 1,000 10,800/s, two of 500 10,500/s, two of 1,000 12,400/s; many small ones are slower.
        "localConcurrency": 2,
        "batchSize": 1000,
        "burstWhenBatchFull": True,
        "pollingIntervalSeconds": 0.5,
        # No order was asked of anybody.
        "priority": False,
        "orderByCreatedOn": False,
    },
}
PGQUEUER = {
    # guides/performance-tuning advises one connection of its own for the queue manager, and larger batches for short
    # jobs. Tried: 1, 2 and 4 managers; batches of 25 to 500; with and without a limit of tasks, which the HTTP client's
    # pool of 100 connections makes needless. All were within a third, more managers slower.
    "managers": 1,
    "run": {"batch_size": 100, "dequeue_timeout": 30},
}
PROCRASTINATE = {
    # It fetches and finishes job by job, and a larger pool made it slower: 640/s with 4, 540/s with 10, 470/s with 50.
    "pool": {"min_size": 2, "max_size": 4},
    # howto/production/delete_finished_jobs.
    "worker": {"concurrency": IN_FLIGHT, "delete_jobs": "successful"},
}


@dataclass(frozen=True)
class Contestant:
    """A dispatcher or a bare loop.

    `owed`: a query of how much it has not done, failed jobs included; None for a loop that ends by itself. `clear`:
    statements that forget what was done. `program`: what is run, with `install`, `seed FILE` or `work …` behind it.
    """

    name: str
    settings: Mapping[str, Any]
    owed: str | None = None
    clear: str = ""
    program: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


def everybody() -> list[Contestant]:
    """Return all, the bare loops and outbox first; the peers must be installed."""
    return [bare("own"), bare("aiohttp"), outbox(), graphile_worker(), pg_boss(), pgqueuer(), procrastinate()]


def bare(transport: str) -> Contestant:
    """Return the loop with our own transport or the one with aiohttp."""
    return Contestant(f"bare loop, {transport}", {}, program=(sys.executable, "-m", "benchmarks.peers.bare", transport))


def outbox(workers: int = 1) -> Contestant:
    """Return `outbox run`; together the workers have IN_FLIGHT POSTs in flight, as everybody has."""
    settings = {
        "OUTBOX_CONCURRENCY": str(4 * IN_FLIGHT),
        "OUTBOX_MAX_IN_FLIGHT_PER_CONFIG": str(IN_FLIGHT // workers),
        "OUTBOX_WORKERS": str(workers),
        "OUTBOX_ALLOW_NETWORKS": "127.0.0.0/8",
        # No peer logs what went well; the tries are in the table.
        "OUTBOX_LOG_LEVEL": "warning",
    }
    return Contestant(
        "outbox" if workers == 1 else f"outbox, {workers} workers",
        settings,
        "select (select count(*) from outbox.outbox) + (select count(*) from outbox.deliveries)",
        environment=settings,
    )


def graphile_worker(settings: Mapping[str, Any] | None = None) -> Contestant:
    """Return graphile-worker, which deletes a job that is done."""
    return Contestant(
        "graphile-worker",
        settings or GRAPHILE_WORKER,
        "select count(*) from graphile_worker._private_jobs",
        program=(install.node(), str(install.TARGET / "graphile_worker.mjs")),
        environment={"NO_LOG_SUCCESS": "1"},
    )


def pg_boss() -> Contestant:
    """Return pg-boss, which keeps a job that is done for days."""
    return Contestant(
        "pg-boss",
        PG_BOSS,
        "select count(*) from pgboss.job where name = 'post' and state <> 'completed'",
        clear="truncate pgboss.job cascade",
        program=(install.node(), str(install.TARGET / "pg_boss.mjs")),
    )


def pgqueuer(settings: Mapping[str, Any] | None = None) -> Contestant:
    """Return pgqueuer, which moves a job that is done, or failed, to its log."""
    return Contestant(
        "pgqueuer",
        settings or PGQUEUER,
        "select (select count(*) from pgqueuer.pgqueuer)"
        " + (select count(*) from pgqueuer.pgqueuer_log where status not in ('queued', 'picked', 'successful'))",
        clear="truncate pgqueuer.pgqueuer, pgqueuer.pgqueuer_log",
        program=(str(install.PYTHON), str(install.SOURCE / "pgqueuer_worker.py")),
        # guides/performance-tuning: its log unlogged, its queue not, so that no job can be lost.
        environment={"PGQUEUER_DURABILITY": "balanced"},
    )


def procrastinate() -> Contestant:
    """Return procrastinate, which here deletes a job that is done, as that is faster."""
    return Contestant(
        "procrastinate",
        PROCRASTINATE,
        "select count(*) from procrastinate.procrastinate_jobs",
        clear="truncate procrastinate.procrastinate_jobs cascade",
        program=(str(install.PYTHON), str(install.SOURCE / "procrastinate_worker.py")),
    )


def write_bodies(conn: psycopg.Connection, path: Path, count: int) -> None:
    """Write the bodies that outbox sends, and take the contacts out of its way again."""
    stage.add_contacts(conn, count)
    records = conn.execute("select data::text from outbox.outbox").fetchall()
    conn.execute("truncate outbox.outbox, public.contacts")
    lines = (f"{uuid.uuid4()} ".encode() + postback.form_body("CREATE", "contact", 1, data) for (data,) in records)
    path.write_bytes(b"".join(line + b"\n" for line in lines))


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask it to end, and end it when it does not."""
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Course:
    """The one database and the one receiver that all run on; `bodies`: a file of lines, an id, a space, the body."""

    def __init__(self, conn: psycopg.Connection, dsn: str, url: str, bodies: Path) -> None:
        self.conn, self._url, self._bodies = conn, url, bodies
        info = conn.info
        postgres = {"PGHOST": info.host, "PGPORT": str(info.port), "PGUSER": info.user, "PGDATABASE": info.dbname}
        self._environment = os.environ | postgres | {"OUTBOX_DSN": dsn}
        self._deliveries = len(bodies.read_bytes().splitlines())

    def install(self, each: Contestant) -> None:
        """Make its schema."""
        if each.owed and each.program:
            self._run(each, "install")

    def seed(self, each: Contestant) -> None:
        """Give it a backlog of all bodies, with nothing left over from those who ran before."""
        if each.owed and each.program:
            if each.clear:
                self.conn.execute(each.clear.encode())
            self._run(each, "seed", str(self._bodies))
        elif each.owed:
            stage.add_contacts(self.conn, self._deliveries)
        self.conn.execute("vacuum analyze")
        self.conn.execute("checkpoint")

    def start(self, each: Contestant, errors: Path) -> subprocess.Popen[bytes]:
        """Start its process."""
        url, in_flight = self._url, str(IN_FLIGHT)
        if not each.program:
            command = [sys.executable, "-m", "outbox", "run"]
        elif each.owed is None:
            command = [*each.program, str(self._bodies), url, in_flight]
        else:
            command = [*each.program, "work", url, in_flight, json.dumps(each.settings)]
        with errors.open("wb") as stream:
            return subprocess.Popen(  # noqa: S603 - ours, or the peers that we installed
                command, env=self._environment | each.environment, stdout=stream, stderr=stream
            )

    def owed(self, each: Contestant) -> int:
        """Return how much it has not done."""
        if each.owed is None:
            return 0
        row = self.conn.execute(each.owed.encode()).fetchone()
        return int(row[0]) if row else 0

    def _run(self, each: Contestant, *arguments: str) -> None:
        subprocess.run([*each.program, *arguments], env=self._environment | each.environment, check=True)  # noqa: S603 - as in start
