"""Connections: opened when needed, replaced after they broke. What is done with them stands elsewhere.

Behind PgBouncer in transaction mode each transaction may meet another session. There nothing is left in a session:
no prepared statement, no setting (each statement brings its own, for its transaction), no LISTEN.
"""

import asyncio
import contextlib
import os
import select
from collections.abc import AsyncIterator, Generator, Mapping
from typing import Any, Self, TypeVar, cast

import psycopg
from psycopg import sql
from psycopg.abc import Params, PQGen
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus
from psycopg.rows import Row
from psycopg.waiting import Ready, Wait

from outbox.settings import Pooling

# The queue's tables swing between empty and full faster than statistics follow, so its connections forbid the plans
# that only empty tables deserve. Planning each time and JIT would take longer than many of our statements.
_QUEUE_SETTINGS = {
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}
_NO_SETTINGS: Mapping[str, str] = {}

_READS_AT_ONCE = 64  # about a megabyte: what else the loop has to do must not wait for a long answer

_Result = TypeVar("_Result")

# A pooler hands out pids of its own, so that a cancel request comes by it; PostgreSQL's own is that of the backend.
# Asked and set in one statement: behind a pooler the settings end with this transaction, and none of them is left in
# a session that is lent to the application next.
_MEET = sql.SQL("select pooled {settings} from (select {pooled} as pooled) as met")
_PIDS_DIFFER = sql.SQL("pg_backend_pid() <> {}")

# A host that vanished without a word is noticed, and not only when the kernel gives up after a quarter of an hour.
_PARAMETERS: dict[str, Any] = {
    "client_encoding": "utf8",
    "connect_timeout": 10,
    "keepalives_idle": 20,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}

ANSWER_SECONDS = 60.0
"""The deadline of whoever must go on. Keepalives find a host that is gone, but not one behind a proxy that is there: a
link through it can be dead for ever without an error. Longer than any statement of the queue takes on a bad day."""

TRANSIENT = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError, OSError)
"""What passes when the database is back: connection lost or refused, shutdown, deadlock, disk full, a standby."""

_GONE = ("08", "57P")
"""Of these, what says that the server does not answer, or is ending."""

_UNFIT = ("25006", "53", "58", "XX")
"""And what says that it answers, but is of no use: read-only, out of room, broken."""


def is_gone(error: Exception) -> bool:
    """Tell a server that does not answer, or is ending, from one that answered."""
    return _is_of(error, _GONE)


def is_away(error: Exception) -> bool:
    """Tell a server that can not be used from one that answered, and gave up one statement: it waited too long, say."""
    return _is_of(error, _GONE + _UNFIT)


def _is_of(error: Exception, states: tuple[str, ...]) -> bool:
    state = error.sqlstate if isinstance(error, psycopg.Error) else None
    return state is None or state.startswith(states)


class _Connection(psycopg.AsyncConnection[Any]):
    """A connection that reads what has come without asking the event loop whether it has.

    A loop with a hundred POSTs in flight takes some ms for a turn, and libpq reads some 16 KB at a time: a claim of 500
    records would be read over thirty turns, with nothing left to send meanwhile.
    """

    deadline: float | None = None
    """Seconds that the server may take for an answer."""

    async def wait(self, gen: PQGen[_Result], *options: Any, **named: Any) -> _Result:  # noqa: ANN401 - as psycopg's
        waiting = super().wait(_eager(gen, self.pgconn.socket), *options, **named)
        if self.deadline is None:
            return await waiting
        try:
            # Cancelled, psycopg has the server cancel the statement, and gives up after some seconds.
            async with asyncio.timeout(self.deadline):
                return await waiting
        except TimeoutError:
            raise psycopg.OperationalError(
                f"PostgreSQL did not answer a statement within {self.deadline:g} s."
            ) from None


def _eager(gen: PQGen[_Result], socket: int) -> Generator[Wait, Ready | int, _Result]:
    coming = select.poll()
    coming.register(socket, select.POLLIN)
    at_once = 0
    try:
        wanted = next(gen)
        while True:
            if wanted == Wait.R and at_once < _READS_AT_ONCE and coming.poll(0):
                at_once += 1
                wanted = gen.send(Ready.R)
            else:
                at_once = 0
                wanted = gen.send((yield wanted))
    except StopIteration as end:
        return cast("_Result", end.value)


class Link:
    """One autocommit connection to the database, for one task at a time.

    After one of TRANSIENT call `drop`; the next `connection` opens a new one, or raises what keeps it from that.
    `settings` hold for each of its statements; by default they are those that the queue's statements need. `deadline`:
    seconds that an answer may take; None where somebody waits for notifications, or for as long as it takes.
    """

    def __init__(
        self,
        dsn: str,
        name: str,
        *,
        settings: Mapping[str, str] | None = _QUEUE_SETTINGS,
        pooling: Pooling = Pooling.AUTO,
        deadline: float | None = None,
    ) -> None:
        self._deadline = deadline
        # What the DSN says itself stands.
        self._dsn = make_conninfo(
            "", **(_PARAMETERS | {"fallback_application_name": f"outbox {name}"} | conninfo_to_dict(dsn))
        )
        self._settings = settings or _NO_SETTINGS
        self._pooling = pooling
        self._conn: psycopg.AsyncConnection | None = None
        self.is_pooled = False
        """Whether the connection that was opened last lends another session to each transaction: LISTEN is in vain."""

    async def connection(self) -> psycopg.AsyncConnection:
        """Return the connection, opened if need be."""
        if self._conn is None or self._conn.closed:
            conn = await _Connection.connect(self._dsn, autocommit=True)
            conn.deadline = self._deadline
            try:
                self.is_pooled = await self._meet(conn)
            except BaseException:
                await conn.close()
                raise
            if self.is_pooled:
                conn.prepare_threshold = None
                if self._settings:
                    conn.cursor_factory = _cursor_with(self._settings)
            self._conn = conn
        return self._conn

    async def _meet(self, conn: psycopg.AsyncConnection) -> bool:
        """Make the settings, unless they would be left in somebody else's session; return whether they would be."""
        pooled: sql.Composable = sql.Literal(self._pooling is Pooling.TRANSACTION)
        if self._pooling is Pooling.AUTO:
            pooled = _PIDS_DIFFER.format(conn.info.backend_pid)
        settings = sql.SQL("").join(sql.SQL(", {}").format(each) for each in _set(self._settings, sql.SQL("pooled")))
        row = await (await conn.execute(_MEET.format(settings=settings, pooled=pooled))).fetchone()
        return bool(row and row[0])

    async def drop(self) -> None:
        """Close the connection, whatever its state."""
        conn, self._conn = self._conn, None
        if conn is not None:
            with contextlib.suppress(psycopg.Error, OSError):
                await conn.close()


def application_name(dsn: str) -> str | None:
    """Return what the DSN calls its connections, or None: then a daemon's have the names that it gives them."""
    name = conninfo_to_dict(dsn).get("application_name") or os.environ.get("PGAPPNAME")
    return None if name is None else str(name)


def _set(settings: Mapping[str, str], is_local: sql.Composable) -> list[sql.Composed]:
    return [sql.SQL("set_config({}, {}, {})").format(name, value, is_local) for name, value in settings.items()]


def _cursor_with(settings: Mapping[str, str]) -> type[psycopg.AsyncCursor[Any]]:
    """Return cursors that run each statement with these settings, in one transaction and one round trip.

    The tempting `set …; select …` in one string can have no parameters; `begin`, `set local` and `commit` around the
    statement would leave a transaction open when it fails. What a pipeline sends up to its end is one transaction.
    """
    make = sql.SQL("select {}").format(sql.SQL(", ").join(_set(settings, sql.SQL("true"))))

    class Cursor(psycopg.AsyncCursor[Row]):
        async def execute(self, query: Any, params: Params | None = None, **options: Any) -> Self:  # noqa: ANN401 - as psycopg's
            async with self.connection.pipeline():
                await psycopg.AsyncCursor(self.connection).execute(make)
                await super().execute(query, params, **options)
            return self

    return Cursor


@contextlib.asynccontextmanager
async def connected(
    dsn: str,
    name: str,
    *,
    settings: Mapping[str, str] | None = None,
    pooling: Pooling = Pooling.AUTO,
    deadline: float | None = None,
) -> AsyncIterator[psycopg.AsyncConnection]:
    """Open a Link's connection, and close it at the end."""
    link = Link(dsn, name, settings=settings, pooling=pooling, deadline=deadline)
    try:
        yield await link.connection()
    finally:
        await link.drop()


class Links:
    """At most `count` autocommit connections for many short questions, opened when needed."""

    def __init__(
        self,
        dsn: str,
        name: str,
        *,
        count: int,
        settings: Mapping[str, str] | None = None,
        pooling: Pooling = Pooling.AUTO,
    ) -> None:
        self._idle = [
            Link(dsn, name, settings=settings, pooling=pooling, deadline=ANSWER_SECONDS) for _ in range(count)
        ]
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
