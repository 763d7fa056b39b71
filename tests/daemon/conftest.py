"""What nearly all tests of the daemon begin with."""

import psycopg
import pytest

from tests.daemons import attach_contacts


@pytest.fixture
def contacts(conn: psycopg.Connection) -> psycopg.Connection:
    """A connection to a database whose contacts are attached."""
    attach_contacts(conn)
    return conn
