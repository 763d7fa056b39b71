"""The examination as a whole."""

import psycopg
import pytest

from outbox.core.finding import OK, PROBLEM, WARNING, Finding
from outbox.doctor import examination
from outbox.settings import Pooling, Settings
from tests.findings import only


async def test_all_checks_can_be_made_on_every_version(every_db: str) -> None:
    """Each says something, in the order of the list, and nothing is wrong with a new installation but its emptiness."""
    found = await examination.examine(Settings(dsn=every_db))
    assert list(dict.fromkeys(each.check for each in found)) == [check.name for check in examination.CHECKS]
    assert [each for each in found if "Could not be checked" in each.message] == []
    assert [each.check for each in found if each.level is PROBLEM] == []
    assert {each.check for each in found if each.level is WARNING} <= {"capture", "daemons", "durability"}


async def test_a_check_can_not_change_anything(
    db: str, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is made in a transaction that only reads; one that writes is told as one that could not be made."""
    conn.execute("create table contacts (id int)")

    async def writes(patient: examination.Patient) -> list[Finding]:
        await patient.db.execute("insert into contacts values (1)")
        return []

    monkeypatch.setattr(examination, "CHECKS", (examination.Check("writes", examination.Needs.DATABASE, writes),))
    found = only(await examination.examine(Settings(dsn=db)))
    assert (found.check, found.level, "read-only transaction" in found.message) == ("writes", WARNING, True)
    assert conn.execute("select count(*) from contacts").fetchone() == (0,)


@pytest.mark.parametrize(("pooling", "prepared"), [(Pooling.SESSION, 1), (Pooling.TRANSACTION, 0)])
async def test_its_session_is_whose_the_setting_says(
    db: str, monkeypatch: pytest.MonkeyPatch, pooling: Pooling, prepared: int
) -> None:
    """As the daemon's: no prepared statement is left in a session that a pooler lends to others, noticed or not."""

    async def asks(patient: examination.Patient) -> list[Finding]:
        row = None
        for _ in range(10):
            cursor = await patient.db.execute("select count(*) from pg_prepared_statements where statement ~ %s", ["~"])
            row = await cursor.fetchone()
        return [Finding("x", OK, str(row and row[0]))]

    monkeypatch.setattr(examination, "CHECKS", (examination.Check("x", examination.Needs.DATABASE, asks),))
    assert only(await examination.examine(Settings(dsn=db, pooling=pooling))).message == str(prepared)


async def test_a_check_that_fails_stops_no_other(db: str, conn: psycopg.Connection) -> None:
    """It becomes a warning with the database's words, and all others are made."""
    conn.execute("alter table outbox.postback_configs rename to other")
    try:
        found = await examination.examine(Settings(dsn=db))
    finally:
        conn.execute("alter table outbox.other rename to postback_configs")
    failed = {each.check for each in found if each.message.startswith("Could not be checked: relation")}
    assert failed == {"expands", "daemons", "configs", "secrets", "subscribers"}
    assert list(dict.fromkeys(each.check for each in found)) == [check.name for check in examination.CHECKS]


async def test_a_connection_that_is_lost_costs_one_check(db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one is made on a new connection."""

    async def dies(patient: examination.Patient) -> list[Finding]:
        await patient.db.execute("select pg_terminate_backend(pg_backend_pid())")
        return []

    lost = examination.Check("lost", examination.Needs.DATABASE, dies)
    monkeypatch.setattr(examination, "CHECKS", (lost, *examination.CHECKS))
    found = await examination.examine(Settings(dsn=db))
    assert [each.check for each in found if "Could not be checked" in each.message] == ["lost"]
    assert list(dict.fromkeys(each.check for each in found)) == [check.name for check in examination.CHECKS]


@pytest.mark.parametrize(
    ("statement", "advice"),
    [("select pg_sleep(5)", "busy"), ("select * from pg_authid", "role")],
    ids=["slow", "denied"],
)
async def test_what_could_not_be_checked_says_why(
    db: str, monkeypatch: pytest.MonkeyPatch, statement: str, advice: str
) -> None:
    """A role that may not is not what is wrong where the database is slow."""

    async def asks(patient: examination.Patient) -> list[Finding]:
        await patient.db.execute("set local role pg_monitor")
        await patient.db.execute(statement.encode())
        return []

    monkeypatch.setattr(examination, "STATEMENT_TIMEOUT", 1)
    monkeypatch.setattr(examination, "CHECKS", (examination.Check("x", examination.Needs.DATABASE, asks),))
    [found] = await examination.examine(Settings(dsn=db))
    assert found.advice is not None
    assert advice in found.advice


async def test_without_a_database_the_other_checks_are_made() -> None:
    """That it can not be reached is told once."""
    found = await examination.examine(Settings(dsn="postgresql://127.0.0.1:1/nowhere"))
    assert [(each.check, each.level) for each in found] == [
        ("settings", OK), ("way out", OK), ("open files", OK), ("database", PROBLEM),
    ]  # fmt: skip
    assert "cannot be reached" in found[-1].message


async def test_without_the_schema_what_needs_it_is_not_asked(empty_db: str) -> None:
    """One problem, with the command that mends it, and not a dozen."""
    found = await examination.examine(Settings(dsn=empty_db))
    [problem] = [each for each in found if each.level is PROBLEM]
    assert (problem.check, problem.advice) == ("schema", "outbox migrate")
    assert {each.check for each in found} == {
        check.name for check in examination.CHECKS if check.needs is not examination.Needs.SCHEMA
    }
