"""Connections: opened when needed, replaced after they broke. What is done with them stands elsewhere."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus

# The queue's tables swing between empty and full faster than statistics follow, so its connections forbid the plans
# that only empty tables deserve. Planning each time and JIT would take longer than many of our statements.
_QUEUE_SETTINGS = """
    set plan_cache_mode = force_generic_plan; set jit = off;
    set enable_seqscan = off; set enable_hashjoin = off; set enable_mergejoin = off
"""

# A host that vanished without a word is noticed, and not only when the kernel gives up after a quarter of an hour.
_PARAMETERS: dict[str, Any] = {
    "client_encoding": "utf8",
    "connect_timeout": 10,
    "keepalives_idle": 20,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}

TRANSIENT = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError, OSError)
"""What passes when the database is back: connection lost or refused, shutdown, deadlock, disk full, a standby."""


class Link:
    """One autocommit connection to the database, for one task at a time.

    After one of TRANSIENT call `drop`; the next `connection` opens a new one, or raises what keeps it from that.
    """

    def __init__(self, dsn: str, name: str, *, settings: str | None = _QUEUE_SETTINGS) -> None:
        # What the DSN says itself stands.
        self._dsn = make_conninfo(
            "", **(_PARAMETERS | {"fallback_application_name": f"outbox {name}"} | conninfo_to_dict(dsn))
        )
        self._settings = settings
        self._conn: psycopg.AsyncConnection | None = None

    async def connection(self) -> psycopg.AsyncConnection:
        """Return the connection, opened if need be."""
        if self._conn is None or self._conn.closed:
            conn = self._conn = await psycopg.AsyncConnection.connect(self._dsn, autocommit=True)
            if self._settings:
                await conn.execute(self._settings.encode())
        return self._conn

    async def drop(self) -> None:
        """Close the connection, whatever its state."""
        conn, self._conn = self._conn, None
        if conn is not None:
            with contextlib.suppress(psycopg.Error, OSError):
                await conn.close()


class Links:
    """At most `count` autocommit connections for many short questions, opened when needed."""

    def __init__(self, dsn: str, name: str, *, count: int, settings: str | None = None) -> None:
        self._idle = [Link(dsn, name, settings=settings) for _ in range(count)]
        self._free = asyncio.Semaphore(count)

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[psycopg.AsyncConnection]:
        """Lend a connection, after waiting for one if need be. One of TRANSIENT passes through and costs it."""
        async with self._free:
            # The one used last: it is the likeliest to be open.
            link = self._idle.pop()
            try:
                conn = await link.connection()
                try:
                    yield conn
                finally:
                    if conn.info.transaction_status != TransactionStatus.IDLE:
                        await link.drop()
            except TRANSIENT:
                await link.drop()
                raise
            finally:
                self._idle.append(link)

    async def close(self) -> None:
        """Close the connections that nobody uses."""
        for link in self._idle:
            await link.drop()
