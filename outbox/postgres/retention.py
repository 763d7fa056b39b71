"""Prune: what leaves when its retention is over. The DDL is in sql/0005_retention.sql; why it is so, in decision 4.

Everything goes in pieces, each a short transaction of its own, so that a prune that is broken off keeps what it did.
"""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

import psycopg
from psycopg import AsyncConnection

from outbox.postgres.housekeeping import turn

_ROWS = 10_000
"""Deliveries in one transaction."""
_BLOCKS = 1000
"""Blocks of a default partition in one transaction: 8 MB."""

_CUTOFFS = "select now() - make_interval(secs => %(retention)s), now() - make_interval(secs => %(dead)s)"

# Config by config, because their index begins with the config. Asked once more under the row's lock: a replay may have
# revived it. Locked in the order of the key, as settles do.
_DELETE_DEAD = """
with doomed as materialized (
    select d.event_id, d.config_id from outbox.postback_configs as c
    cross join lateral (
        select d.event_id, d.config_id from outbox.deliveries as d
        where d.config_id = c.id and d.state = 'dead' and d.died_at < %(before)s
        order by d.died_at limit %(rows)s
    ) as d
    limit %(rows)s
), locked as materialized (
    select d.event_id, d.config_id from doomed as x
    join outbox.deliveries as d on d.event_id = x.event_id and d.config_id = x.config_id
    where d.state = 'dead' and d.died_at < %(before)s
    order by d.event_id, d.config_id
    for update of d skip locked
)
delete from outbox.deliveries as d using locked as l where d.event_id = l.event_id and d.config_id = l.config_id
"""
_COUNT_DEAD = """
select count(*) from outbox.postback_configs as c
cross join lateral (
    select from outbox.deliveries as d where d.config_id = c.id and d.state = 'dead' and d.died_at < %(before)s offset 0
) as d
"""

_PARTITIONS = "select parent, name, until, rows, bytes from outbox.partitions() where until <= %(before)s"
_PARTITION = "select fate, kept from outbox.prune_partition(%(name)s, %(before)s, %(dead_before)s, %(dry_run)s)"
_DEFAULT = (
    "select outbox.prune_default(%(parent)s, %(before)s, %(dead_before)s, %(block)s::bigint, %(blocks)s, %(dry_run)s)"
)


class Fate(StrEnum):
    """What became of a partition that is past its retention."""

    DROPPED = "dropped"
    THINNED = "thinned"
    """Only what is owed was kept, and that is so much that it stays a partition."""
    OWED = "owed"
    """Left whole: most of it is owed."""
    BUSY = "busy"
    """Left for the next time: somebody reads the whole table for long."""
    HELD = "held"
    """Left for the next time: somebody has this partition, such as autovacuum or a late route, or replays."""
    GONE = "gone"
    """Another one was faster."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """A partition past its retention, and what became of it, or would."""

    table: str
    partition: str
    until: datetime
    rows: int | None
    """As PostgreSQL estimates them; None where it never did."""
    bytes: int
    """With indexes, before."""
    fate: Fate
    kept: int
    """Events in it that are still owed."""
    error: str | None = None


@dataclass(slots=True, kw_only=True)
class Report:
    """What went, or with a dry run would go."""

    before: datetime
    """History that ended before this is past its retention."""
    dead_before: datetime
    partitions: list[Pruned] = field(default_factory=list)
    dead: int = 0
    """Dead deliveries that were deleted."""
    default_rows: dict[str, int] = field(default_factory=dict)
    """Rows deleted from each default partition."""
    default_left: set[str] = field(default_factory=set)
    """Default partitions to go on with soon: somebody replays, or has them."""

    @property
    def went(self) -> list[Pruned]:
        """The partitions that gave room."""
        return [each for each in self.partitions if each.fate in {Fate.DROPPED, Fate.THINNED}]

    @property
    def left(self) -> list[Pruned]:
        """The partitions to try again soon."""
        return [each for each in self.partitions if each.fate in {Fate.BUSY, Fate.HELD, Fate.FAILED}]


async def prune(conn: AsyncConnection, *, retention: float, retention_dead: float, dry_run: bool = False) -> Report:
    """Let go of what is past its retention, in seconds. `conn` is in autocommit.

    Raises ElsewhereError where another housekeeper is at work; what was done until then stays done.
    """
    asked = {"retention": retention, "dead": retention_dead}
    before, dead_before = (await (await conn.execute(_CUTOFFS, asked)).fetchall())[0]
    report = Report(before=before, dead_before=dead_before)
    # The dead first: their events are owed no more then.
    report.dead = await _prune_dead(conn, dead_before, dry_run=dry_run)
    await _prune_partitions(conn, report, dry_run=dry_run)
    for parent in ("events", "attempts"):
        report.default_rows[f"{parent}_default"] = await _prune_default(conn, parent, report, dry_run=dry_run)
    return report


async def _prune_dead(conn: AsyncConnection, before: datetime, *, dry_run: bool) -> int:
    if dry_run:
        return int((await (await conn.execute(_COUNT_DEAD, {"before": before})).fetchall())[0][0])
    deleted, rows = 0, _ROWS
    while rows == _ROWS:
        async with turn(conn):
            # Never prepared: a generic plan could not use the partial index.
            cursor = await conn.execute(_DELETE_DEAD, {"before": before, "rows": _ROWS}, prepare=False)
        rows = cursor.rowcount
        deleted += rows
    return deleted


async def _prune_partitions(conn: AsyncConnection, report: Report, *, dry_run: bool) -> None:
    busy: set[str] = set()
    found = await (await conn.execute(_PARTITIONS, {"before": report.before})).fetchall()
    for parent, name, until, rows, size in found:
        fate, kept, error = Fate.BUSY, 0, None
        # One wait for the parent's lock in each round is enough.
        if parent not in busy:
            asked = {"name": name, "before": report.before, "dead_before": report.dead_before, "dry_run": dry_run}
            try:
                async with turn(conn):
                    [(told, kept)] = await (await conn.execute(_PARTITION, asked)).fetchall()
                fate = Fate(told)
            except psycopg.Error as problem:
                if conn.closed:
                    raise
                # A view of the DBA's on this partition, say. The others go all the same.
                fate, error = Fate.FAILED, str(problem).strip()
        if fate is Fate.BUSY:
            busy.add(parent)
        if fate is not Fate.GONE:
            report.partitions.append(
                Pruned(
                    table=parent, partition=name, until=until, rows=rows, bytes=size, fate=fate, kept=kept, error=error
                )
            )


async def _prune_default(conn: AsyncConnection, parent: str, report: Report, *, dry_run: bool) -> int:
    deleted, block = 0, 0
    while True:
        asked = {
            "parent": parent, "before": report.before, "dead_before": report.dead_before,
            "block": block, "blocks": _BLOCKS, "dry_run": dry_run,
        }  # fmt: skip
        try:
            async with turn(conn):
                [(rows,)] = await (await conn.execute(_DEFAULT, asked)).fetchall()
        except psycopg.errors.LockNotAvailable:
            report.default_left.add(f"{parent}_default")
            return deleted
        if rows is None:
            return deleted
        deleted += rows
        block += _BLOCKS
