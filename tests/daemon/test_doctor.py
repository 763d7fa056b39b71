"""The examination as a whole, and its checks of the daemon's own side: settings, open files, secrets, hosts."""

import os
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from cryptography.fernet import Fernet

from outbox.core.finding import OK, PROBLEM, WARNING, Finding
from outbox.daemon import doctor
from outbox.postgres.pool import Link
from outbox.secrets import SecretBox
from outbox.settings import Settings
from tests.daemons import LOOPBACK, add_config

KEY, OTHER_KEY = Fernet.generate_key().decode(), Fernet.generate_key().decode()


@pytest.fixture
async def aconn(db: str) -> AsyncIterator[psycopg.AsyncConnection]:
    """A connection as the checks get it."""
    link = Link(db, "test", settings=None)
    yield await link.connection()
    await link.drop()


def only(found: list[Finding]) -> Finding:
    assert len(found) == 1, found
    return found[0]


async def test_all_checks_can_be_made_on_every_version(every_db: str) -> None:
    """Each says something, in the order of the list, and nothing is wrong with a new installation but its emptiness."""
    found = await doctor.examine(Settings(dsn=every_db))
    assert list(dict.fromkeys(each.check for each in found)) == [check.name for check in doctor.CHECKS]
    assert [each for each in found if "Could not be checked" in each.message] == []
    assert [each.check for each in found if each.level is PROBLEM] == []
    assert {each.check for each in found if each.level is WARNING} <= {"capture", "daemons", "durability"}


async def test_a_check_can_not_change_anything(
    db: str, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is made in a transaction that only reads; one that writes is told as one that could not be made."""
    conn.execute("create table contacts (id int)")

    async def writes(patient: doctor.Patient) -> list[Finding]:
        await patient.db.execute("insert into contacts values (1)")
        return []

    monkeypatch.setattr(doctor, "CHECKS", (doctor.Check("writes", doctor.Needs.DATABASE, writes),))
    found = only(await doctor.examine(Settings(dsn=db)))
    assert (found.check, found.level, "read-only transaction" in found.message) == ("writes", WARNING, True)
    assert conn.execute("select count(*) from contacts").fetchone() == (0,)


async def test_a_check_that_fails_stops_no_other(db: str, conn: psycopg.Connection) -> None:
    """It becomes a warning with the database's words, and all others are made."""
    conn.execute("alter table outbox.postback_configs rename to other")
    try:
        found = await doctor.examine(Settings(dsn=db))
    finally:
        conn.execute("alter table outbox.other rename to postback_configs")
    failed = {each.check for each in found if each.message.startswith("Could not be checked: relation")}
    assert failed == {"expands", "daemons", "configs", "secrets", "subscribers"}
    assert list(dict.fromkeys(each.check for each in found)) == [check.name for check in doctor.CHECKS]


async def test_a_connection_that_is_lost_costs_one_check(db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one is made on a new connection."""

    async def dies(patient: doctor.Patient) -> list[Finding]:
        await patient.db.execute("select pg_terminate_backend(pg_backend_pid())")
        return []

    lost = doctor.Check("lost", doctor.Needs.DATABASE, dies)
    monkeypatch.setattr(doctor, "CHECKS", (lost, *doctor.CHECKS))
    found = await doctor.examine(Settings(dsn=db))
    assert [each.check for each in found if "Could not be checked" in each.message] == ["lost"]
    assert list(dict.fromkeys(each.check for each in found)) == [check.name for check in doctor.CHECKS]


async def test_without_a_database_the_other_checks_are_made() -> None:
    """That it can not be reached is told once."""
    found = await doctor.examine(Settings(dsn="postgresql://127.0.0.1:1/nowhere"))
    assert [(each.check, each.level) for each in found] == [
        ("settings", OK), ("open files", OK), ("database", PROBLEM),
    ]  # fmt: skip
    assert "cannot be reached" in found[-1].message


async def test_without_the_schema_what_needs_it_is_not_asked(empty_db: str) -> None:
    """One problem, with the command that mends it, and not a dozen."""
    found = await doctor.examine(Settings(dsn=empty_db))
    [problem] = [each for each in found if each.level is PROBLEM]
    assert (problem.check, problem.advice) == ("schema", "outbox migrate")
    assert {each.check for each in found} == {
        check.name for check in doctor.CHECKS if check.needs is not doctor.Needs.SCHEMA
    }


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"concurrency": 20, "max_in_flight_per_config": 20}, "OUTBOX_MAX_IN_FLIGHT_PER_CONFIG"),
        ({"request_timeout": 31.0}, "OUTBOX_DRAIN_TIMEOUT"),
        ({"workers": (os.cpu_count() or 1) + 1}, "OUTBOX_WORKERS"),
    ],
)
async def test_settings_that_do_not_fit_each_other_are_a_warning(settings: dict[str, Any], word: str) -> None:
    """The defaults do."""
    assert only(await doctor.settings_fit(Settings())).level is OK
    found = only(await doctor.settings_fit(Settings(**settings)))
    assert (found.level, word in found.message) == (WARNING, True)


@pytest.mark.parametrize(("limit", "level"), [(264, WARNING), (263, PROBLEM), (464, OK), (463, WARNING)])
async def test_too_few_open_files_look_like_subscribers_that_fail(limit: int, level: str) -> None:
    """Fewer than the slots is a problem; with fewer than twice that, none may be kept for the next POST."""
    assert only(await doctor.open_files(Settings(concurrency=200), limit=limit)).level == level


async def test_credentials_are_read_with_the_key(aconn: psycopg.AsyncConnection, conn: psycopg.Connection) -> None:
    """An older key behind the newest is as good; a wrong one or none is a problem."""
    assert only(await doctor.credentials(Settings(), aconn)) == Finding("secrets", OK, "No config keeps secrets.")
    box = SecretBox([KEY])
    config = add_config(conn, "http://a.example/", basic_auth_username=box.seal("u"), basic_auth_password=box.seal("p"))
    add_config(conn, "http://a.example/", basic_auth_username=box.seal("u"), deleted_at="now")
    for keys in ((KEY,), (OTHER_KEY, KEY)):
        assert only(await doctor.credentials(Settings(secret_key=keys), aconn)).level is OK
    for wrong, fault in (
        (Settings(secret_key=(OTHER_KEY,)), "no key of OUTBOX_SECRET_KEY"),
        (Settings(), "OUTBOX_SECRET_KEY is not set"),
    ):
        found = only(await doctor.credentials(wrong, aconn))
        assert (found.level, fault in found.message, str(config) in found.message) == (PROBLEM, True, True)
        assert "1 of 1 configs" in found.message


async def test_hosts_that_can_not_be_posted_to_are_a_warning(
    aconn: psycopg.AsyncConnection, conn: psycopg.Connection
) -> None:
    """Each host is asked once for all its configs; an inactive one's is not."""
    assert only(await doctor.subscribers(Settings(), aconn)).message == "No config is active."
    first = add_config(conn, "http://127.0.0.1:8000/a")
    second = add_config(conn, "https://127.0.0.1/b?c")
    add_config(conn, "http://10.0.0.1/", is_active=False)
    found = only(await doctor.subscribers(Settings(), aconn))
    assert (found.level, "127.0.0.1 is a loopback address" in found.message) == (WARNING, True)
    assert f"{first}, {second}" in found.message
    assert "OUTBOX_ALLOW_NETWORKS" in (found.advice or "")
    assert only(await doctor.subscribers(Settings(allow_networks=LOOPBACK), aconn)).level is OK
    add_config(conn, "http://nowhere.invalid/")
    add_config(conn, "http://127.1/")
    numeric, name = await doctor.subscribers(Settings(allow_networks=LOOPBACK), aconn)
    assert "Nothing can be sent to the URL of" in numeric.message
    assert "nowhere.invalid: the host has no address" in name.message
    forbidden = add_config(conn, "http://a.example:22/")
    refused = " ".join(each.message for each in await doctor.subscribers(Settings(), aconn))
    assert f"Nothing is sent for {forbidden}: port 22 is not allowed" in refused
    strict = Settings(allow_networks=LOOPBACK, require_https=True)
    refused = " ".join(each.message for each in await doctor.subscribers(strict, aconn))
    assert f"Nothing is sent for {first}, " in refused
    assert ": http is not allowed, only https" in refused
    late = await doctor.subscribers(Settings(allow_networks=LOOPBACK), aconn, within=0)
    assert "nowhere.invalid: no answer of the resolver within 0 s" in " ".join(each.message for each in late)


def test_the_name_of_the_daemons_connections_is_the_dsns_if_it_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment may say it too, as it may to libpq."""
    monkeypatch.delenv("PGAPPNAME", raising=False)
    assert doctor.application_name("postgresql://a/b") is None
    assert doctor.application_name("postgresql://a/b?application_name=shop") == "shop"
    monkeypatch.setenv("PGAPPNAME", "other")
    assert doctor.application_name("postgresql://a/b") == "other"
