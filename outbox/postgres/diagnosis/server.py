"""The server as the daemon meets it: version, schema, session, connections, durability, clock and LISTEN."""

import contextlib
import secrets
import time
from collections.abc import Callable

from psycopg import AsyncConnection

from outbox.core.finding import OK, PROBLEM, WARNING, Finding, Level, duration
from outbox.postgres import migrations
from outbox.postgres.diagnosis.rows import rows
from outbox.postgres.pool import Link
from outbox.settings import Pooling

OLDEST_VERSION = 15

CONNECTIONS = 6
"""That one process of the daemon keeps: fetch, claim, settle, listen, the figures of /metrics where it listens, and
housekeeping now and then. The API's come on top."""

LEAST_STATEMENT_TIMEOUT = 10.0
"""Seconds that a statement of the daemon may take on a busy server."""

CLOCK_WARNING = 1.0
CLOCK_PROBLEM = 300.0
"""Seconds. Subscribers refuse a webhook-timestamp that is 5 minutes off."""

_SERVER = """
select current_setting('server_version_num')::int as number, current_setting('server_version') as version,
    current_setting('server_encoding') as encoding, pg_is_in_recovery() as is_standby, current_database() as name,
    current_user as role
"""


async def database(conn: AsyncConnection) -> list[Finding]:
    """Which server it is, and whether the daemon can work with it at all."""
    [found] = await rows(conn, _SERVER)
    problems = []
    if (fault := too_old(found["number"], found["version"])) is not None:
        problems.append(fault)
    if found["encoding"] != "UTF8":
        problems.append(
            Finding(
                "database", PROBLEM, f"Its encoding is {found['encoding']}; records are sent in UTF8.",
                "Make a database with encoding UTF8.",
            )
        )  # fmt: skip
    if found["is_standby"]:
        problems.append(
            Finding(
                "database", PROBLEM, "It is a standby: nothing can be written.",
                "Name the primary in OUTBOX_DSN, or add target_session_attrs=read-write and all hosts.",
            )
        )  # fmt: skip
    where = f"PostgreSQL {found['version'].split()[0]}, database {found['name']}, as {found['role']}."
    return problems or [Finding("database", OK, where)]


def too_old(number: int, version: str) -> Finding | None:
    """Return the problem of a server whose version is older than what is supported; `number` as 150004."""
    if number // 10_000 >= OLDEST_VERSION:
        return None
    return Finding(
        "database", PROBLEM, f"PostgreSQL {version} is older than {OLDEST_VERSION}, the oldest that is supported.",
        f"Upgrade the server to {OLDEST_VERSION} or newer.",
    )  # fmt: skip


async def schema(conn: AsyncConnection) -> list[Finding]:
    """Whether the ledger is the one that this program knows."""
    ledger = await migrations.applied(conn)
    if not ledger:
        return [Finding("schema", PROBLEM, "The database has no outbox schema.", "outbox migrate")]
    problems = migrations.differences(ledger, migrations.known_migrations())
    if problems:
        split = [text.partition(". ") for text in problems]
        return [
            Finding("schema", PROBLEM, text if text.endswith(".") else f"{text}.", advice or None)
            for text, _, advice in split
        ]
    return [Finding("schema", OK, f"Version {max(ledger)}, as this program knows it.")]


# What a session begins with: a role, a database and a DSN can all change it. Not current_setting(): the connection
# that asks has transaction settings of its own.
_SESSION = """
select s.name, s.reset_val from pg_settings as s
where s.name in ('default_transaction_read_only', 'default_transaction_isolation', 'statement_timeout')
"""


async def session(conn: AsyncConnection) -> list[Finding]:
    """Whether the settings that the daemon's sessions begin with let it work."""
    values = {row["name"]: row["reset_val"] for row in await rows(conn, _SESSION)}
    found = []
    if values["default_transaction_read_only"] == "on":
        found.append(
            Finding(
                "session", PROBLEM, "Its sessions are read-only (default_transaction_read_only).",
                "Take it back where it was set: ALTER ROLE, ALTER DATABASE, postgresql.conf or OUTBOX_DSN.",
            )
        )  # fmt: skip
    if values["default_transaction_isolation"] != "read committed":
        found.append(
            Finding(
                "session", WARNING,
                f"Its transactions are {values['default_transaction_isolation']}: daemons fail each other.",
                "alter role … set default_transaction_isolation = 'read committed'",
            )
        )  # fmt: skip
    timeout = int(values["statement_timeout"]) / 1000
    if 0 < timeout < LEAST_STATEMENT_TIMEOUT:
        found.append(
            Finding(
                "session", WARNING, f"statement_timeout is {timeout:g} s: on a busy day the daemon's statements fail.",
                f"alter role … set statement_timeout = '{LEAST_STATEMENT_TIMEOUT:.0f}s' or more",
            )
        )  # fmt: skip
    return found or [Finding("session", OK, "The daemon's sessions may write, read committed, with time enough.")]


# Whoever lacks pg_read_all_stats does not see the kind of other roles' sessions: a user and a database are what
# counts against the limits.
_CONNECTIONS = """
with used as materialized (
    select a.usesysid, a.datid from pg_stat_activity as a where a.usesysid is not null and a.datid is not null
)
select current_setting('max_connections')::int as most,
    current_setting('superuser_reserved_connections')::int
        + coalesce(current_setting('reserved_connections', true), '0')::int as reserved,
    (select count(*) from used)::int as used,
    r.rolname as role, r.rolsuper as is_superuser, r.rolconnlimit as most_of_role,
    (select count(*) from used as u where u.usesysid = r.oid)::int as used_by_role,
    d.datname as name, d.datconnlimit as most_of_database,
    (select count(*) from used as u where u.datid = d.oid)::int as used_in_database
from pg_roles as r
join pg_database as d on d.datname = current_database()
where r.rolname = session_user
"""


async def connections(conn: AsyncConnection, *, workers: int) -> list[Finding]:
    """Whether there is room for the daemon's connections. `workers`: processes that it is to have."""
    [found] = await rows(conn, _CONNECTIONS)
    limits = [("max_connections", found["most"] - found["reserved"], found["used"])]
    if not found["is_superuser"]:
        if found["most_of_role"] >= 0:
            limits.append((f"CONNECTION LIMIT of role {found['role']}", found["most_of_role"], found["used_by_role"]))
        if found["most_of_database"] >= 0:
            limits.append(
                (f"CONNECTION LIMIT of database {found['name']}", found["most_of_database"], found["used_in_database"])
            )
    name, most, used = min(limits, key=lambda limit: limit[1] - limit[2])
    free = max(0, most - used)
    said = f"{used} of {most} connections are in use ({name})"
    needed = CONNECTIONS * workers
    if free < CONNECTIONS:
        level: Level = PROBLEM
        said += f": a daemon needs {CONNECTIONS} for each process."
    elif free < max(needed, most // 10):
        level = WARNING
        said += f": little room for {workers} process(es) of the daemon, {CONNECTIONS} each."
    else:
        return [Finding("connections", OK, f"{said}; a daemon needs {needed}.")]
    return [Finding("connections", level, said, "Raise the limit, or let the application hold fewer connections.")]


_DURABILITY = """
select current_setting('fsync') as fsync, current_setting('full_page_writes') as full_page_writes,
    current_setting('synchronous_commit') as synchronous_commit,
    array(
        select c.relname::text from pg_class as c
        join pg_namespace as s on s.oid = c.relnamespace and s.nspname = 'outbox'
        where c.relkind in ('r', 'p') and c.relpersistence = 'u' order by c.relname
    ) as unlogged
"""
_UNSAFE = {
    "fsync": "a crash of the machine can destroy the whole database",
    "full_page_writes": "a crash of the machine can destroy pages of tables",
    "synchronous_commit": "a crash of the server forgets the last outcomes, and those deliveries are sent twice",
}


async def durability(conn: AsyncConnection) -> list[Finding]:
    """Whether what was committed survives a crash."""
    [values] = await rows(conn, _DURABILITY)
    found = [
        Finding("durability", WARNING, f"{name} is off: {harm}.", f"In production: {name} = on")
        for name, harm in _UNSAFE.items()
        if values[name] == "off"
    ]
    found += [
        Finding(
            "durability", PROBLEM, f"outbox.{name} is unlogged: a crash of the server empties it.",
            f"alter table outbox.{name} set logged;",
        )
        for name in values["unlogged"]
    ]  # fmt: skip
    return found or [Finding("durability", OK, "What was committed survives a crash.")]


async def clock(conn: AsyncConnection, *, now: Callable[[], float] = time.time) -> list[Finding]:
    """How far this host's clock and the database's are apart. `now`: this host's, in epoch seconds."""
    before = now()
    [row] = await rows(conn, "select extract(epoch from clock_timestamp())::float8 as at")
    after = now()
    apart = row["at"] - (before + after) / 2
    # The answer's way is not known: what may be the way is no difference.
    certain = max(0.0, abs(apart) - (after - before) / 2)
    said = f"The database's clock is {duration(abs(apart))} {'ahead of' if apart > 0 else 'behind'} this host's"
    if certain <= CLOCK_WARNING:
        return [Finding("clock", OK, f"The database's clock and this host's are {abs(apart) * 1000:.0f} ms apart.")]
    return [
        Finding(
            "clock", PROBLEM if certain >= CLOCK_PROBLEM else WARNING,
            f"{said}: webhook-timestamp follows the database's, and subscribers refuse one that is 5 minutes off.",
            "Let NTP set both clocks (timedatectl status).",
        )
    ]  # fmt: skip


_CHANNEL = "outbox_doctor"


async def listening(
    dsn: str, *, poll_interval: float, pooling: Pooling = Pooling.AUTO, wait: float = 2.0
) -> list[Finding]:
    """Whether a notification really arrives on a connection like the daemon's. Raises as Link does.

    LISTEN through a pooler in transaction mode succeeds and delivers nothing, so only a notification that arrives
    proves it. Where the daemon knows of the pooler it does not listen, and neither does this: the LISTEN would be left
    in a session that is lent to others.
    """
    listener, notifier = (Link(dsn, "doctor", settings=None, pooling=pooling) for _ in range(2))
    token = secrets.token_hex(8)
    polling = f"polling carries on every OUTBOX_POLL_INTERVAL, {poll_interval:g} s"
    try:
        ears = await listener.connection()
        if listener.is_pooled:
            return [
                Finding(
                    "listen", WARNING,
                    f"A pooler lends sessions by transaction (OUTBOX_POOLING): the daemon does not listen, {polling}.",
                    "Name the server itself in the daemon's OUTBOX_DSN; of a pool in session mode say so, with "
                    "OUTBOX_POOLING=session.",
                )
            ]  # fmt: skip
        await ears.execute(f"listen {_CHANNEL}".encode())
        await (await notifier.connection()).execute("select pg_notify(%s, %s)", [_CHANNEL, token], prepare=False)
        async with contextlib.aclosing(ears.notifies(timeout=wait)) as heard:
            async for notification in heard:
                if notification.payload == token:
                    return [Finding("listen", OK, "Notifications arrive."), *await _queue(await notifier.connection())]
        return [
            Finding(
                "listen", WARNING,
                f"Notifications do not arrive (PgBouncer in transaction mode drops them): {polling}.",
                "Name the server itself in the daemon's OUTBOX_DSN, or set OUTBOX_POOLING=transaction: settings and "
                "prepared statements are left in sessions, which such a pooler gives to others.",
            )
        ]  # fmt: skip
    finally:
        await listener.drop()
        await notifier.drop()


NOTIFY_QUEUE_WARNING = 0.1


async def _queue(conn: AsyncConnection) -> list[Finding]:
    [row] = await rows(conn, "select pg_notification_queue_usage() as share")
    if row["share"] < NOTIFY_QUEUE_WARNING:
        return []
    return [
        Finding(
            "listen", WARNING,
            f"The queue of notifications is {row['share']:.0%} full: once it is full, NOTIFY fails for everybody.",
            "End the session that listens and stays in a transaction (see xmin).",
        )
    ]  # fmt: skip
