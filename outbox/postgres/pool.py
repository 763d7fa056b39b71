"""Connections: opened when needed, replaced after they broke. What is done with them stands elsewhere."""

import contextlib
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

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
