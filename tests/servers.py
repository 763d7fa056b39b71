"""Where the tests' PostgreSQL comes from, and how a database is made and emptied. The fixtures are in conftest.py.

OUTBOX_TEST_DSN names a server to use; OUTBOX_TEST_PG (18, 16, …) chooses the version of one that is started here.
"""

import gc
import os
import secrets
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from outbox.demo.embedded import Binaries, EmbeddedPostgres, EmbeddedPostgresError, embedded_binaries

StartServer = Callable[..., EmbeddedPostgres]  # what own_server gives; it takes the class's own arguments

_SYSTEM_PROGRAMS = ("usr/lib/postgresql/*/bin", "usr/pgsql-*/bin", "opt/homebrew/opt/postgresql@*/bin")
_SETTINGS = {"max_connections": "200", "autovacuum_max_workers": "10"}
"""Of the run's server: what one test has open, or has made worth a vacuum, must not be seen by another's doctor."""

_DEFAULT_IMAGE_VERSION = "18"

# One round trip, some milliseconds. Whatever has a page on disk is truncated, partitions one by one, so the cost
# follows what the test wrote; a TRUNCATE of all partitions would cost more than most tests.
_EMPTY = """
    set lock_timeout = '2s';
    do $$
    declare
        doomed record;
        written text;
    begin
        for doomed in
            select nspname from pg_namespace
            where nspname !~ '^pg_' and nspname not in ('information_schema', 'outbox')
        loop
            execute format('drop schema %I cascade', doomed.nspname);
        end loop;
        create schema public authorization pg_database_owner;
        grant usage on schema public to public;
        for doomed in
            select oid::regprocedure as name from pg_proc
            where pronamespace = 'outbox'::regnamespace and (
                (proname like 'capture\\_%' and prorettype = 'trigger'::regtype) or proname ~ '^expand_[0-9a-f]{32}$'
            )
        loop
            execute format('drop function %s cascade', doomed.name);
        end loop;
        select string_agg(format('%I.%I', 'outbox', relname), ', ') into written from pg_class
        where relnamespace = 'outbox'::regnamespace and relkind = 'r' and relname <> 'migrations'
            and pg_relation_size(oid) > 0;
        if written is not null then
            execute 'truncate ' || written || ' cascade';
        end if;
        if to_regclass('outbox.doorbell') is not null then
            perform setval('outbox.doorbell', 1);
        end if;
    end
    $$
"""


class RunServer:
    """The one server of a test run. It starts when it is first asked for and ends with `close`."""

    def __init__(self) -> None:
        self._ends = ExitStack()
        self._dsn = ""
        self.origin = ""

    def dsn(self) -> str:
        """Return the superuser's DSN; EmbeddedPostgresError where no PostgreSQL can be had."""
        if not self._dsn:
            self._dsn, self.origin = self._from_environment() or self._from_docker() or self._from_binaries()
        return self._dsn

    def close(self) -> None:
        """End what was started."""
        self._ends.close()

    def _from_environment(self) -> tuple[str, str] | None:
        dsn = os.environ.get("OUTBOX_TEST_DSN")
        return (dsn, "OUTBOX_TEST_DSN") if dsn else None

    def _from_docker(self) -> tuple[str, str] | None:
        if not _docker_answers():
            return None
        image = f"postgres:{os.environ.get('OUTBOX_TEST_PG', _DEFAULT_IMAGE_VERSION)}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # third parties' deprecations, and sockets that they forget to close
            try:
                from docker.errors import DockerException  # noqa: PLC0415 - slow, and only needed with Docker
                from testcontainers.community.postgres import PostgresContainer  # noqa: PLC0415
            except ImportError:
                return None
            container = None
            try:
                container = PostgresContainer(image, username="postgres", password="postgres", dbname="postgres")
                unsafe = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
                settings = " ".join(f"-c {name}={value}" for name, value in (unsafe | _SETTINGS).items())
                container.with_command(f"postgres {settings}")
                container.start()
                dsn = str(container.get_connection_url(driver=None))
            except (DockerException, OSError, RuntimeError, TimeoutError) as problem:
                sys.stderr.write(f"Docker answers but has no {image} for us ({problem}): taking installed binaries\n")
                if container is not None:
                    container.stop()
                gc.collect()
                return None
        self._ends.callback(container.stop)
        return dsn, f"{image} in Docker"

    def _from_binaries(self) -> tuple[str, str]:
        binaries = chosen_binaries()
        server = self._ends.enter_context(EmbeddedPostgres(binaries, fsync=False, settings=_SETTINGS))
        return server.dsn, f"{binaries.version} from {binaries.bin_dir}"


def installed_binaries() -> list[Binaries]:
    """Return one installation of each major version, newest first: the demo extra's rather than the system's."""
    system = []
    for pattern in _SYSTEM_PROGRAMS:
        for program in Path("/").glob(f"{pattern}/postgres"):
            try:
                system.append(Binaries.at(program.parent))
            except EmbeddedPostgresError:
                continue  # a package that was removed by half
    by_version = {binaries.version: binaries for binaries in [*system, *embedded_binaries()]}
    return [by_version[version] for version in sorted(by_version, reverse=True)]


def chosen_binaries() -> Binaries:
    """Return OUTBOX_TEST_PG's installation, else the newest of the demo extra, else the newest of all."""
    installed = installed_binaries()
    wanted = os.environ.get("OUTBOX_TEST_PG")
    if wanted:
        found = next((each for each in installed if str(each.version) == wanted), None)
        if found is None:
            had = ", ".join(str(each.version) for each in installed) or "none"
            raise EmbeddedPostgresError(f"OUTBOX_TEST_PG={wanted}: no such PostgreSQL is installed (there is: {had})")
        return found
    candidates = [*embedded_binaries(), *installed]
    if not candidates:
        raise EmbeddedPostgresError(
            "the tests need a PostgreSQL: run  pip install '.[demo]' , start Docker, or set OUTBOX_TEST_DSN"
        )
    return candidates[0]


@contextmanager
def fresh_database(server_dsn: str) -> Iterator[str]:
    """Create an empty database on the server, give its DSN, and drop it, whoever is still connected."""
    name = f"outbox_test_{secrets.token_hex(6)}"
    with psycopg.connect(server_dsn, autocommit=True) as admin:
        # Not template1, which may have been added to on a server that is not ours.
        admin.execute(sql.SQL("create database {} template template0 encoding 'UTF8'").format(sql.Identifier(name)))
    try:
        yield make_conninfo(server_dsn, dbname=name)
    finally:
        with psycopg.connect(server_dsn, autocommit=True) as admin:
            admin.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))


class Emptier:
    """Empties one migrated database before each test, over a connection that it keeps."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._conn = self._connect()

    def empty(self) -> None:
        """Leave nothing that a test wrote, attached or created; only the schema as it was migrated."""
        try:
            self._conn.execute(_EMPTY)
        except psycopg.errors.LockNotAvailable:
            # A test that failed left a transaction open. Its report tells of the fault; the next test needs room.
            self._conn.execute(
                "select pg_terminate_backend(pid, 5000) from pg_stat_activity "
                "where datname = current_database() and pid <> pg_backend_pid()"
            )
            self._conn.execute(_EMPTY)
        except psycopg.OperationalError:
            # A test terminated every connection, this one too.
            self.close()
            self._conn = self._connect()
            self._conn.execute(_EMPTY)

    def close(self) -> None:
        """Close the connection."""
        self._conn.close()

    def _connect(self) -> psycopg.Connection:
        return psycopg.connect(
            self._dsn, autocommit=True, application_name="outbox tests", options="-c client_min_messages=warning"
        )


def _docker_answers() -> bool:
    """Look for a daemon behind Docker's socket before its slow library is imported."""
    host = os.environ.get("DOCKER_HOST", "")
    if host and not host.startswith("unix://"):
        return True
    home = Path.home() / ".docker" / "run" / "docker.sock"
    for path in [host.removeprefix("unix://")] if host else ["/var/run/docker.sock", str(home)]:
        with socket.socket(socket.AF_UNIX) as trial:
            trial.settimeout(1)
            try:
                trial.connect(path)
            except OSError:
                continue
            return True
    return False


@contextmanager
def role(conn: psycopg.Connection, dsn: str, options: str = "") -> Iterator[tuple[str, str]]:
    """Make a role that may log in and nothing else; give its name, which needs quotes, and its DSN.

    Roles belong to the server and not to a database: no other test, or run, has one of this name.
    """
    name = f"outbox guest {secrets.token_hex(6)}"
    created = sql.SQL("create role {} login password 'guest' " + options)
    conn.execute(created.format(sql.Identifier(name)))
    try:
        yield name, make_conninfo(dsn, user=name, password="guest")
    finally:
        conn.execute(sql.SQL("drop owned by {} cascade").format(sql.Identifier(name)))
        conn.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))
