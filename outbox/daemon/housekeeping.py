"""What must be done now and then: partitions ahead of time, history that leaves, a vacuum that autovacuum missed.

All daemons and workers do it, one at a time. Nothing here ends the daemon, and nothing holds up its end.
"""

import asyncio
import time
from collections.abc import Callable, Sequence

import psycopg
import structlog

from outbox import logs
from outbox.postgres import housekeeping, migrations, retention
from outbox.postgres.housekeeping import ElsewhereError
from outbox.postgres.pool import TRANSIENT, Link, is_gone
from outbox.settings import Settings

_EVERY = 60.0
"""Seconds."""
_LONGEST = 3600.0
"""Seconds that one statement may take, such as the vacuum of a large table: after that its link is taken for dead."""
_PRUNE_EVERY = 3600.0
"""Seconds from one prune to the next; where something was left over, it is _EVERY."""

log = structlog.get_logger("outbox")


class Housekeeper:
    """Does it now and every minute, until it is cancelled."""

    def __init__(self, settings: Settings, schema_fits: Callable[[bool], None]) -> None:
        self._settings = settings
        self._schema_fits = schema_fits
        self._link = Link(
            settings.dsn or "", "housekeeping", settings=None, pooling=settings.pooling, deadline=_LONGEST
        )
        self._prune_at = time.monotonic()
        self._refused: set[str] = set()
        self._owed: set[str] = set()
        # As this program was started: an upgrade in its place puts other files there, while it is what it was.
        self._known = migrations.known_migrations()
        self._differences: Sequence[str] = ()

    async def keep_house(self) -> None:
        """Do it, for ever. What fails is logged and done the next time."""
        while True:
            try:
                await self.once()
            except ElsewhereError:
                pass  # another daemon is at it; what it leaves is for the next round
            except Exception as error:  # noqa: BLE001 - whatever it is, there is a next round
                # That the database is away, the fetch loop says.
                if not (isinstance(error, TRANSIENT) and is_gone(error)):
                    log.warning("housekeeping.failed", error=_short(error))
            finally:
                await self.close()
            await asyncio.sleep(_EVERY)

    async def once(self) -> None:
        """Do what is to be done now. Raises ElsewhereError and what the database raises."""
        conn = await self._link.connection()
        differences = migrations.differences(await migrations.applied(conn), self._known)
        self._schema_fits(not differences)
        told, self._differences = self._differences, differences
        if differences:
            if differences != told:
                log.warning(
                    "schema.differs", differences=differences,
                    hint="this daemon goes on sending, keeps no house, and would not start again",
                )  # fmt: skip
            return
        if made := await housekeeping.make_partitions(conn):
            log.info("partitions.made", count=made)
        if purged := await housekeeping.purge_deleted(conn):
            log.info("deliveries.purged", count=purged)
        await self._vacuum(conn)
        if time.monotonic() >= self._prune_at:
            await self._prune(conn)

    async def close(self) -> None:
        """Close its connection; the next round opens one."""
        await self._link.drop()

    async def _vacuum(self, conn: psycopg.AsyncConnection) -> None:
        for table in await housekeeping.starved(conn):
            if table.may_vacuum:
                begun = time.monotonic()
                await housekeeping.vacuum(conn, table.table)
                log.info(
                    "housekeeping.vacuumed",
                    table=table.table,
                    dead_rows=table.dead_rows,
                    duration_ms=_ms_since(begun),
                )
            elif table.table not in self._refused:
                self._refused.add(table.table)
                log.warning(
                    "housekeeping.vacuum_refused",
                    table=table.table,
                    dead_rows=table.dead_rows,
                    hint="autovacuum falls behind, and our role may not vacuum: grant MAINTAIN, or look at autovacuum",
                )

    async def _prune(self, conn: psycopg.AsyncConnection) -> None:
        begun = time.monotonic()
        report = await retention.prune(
            conn, retention=self._settings.retention, retention_dead=self._settings.retention_dead
        )
        self._prune_at = time.monotonic() + (0 if report.left or report.default_left else _PRUNE_EVERY)
        for each in report.left:
            log.warning("housekeeping.postponed", partition=each.partition, reason=each.error or each.fate)
        for each in report.partitions:
            if each.fate is retention.Fate.OWED and each.partition not in self._owed:
                self._owed.add(each.partition)
                log.warning(
                    "housekeeping.kept",
                    partition=each.partition,
                    events=each.kept,
                    bytes=each.bytes,
                    hint="past its retention, and most of it is owed: by paused and inactive configs, say",
                )
        for name in sorted(report.default_left):
            log.warning("housekeeping.postponed", partition=name, reason=retention.Fate.HELD)
        if report.went or report.dead or any(report.default_rows.values()):
            log.info(
                "housekeeping.pruned",
                partitions=[each.partition for each in report.went],
                bytes=sum(each.bytes for each in report.went),
                kept_events=sum(each.kept for each in report.went),
                dead_deliveries=report.dead,
                **report.default_rows,
                duration_ms=_ms_since(begun),
            )


def _ms_since(begun: float) -> int:
    return round((time.monotonic() - begun) * 1000)


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {logs.said(error)}"
