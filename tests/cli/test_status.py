"""`outbox status` tells people and programs the same numbers."""

import json

import psycopg
import pytest

from outbox.core.model import Dead, Delivered
from tests.tried import add_config, attach_contacts, outbox, route, try_all


@pytest.fixture(autouse=True)
def _contacts(conn: psycopg.Connection) -> None:
    attach_contacts(conn)


async def test_json_has_the_numbers_and_each_config(
    db: str, conn: psycopg.Connection, dconn: psycopg.AsyncConnection
) -> None:
    """Counts are whole numbers, the age is in seconds, and each config has its last success and failure."""
    config = add_config(conn)
    conn.execute("insert into contacts values (1, 'L', 'x')")
    await try_all(dconn, Delivered())
    conn.execute("insert into contacts values (2, 'L', 'x')")
    await try_all(dconn, Dead("status 500"))
    conn.execute("insert into contacts values (3, 'L', 'x')")
    await route(dconn)
    conn.execute("update outbox.deliveries set due_at = now() - interval '1 hour' where state = 'pending'")
    conn.execute("insert into contacts values (4, 'L', 'x')")
    done = outbox(db, "status", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    status = json.loads(done.stdout)
    assert {name: status[name] for name in ("unrouted", "pending", "due", "held", "dead")} == {
        "unrouted": 1, "pending": 1, "due": 1, "held": 0, "dead": 1,
    }  # fmt: skip
    assert status["schema_version"] >= 3
    assert status["oldest_due_s"] >= 3600
    [health] = status["configs"]
    assert (health["id"], health["last_failure"]) == (str(config), "status 500")
    assert health["last_success_at"] < health["last_failure_at"]
    assert "secret" not in done.stdout


def test_an_empty_outbox_is_all_zeros(db: str) -> None:
    """Nothing due is an age of 0, so that a program can compare it without asking first."""
    status = json.loads(outbox(db, "status", "--json").stdout)
    assert status.pop("schema_version") >= 3
    assert status.pop("configs") == []
    assert set(status.values()) == {0}


async def test_people_see_a_line_for_each_config(
    db: str, conn: psycopg.Connection, dconn: psycopg.AsyncConnection
) -> None:
    """Columns are aligned, and what others wrote can not command the terminal."""
    add_config(conn)
    conn.execute("insert into contacts values (1, 'L', 'x')")
    await try_all(dconn, Dead("bad \x1b[2J\nanswer"))
    done = outbox(db, "status")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    header, line = done.stdout.splitlines()[-2:]
    assert line.index("http://127.0.0.1:9/hook") == header.index("URL")
    assert r"bad \x1b[2J\nanswer" in line


@pytest.mark.parametrize(
    "command",
    [
        ["status"],
        ["deliveries"],
        ["replay", "--state", "dead"],
        ["attach", "contacts", "--resource", "contact"],
        ["detach", "contacts"],
    ],
)
def test_a_database_without_the_schema_is_told_as_such(empty_db: str, command: list[str]) -> None:
    """The one message says what to do."""
    with psycopg.connect(empty_db) as conn:
        conn.execute("create table contacts (id int primary key)")
    done = outbox(empty_db, *command)
    assert done.returncode == 1
    assert done.stderr == "Error: The database has no outbox schema. Run: outbox migrate\n"


def test_a_database_that_can_not_be_reached_is_one_message(db: str) -> None:
    """No traceback."""
    del db
    done = outbox("postgresql://127.0.0.1:1/nowhere", "status")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: Postgres: ")
    assert "Traceback" not in done.stderr
