"""The list of what `outbox doctor` looks at, and the checks of the daemon's own side: settings, secrets, hosts.

To add a check: write a function that returns findings, beside what it is about, and a line in CHECKS.
"""

import os
import resource
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import IntEnum, auto

import psycopg
from psycopg.conninfo import conninfo_to_dict

from outbox.core.finding import OK, PROBLEM, WARNING, Finding, and_more
from outbox.core.model import FailureKind
from outbox.http import hosts
from outbox.http.guard import Guard, is_numeric
from outbox.http.sender import endpoint
from outbox.postgres.diagnosis import capture, expands, privileges, queue, server, vacuum
from outbox.postgres.pool import TRANSIENT, Link
from outbox.secrets import SecretBox, SecretError
from outbox.settings import Settings

STATEMENT_TIMEOUT = 10
"""Seconds that a statement of a check may take."""

RESOLVE_WITHIN = 10.0
"""Seconds for all look-ups together."""

_HOSTS = 1000
_SHOWN = 10

OTHER_FILES = 64
"""Open files of a daemon that are no subscriber's connection: the database, the log, the loop, the API."""


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
    link = Link(settings.dsn or "", "doctor", settings=None)
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
        return [
            Finding(
                check.name, WARNING, f"Could not be checked: {_words(error)}",
                "Run it as a role that may read this; the other checks do not depend on it.",
            )
        ]  # fmt: skip


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


async def settings_fit(settings: Settings) -> list[Finding]:
    """Whether the settings fit each other and this host."""
    found = []
    if settings.concurrency > 1 and settings.max_in_flight_per_config >= settings.concurrency:
        found.append(
            Finding(
                "settings", WARNING,
                f"OUTBOX_MAX_IN_FLIGHT_PER_CONFIG ({settings.max_in_flight_per_config}) is not less than "
                f"OUTBOX_CONCURRENCY ({settings.concurrency}): one slow subscriber can take every slot.",
                "Make it a fraction of the concurrency, such as a tenth.",
            )
        )  # fmt: skip
    if settings.drain_timeout < settings.request_timeout:
        found.append(
            Finding(
                "settings", WARNING,
                f"OUTBOX_DRAIN_TIMEOUT ({settings.drain_timeout:g} s) is less than OUTBOX_REQUEST_TIMEOUT "
                f"({settings.request_timeout:g} s): the end of a daemon cuts off POSTs, which are sent twice then.",
                "Make it longer, and the time that your supervisor waits before it kills longer still.",
            )
        )  # fmt: skip
    processors = os.cpu_count() or 1
    if settings.workers > processors:
        found.append(
            Finding(
                "settings", WARNING,
                f"OUTBOX_WORKERS ({settings.workers}) is more than this host's {processors} processors.",
                "One for each processor is the most that helps.",
            )
        )  # fmt: skip
    return found or [Finding("settings", OK, "They fit each other.")]


async def open_files(settings: Settings, *, limit: int | None = None) -> list[Finding]:
    """Whether a process may open as many files as it has connections. `limit`: this process's by default."""
    if limit is None:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    # As many in flight as there are slots, and as many that are kept for the next POST.
    least, enough = settings.concurrency + OTHER_FILES, 2 * settings.concurrency + OTHER_FILES
    if limit == resource.RLIM_INFINITY or limit >= enough:
        return [Finding("open files", OK, f"Enough for OUTBOX_CONCURRENCY ({settings.concurrency}).")]
    return [
        Finding(
            "open files", PROBLEM if limit < least else WARNING,
            f"A process may open {limit} files here; OUTBOX_CONCURRENCY ({settings.concurrency}) may need {enough}. "
            "Too few look like subscribers that cannot be connected to.",
            f"Where the daemon is started: ulimit -n {enough}, or LimitNOFILE={enough} in its systemd unit.",
        )
    ]  # fmt: skip


async def credentials(settings: Settings, conn: psycopg.AsyncConnection) -> list[Finding]:
    """Whether OUTBOX_SECRET_KEY reads all that configs keep secret."""
    box = SecretBox(settings.secret_key)
    configs = await queue.sealed(conn)
    unreadable = [str(config_id) for config_id, tokens in configs if not _opens(box, tokens)]
    if unreadable:
        count = f"{len(unreadable)} of {len(configs)} configs with secrets"
        fault = "no key of OUTBOX_SECRET_KEY reads" if settings.secret_key else "OUTBOX_SECRET_KEY is not set to read"
        return [
            Finding(
                "secrets", PROBLEM, f"{count}: {fault} what they keep, so nothing is sent: {and_more(unreadable)}.",
                "Set the key that they were stored with (older keys after the newest, by commas), or store them anew: "
                "outbox config edit ID --basic-auth-username; outbox config secret ID --remove, then --make.",
            )
        ]  # fmt: skip
    if configs:
        return [Finding("secrets", OK, f"OUTBOX_SECRET_KEY reads what configs keep secret: {len(configs)}.")]
    return [Finding("secrets", OK, "No config keeps secrets.")]


def _opens(box: SecretBox, tokens: list[str]) -> bool:
    try:
        for token in tokens:
            box.open(token)
    except SecretError:
        return False
    return True


async def subscribers(
    settings: Settings, conn: psycopg.AsyncConnection, *, within: float = RESOLVE_WITHIN
) -> list[Finding]:
    """Whether the hosts of the active configs have addresses that may be posted to. Nothing is sent."""
    guard = Guard.of(settings)
    configs: dict[str, list[str]] = {}
    refused: dict[str, list[str]] = {}
    found: list[Finding] = []
    no_host: list[str] = []
    for config_id, url in await queue.urls(conn):
        target = endpoint(url)
        if target is None:
            no_host.append(str(config_id))
        elif (refusal := guard.refusal(target)) and not (
            # A forbidden address is told below, once for its host.
            is_numeric(target.host) and guard.address_refusal(target.host)
        ):
            refused.setdefault(refusal, []).append(str(config_id))
        else:
            configs.setdefault(target.host, []).append(str(config_id))
    if no_host:
        found.append(
            Finding(
                "subscribers", WARNING, f"Nothing can be sent to the URL of {and_more(no_host)}.",
                "outbox config edit ID --url",
            )
        )  # fmt: skip
    found += [
        Finding(
            "subscribers", WARNING, f"Nothing is sent for {and_more(ids)}: {refusal}.",
            "Change the URL, or the daemon's OUTBOX_ALLOW_PORTS or OUTBOX_REQUIRE_HTTPS.",
        )
        for refusal, ids in refused.items()
    ]  # fmt: skip
    asked = sorted(configs, key=lambda host: -len(configs[host]))[:_HOSTS]
    failures = await hosts.unreachable(asked, guard, within=within)
    for host, failure in list(failures.items())[:_SHOWN]:
        found.append(
            Finding(
                "subscribers", WARNING, f"{host}: {failure.message} ({and_more(configs[host])}).",
                "If it is meant, name its network in the daemon's OUTBOX_ALLOW_NETWORKS; else remove the config."
                if failure.kind is FailureKind.FORBIDDEN
                else "Each try fails while it is so. If the host is gone, pause or remove the config.",
            )
        )  # fmt: skip
    if len(failures) > _SHOWN:
        found.append(Finding("subscribers", WARNING, f"And {len(failures) - _SHOWN} more hosts.", "outbox status"))
    if len(configs) > len(asked):
        found.append(Finding("subscribers", OK, f"{len(asked)} of {len(configs)} hosts were looked up."))
    if not found and not asked:
        return [Finding("subscribers", OK, "No config is active.")]
    return found or [Finding("subscribers", OK, f"Hosts: {len(asked)}, each with an address that may be posted to.")]


def application_name(dsn: str) -> str | None:
    """Return what the DSN calls its connections, or None: then a daemon's have the names that it gives them."""
    name = conninfo_to_dict(dsn).get("application_name") or os.environ.get("PGAPPNAME")
    return None if name is None else str(name)


# In the order of the report: first what the others build upon.
CHECKS = (
    Check("settings", Needs.NOTHING, lambda p: settings_fit(p.settings)),
    Check("open files", Needs.NOTHING, lambda p: open_files(p.settings)),
    Check("database", Needs.DATABASE, lambda p: server.database(p.db)),
    Check("schema", Needs.DATABASE, lambda p: server.schema(p.db)),
    Check("session", Needs.DATABASE, lambda p: server.session(p.db)),
    Check("connections", Needs.DATABASE, lambda p: server.connections(p.db, workers=p.settings.workers)),
    Check("durability", Needs.DATABASE, lambda p: server.durability(p.db)),
    Check("clock", Needs.DATABASE, lambda p: server.clock(p.db)),
    Check(
        "listen",
        Needs.DATABASE,
        lambda p: server.listening(p.settings.dsn or "", poll_interval=p.settings.poll_interval),
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
    Check("secrets", Needs.SCHEMA, lambda p: credentials(p.settings, p.db)),
    Check("subscribers", Needs.SCHEMA, lambda p: subscribers(p.settings, p.db)),
)
