"""Connections: opened when needed, replaced after they broke. What is done with them stands elsewhere."""

import contextlib

import psycopg

# The queue's tables swing between empty and full faster than statistics follow, so its connections forbid the plans
# that only empty tables deserve. JIT would take longer than any of our statements.
_QUEUE_SETTINGS = "set jit = off; set enable_seqscan = off; set enable_hashjoin = off; set enable_mergejoin = off"


class Link:
    """One autocommit connection to the database, for one task at a time.

    After an OperationalError call `drop`; the next `connection` opens a new one, or raises what keeps it from that.
    """

    def __init__(self, dsn: str, name: str, *, settings: str | None = _QUEUE_SETTINGS) -> None:
        self._dsn = dsn
        self._name = name
        self._settings = settings
        self._conn: psycopg.AsyncConnection | None = None

    async def connection(self) -> psycopg.AsyncConnection:
        """Return the connection, opened if need be."""
        if self._conn is None or self._conn.closed:
            conn = await psycopg.AsyncConnection.connect(
                self._dsn, autocommit=True, fallback_application_name=f"outbox {self._name}", connect_timeout=10
            )
            if self._settings:
                await conn.execute(self._settings.encode())
            self._conn = conn
        return self._conn

    async def drop(self) -> None:
        """Close the connection, whatever its state."""
        conn, self._conn = self._conn, None
        if conn is not None:
            with contextlib.suppress(psycopg.Error, OSError):
                await conn.close()
