"""The list of what is looked at, and how.

To add a check: write a function that returns findings, beside what it is about, and a line in CHECKS. What only the
database is asked stands in postgres/diagnosis.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import IntEnum, auto

import psycopg

from outbox.core.finding import PROBLEM, WARNING, Finding
from outbox.doctor import host, subscribers
from outbox.postgres.diagnosis import capture, expands, privileges, queue, server, vacuum
from outbox.postgres.pool import TRANSIENT, Link, application_name
from outbox.settings import Settings

STATEMENT_TIMEOUT = 10
"""Seconds that a statement of a check may take."""


class Needs(IntEnum):
    """What has to be there for a check to make sense."""

    NOTHING = auto()
    DATABASE = auto()
    SCHEMA = auto()


@dataclass(frozen=True, slots=True)
class Patient:
    """What is examined."""

    settings: Settings
    conn: psycopg.AsyncConnection | None = None
    """In a transaction that only reads; None for the checks that need no database."""

    @property
    def db(self) -> psycopg.AsyncConnection:
        """The connection, of a check that needs one."""
        if self.conn is None:
            raise TypeError("this check was not said to need the database")
        return self.conn


@dataclass(frozen=True, slots=True)
class Check:
    """One check: its name in the report, what it needs, and the function that returns its findings."""

    name: str
    needs: Needs
    look: Callable[[Patient], Awaitable[list[Finding]]]


async def examine(settings: Settings) -> list[Finding]:
    """Run all checks, in their order. A check that can not be made is a warning and stops no other."""
    link = Link(settings.dsn or "", "doctor", settings=None, pooling=settings.pooling)
    found: list[Finding] = []
    present = Needs.SCHEMA
    try:
        for check in CHECKS:
            if check.needs > present:
                continue
            if check.needs is Needs.NOTHING:
                found += await check.look(Patient(settings))
                continue
            try:
                conn = await link.connection()
            except TRANSIENT as error:
                present = Needs.NOTHING
                found.append(_unreachable(error))
                continue
            found += await _look(check, Patient(settings, conn))
            if check.name == "schema" and not await _has_ledger(conn):
                present = Needs.DATABASE
            if conn.closed or conn.broken:
                await link.drop()
    finally:
        await link.drop()
    return found


async def _look(check: Check, patient: Patient) -> list[Finding]:
    try:
        # Settings of this transaction only: behind a pooler, those of a session would be the next client's too.
        await patient.db.set_read_only(True)
        async with patient.db.transaction():
            await patient.db.execute(f"set local statement_timeout = '{STATEMENT_TIMEOUT}s'".encode())
            return await check.look(patient)
    except (psycopg.Error, *TRANSIENT) as error:
        return [Finding(check.name, WARNING, f"Could not be checked: {_words(error)}", _advice(error))]


def _advice(error: Exception) -> str:
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return "Run it as a role that may read this; the other checks do not depend on it."
    if isinstance(error, psycopg.errors.QueryCanceled):
        return f"It took more than {STATEMENT_TIMEOUT} s: the database is busy. Try again."
    return "Try again; the other checks do not depend on it."


async def _has_ledger(conn: psycopg.AsyncConnection) -> bool:
    try:
        # By the catalogs: it may be there and we may not see it.
        cursor = await conn.execute(
            "select exists (select from pg_class as c join pg_namespace as s on s.oid = c.relnamespace"
            " where s.nspname = 'outbox' and c.relname = 'migrations')",
            prepare=False,
        )
        row = await cursor.fetchone()
    except (psycopg.Error, *TRANSIENT):
        return True
    return bool(row and row[0])


def _unreachable(error: Exception) -> Finding:
    return Finding(
        "database", PROBLEM, f"It cannot be reached: {_words(error)}",
        "See that OUTBOX_DSN is right, that the server runs, and that pg_hba.conf admits this host and role.",
    )  # fmt: skip


def _words(error: Exception) -> str:
    said = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    return " ".join((said or str(error) or type(error).__name__).split())


# In the order of the report: first what the others build upon.
CHECKS = (
    Check("settings", Needs.NOTHING, lambda p: host.settings_fit(p.settings)),
    Check("way out", Needs.NOTHING, lambda p: host.way_out(p.settings)),
    Check("open files", Needs.NOTHING, lambda p: host.open_files(p.settings)),
    Check("database", Needs.DATABASE, lambda p: server.database(p.db)),
    Check("schema", Needs.DATABASE, lambda p: server.schema(p.db)),
    Check("session", Needs.DATABASE, lambda p: server.session(p.db)),
    Check("connections", Needs.DATABASE, lambda p: server.connections(p.db, workers=p.settings.workers)),
    Check("durability", Needs.DATABASE, lambda p: server.durability(p.db)),
    Check("clock", Needs.DATABASE, lambda p: server.clock(p.db)),
    Check(
        "listen",
        Needs.DATABASE,
        lambda p: server.listening(
            p.settings.dsn or "", poll_interval=p.settings.poll_interval, pooling=p.settings.pooling
        ),
    ),
    Check("xmin", Needs.DATABASE, lambda p: vacuum.xmin(p.db)),
    Check("autovacuum", Needs.DATABASE, lambda p: vacuum.autovacuum(p.db)),
    Check("privileges", Needs.SCHEMA, lambda p: privileges.privileges(p.db)),
    Check("capture", Needs.SCHEMA, lambda p: capture.capture(p.db)),
    Check("sequence", Needs.SCHEMA, lambda p: capture.sequence(p.db)),
    Check("expands", Needs.SCHEMA, lambda p: expands.expands(p.db)),
    Check("partitions", Needs.SCHEMA, lambda p: queue.partitions(p.db)),
    Check("dead rows", Needs.SCHEMA, lambda p: vacuum.dead_rows(p.db)),
    Check(
        "daemons",
        Needs.SCHEMA,
        lambda p: queue.daemons(p.db, application_name=application_name(p.settings.dsn or "")),
    ),
    Check("configs", Needs.SCHEMA, lambda p: queue.configs(p.db)),
    Check("secrets", Needs.SCHEMA, lambda p: subscribers.credentials(p.settings, p.db)),
    Check("subscribers", Needs.SCHEMA, lambda p: subscribers.subscribers(p.settings, p.db)),
)
