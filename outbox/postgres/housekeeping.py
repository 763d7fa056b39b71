"""Statements that keep the tables in order; none of them makes a writer wait. What leaves them: retention.py.

One housekeeper at a time, over all daemons and commands: each piece of work is a transaction that tries an advisory
lock and is left out where another one has it.
"""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from psycopg import AsyncConnection
from psycopg.sql import SQL, Identifier

from outbox.postgres import configs

# The tempting session-level lock, held for as long as the daemon runs, is another session's behind PgBouncer in
# transaction mode, and then nobody's for ever.
_TRY_TURN = "select pg_try_advisory_xact_lock(hashtextextended('outbox.housekeeping', 0))"

# Autovacuum comes at 5,000 dead rows. Ten times as many, and none for ten minutes: its workers are busy elsewhere.
_STARVED = """
select s.relname, s.n_dead_tup,
    pg_has_role(current_user, c.relowner, 'USAGE')
    or pg_has_role(current_user, (select datdba from pg_database where datname = current_database()), 'USAGE')
    or {maintains} as may
from pg_stat_user_tables as s join pg_class as c on c.oid = s.relid
where s.schemaname = 'outbox' and s.relname in ('outbox', 'deliveries')
    and s.n_dead_tup > 50000 and s.n_dead_tup > s.n_live_tup / 5
    and coalesce(greatest(s.last_vacuum, s.last_autovacuum), '-infinity') < now() - interval '10 minutes'
"""
_HAS_MAINTAIN = 170_000
"""The server version that came with the right to vacuum another's table."""

_ROWS = 10_000


class ElsewhereError(Exception):
    """Another housekeeper is at work."""


@contextlib.asynccontextmanager
async def turn(conn: AsyncConnection) -> AsyncIterator[None]:
    """Do one short piece of work in a transaction, as the only housekeeper. Raises ElsewhereError."""
    async with conn.transaction():
        found = await (await conn.execute(_TRY_TURN)).fetchone()
        if not (found and found[0]):
            raise ElsewhereError
        yield


async def make_partitions(conn: AsyncConnection) -> int:
    """Make the daily partitions of the coming week; return how many there were to make.

    It takes no turn: that which the first event needs is not left to another one that may be at something else.
    """
    row = await (await conn.execute("select outbox.make_partitions()")).fetchone()
    return int(row[0]) if row else 0


async def purge_deleted(conn: AsyncConnection) -> int:
    """Forget what deleted configs are still owed, in batches of 10,000; return how many deliveries."""
    purged = 0
    for config in await configs.deleted_and_owed(conn):
        rows = _ROWS
        while rows == _ROWS:
            async with turn(conn):
                rows = await configs.forget(conn, config, rows=_ROWS)
            purged += rows
    return purged


@dataclass(frozen=True, slots=True)
class Starved:
    """A table that autovacuum does not get to."""

    table: str
    dead_rows: int
    may_vacuum: bool
    """Whether our role may do it."""


async def starved(conn: AsyncConnection) -> list[Starved]:
    """Return the hot tables that are full of dead rows and were not vacuumed for ten minutes."""
    maintains = "has_table_privilege(c.oid, 'MAINTAIN')" if conn.info.server_version >= _HAS_MAINTAIN else "false"
    query = SQL(_STARVED).format(maintains=SQL(maintains))
    return [Starved(*row) for row in await (await conn.execute(query)).fetchall()]


async def vacuum(conn: AsyncConnection, table: str) -> None:
    """Vacuum it, unless somebody does already. No writer waits."""
    await conn.execute(SQL("vacuum (skip_locked, analyze) {}").format(Identifier("outbox", table)))
