"""Databases of different sizes on one PostgreSQL, compared in turn: statement by statement and run by run."""

import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import psycopg

from benchmarks import debt, stage
from outbox.cli.options import run_async
from outbox.core.model import NO_CONFIG, Attempt, ConfigId, Delivered
from outbox.demo.contacts import DDL
from outbox.demo.embedded import EmbeddedPostgres
from outbox.postgres import queue, routing
from outbox.postgres.migrations import migrate
from outbox.postgres.pool import Link

SLOTS = 100
"""Deliveries that a timed claim asks for, and events that a timed route takes."""
WARM_UP = 10
KINDS = ("claim", "settle", "route")
SETTINGS = {
    "shared_buffers": "1GB", "max_wal_size": "16GB", "maintenance_work_mem": "256MB", "wal_level": "minimal",
    "max_wal_senders": "0",
}  # fmt: skip
WORKED_OFF = {"OUTBOX_CONCURRENCY": "400", "OUTBOX_MAX_IN_FLIGHT_PER_CONFIG": "100", "OUTBOX_DRAIN_TIMEOUT": "5"}


@dataclass
class Ground:
    """One database. What is captured in it belongs to the first `locations` locations in turn."""

    name: str
    dsn: str
    conn: psycopg.Connection
    locations: int = 100
    room: int = 10
    """What a timed claim asks for of one config at most."""
    times: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    """Milliseconds."""
    rates: list[float] = field(default_factory=list)
    peak: float = 0.0
    """MB of the daemon's resident memory."""


class Grounds:
    """A PostgreSQL with as many alike databases as are asked for, each with our schema and an attached table."""

    def __init__(self, server: EmbeddedPostgres, ends: ExitStack) -> None:
        self._server = server
        self._ends = ends
        self._admin = ends.enter_context(psycopg.connect(server.dsn, autocommit=True))
        self._admin.execute("create database base")
        base = self._dsn("base")
        run_async(migrate(base))
        with psycopg.connect(base, autocommit=True) as conn:
            conn.execute(DDL)
            conn.execute("select outbox.attach('public.contacts', 'contact')")
            conn.execute("select outbox.make_partitions()")

    def add(self, name: str) -> Ground:
        """Make one more."""
        database = "ground_" + "".join(letter if letter.isalnum() else "_" for letter in name)
        self._admin.execute(f"create database {database} template base".encode())
        dsn = self._dsn(database)
        return Ground(name, dsn, self._ends.enter_context(psycopg.connect(dsn, autocommit=True)))

    def _dsn(self, database: str) -> str:
        return self._server.dsn.replace("/postgres?", f"/{database}?")


@contextmanager
def grounds() -> Iterator[Grounds]:
    """Run a PostgreSQL for them."""
    with ExitStack() as ends:
        yield Grounds(ends.enter_context(EmbeddedPostgres(settings=SETTINGS)), ends)


def time_statements(compared: Sequence[Ground], samples: int) -> dict[str, float]:
    """Claim, settle and route in each ground in turn, and roll all of it back; return the medians and their ratios."""
    run_async(_take_turns(compared, samples))
    figures = {}
    for kind in KINDS:
        medians = [statistics.median(ground.times[kind]) for ground in compared]
        for ground, median in zip(compared, medians, strict=True):
            figures[f"{ground.name}: {kind} of {SLOTS}, median ms"] = median
            figures[f"{ground.name}: {kind}, ratio to the first"] = median / medians[0]
    for ground in compared:
        ground.conn.execute("vacuum (analyze) outbox.deliveries, outbox.outbox")
    return figures


async def _take_turns(compared: Sequence[Ground], samples: int) -> None:
    links = [Link(ground.dsn, "growth") for ground in compared]
    starts = [_starts(ground) for ground in compared]
    dice = random.Random(1)  # noqa: S311 - spread, not secrecy
    for number in range(-WARM_UP, samples):
        for ground, link, after in zip(compared, links, starts, strict=True):
            once = await _time_once(await link.connection(), ground, dice.choice(after))
            if number >= 0:  # the first ones are planned anew
                for kind, took in zip(KINDS, once, strict=True):
                    ground.times[kind].append(took * 1000)
    for link in links:
        await link.drop()


def _starts(ground: Ground) -> list[ConfigId]:
    """Return after which configs a claim finds all that it asks for."""
    rows = ground.conn.execute("select distinct config_id::text from outbox.deliveries order by 1").fetchall()
    return [NO_CONFIG, *(config for (config,) in rows[: -SLOTS // ground.room])]


async def _time_once(conn: psycopg.AsyncConnection, ground: Ground, after: ConfigId) -> tuple[float, float, float]:
    await conn.execute("begin")
    try:
        begun = time.perf_counter()
        claimed = await queue.claim(conn, after=after, slots=SLOTS, room=ground.room, rooms={}, lease=60)
        claim = time.perf_counter() - begun
        now = datetime.now(UTC)
        tries = [Attempt(delivery, Delivered(), 200, b"ok", 9, now) for delivery in claimed.deliveries]
        begun = time.perf_counter()
        lost = (await queue.settle(conn, tries)).lost
        settle = time.perf_counter() - begun
        await conn.execute(debt.CAPTURED.encode(), {"count": SLOTS, "configs": ground.locations})
        begun = time.perf_counter()
        routed = await routing.route(conn, low=0, rows=SLOTS, slots=SLOTS, room=SLOTS, rooms={}, lease=60)
        route = time.perf_counter() - begun
    finally:
        await conn.execute("rollback")
    # Or it measured something else.
    assert (len(tries), len(lost), len(routed.deliveries)) == (SLOTS, 0, SLOTS), (ground.name, len(tries), lost, routed)  # noqa: S101
    return claim, settle, route


def time_runs(
    compared: Sequence[Ground],
    receiver: stage.ReceiverProcess,
    *,
    refill: Callable[[Ground, int], None],
    deliveries: int,
    rounds: int,
) -> dict[str, float]:
    """Let `outbox run` deliver so many in each ground in turn; return the rates and their ratios.

    `refill` gives a ground back what it delivered.
    """
    for _ in range(rounds):
        for ground in compared:
            delivered = deliver(ground, receiver, deliveries)
            refill(ground, delivered)
    figures = {}
    for ground in compared:
        ratios = [rate / first for rate, first in zip(ground.rates, compared[0].rates, strict=True)]
        figures[f"{ground.name}: deliveries/s (median)"] = statistics.median(ground.rates)
        figures[f"{ground.name}: rate, ratio to the first (median)"] = statistics.median(ratios)
        figures[f"{ground.name}: daemon's memory, peak MB"] = ground.peak
    return figures


def deliver(ground: Ground, receiver: stage.ReceiverProcess, deliveries: int, **settings: Any) -> int:  # noqa: ANN401 - any setting's value
    """Let a daemon deliver so many, and note how it went; return how many it delivered before it ended."""
    receiver.ask("span")  # begins anew
    before = receiver.ask("count")
    with stage.daemon(ground.dsn, **(WORKED_OFF | settings)) as daemon:
        while receiver.ask("count") < before + deliveries:
            time.sleep(0.02)
        count, seconds = receiver.ask("span")
        ground.peak = max(ground.peak, daemon.memory())
    ground.rates.append(count / seconds)
    return int(receiver.ask("count")) - before
