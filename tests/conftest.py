"""The servers and databases that tests run on."""

import asyncio
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from outbox.demo.embedded import EmbeddedPostgres, embedded_binaries
from outbox.postgres.migrations import migrate


@pytest.fixture(scope="session", params=embedded_binaries(), ids=lambda binaries: f"pg{binaries.version}")
def server(request: pytest.FixtureRequest) -> Iterator[EmbeddedPostgres]:
    """A throw-away server of each version that the embedded binaries have."""
    with EmbeddedPostgres(request.param, fsync=False) as started:
        yield started


@pytest.fixture
def empty_db(server: EmbeddedPostgres) -> Iterator[str]:
    """The DSN of a new database without our schema."""
    with psycopg.connect(server.dsn, autocommit=True) as admin:
        admin.execute("drop database if exists trial with (force)")
        admin.execute("create database trial")
        yield psycopg.conninfo.make_conninfo(server.dsn, dbname="trial")
        admin.execute(sql.SQL("drop database trial with (force)"))


@pytest.fixture
def db(empty_db: str) -> str:
    """The DSN of a new database with our schema."""
    asyncio.run(migrate(empty_db))
    return empty_db


@pytest.fixture
def conn(db: str) -> Iterator[psycopg.Connection]:
    """An autocommit connection to a new database with our schema."""
    with psycopg.connect(db, autocommit=True) as opened:
        yield opened
