"""The daemon keeps house beside its work: it prunes, it vacuums, and neither its errors nor its waits matter."""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import structlog
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from outbox.daemon.housekeeping import Housekeeper
from outbox.postgres import housekeeping, migrations
from outbox.postgres.migrations import migrate
from outbox.settings import Settings
from tests.daemons import add_config, add_contacts, attach_contacts, daemon_process, eventually, eventually_true
from tests.receiver import Receiver


@pytest.fixture
def old(empty_db: str) -> Iterator[psycopg.Connection]:
    """A connection to a database with contacts, a config, and a day of 2001 with one event."""
    asyncio.run(migrate(empty_db))
    with psycopg.connect(empty_db, autocommit=True) as conn:
        attach_contacts(conn)
        conn.execute(
            "create table outbox.events_20010101 partition of outbox.events "
            "for values from ('2001-01-01 00:00+00') to ('2001-01-02 00:00+00')"
        )
        conn.execute(
            "insert into outbox.events (id, created_at, type, resource, resource_id, location_id, data) "
            "values (gen_random_uuid(), '2001-01-01 12:00+00', 'CREATE', 'contact', '1', 'L', '{\"id\":1}')"
        )
        yield conn


def test_a_daemon_prunes_when_it_starts(empty_db: str, old: psycopg.Connection) -> None:
    """What is past OUTBOX_RETENTION goes, and the log says what; what is owed is delivered all the same."""
    with Receiver() as receiver:
        config = add_config(old, receiver.url, paused_at="2001-01-01")
        old.execute(
            "insert into outbox.deliveries (event_id, config_id, event_created_at) "
            "select id, %s, created_at from outbox.events",
            [config],
        )
        with daemon_process(empty_db, retention="1d", retention_dead="2d") as daemon:
            [line] = daemon.wait_for_event("housekeeping.pruned")
            assert (line["partitions"], line["kept_events"]) == (["events_20010101"], 1)
            assert line["bytes"] > 0
            old.execute("update outbox.postback_configs set paused_at = null, revision = 2")
            receiver.wait_for(1)
            assert daemon.stop() == 0
        assert dict(receiver.requests[0].form)["data"] == '{"id":1}'
    assert old.execute("select to_regclass('outbox.events_20010101')").fetchone() == (None,)


def test_a_daemon_ends_without_waiting_for_its_housekeeping(empty_db: str, old: psycopg.Connection) -> None:
    """Stopped in the middle of a slow statement, it gives it up: nothing of it is done, and nothing runs on."""
    config = add_config(old, "http://127.0.0.1:9/")
    old.execute(
        "create function public.sleep() returns trigger language plpgsql as "
        "$$ begin perform pg_sleep(600); return old; end $$"
    )
    old.execute("create trigger sleep before delete on outbox.deliveries for each row execute function public.sleep()")
    old.execute(
        "insert into outbox.deliveries (event_id, config_id, event_created_at, state, died_at) "
        "select id, %s, created_at, 'dead', created_at from outbox.events",
        [config],
    )
    sleeping = "select count(*) from pg_stat_activity where wait_event = 'PgSleep' and datname = current_database()"
    with daemon_process(empty_db) as daemon:
        eventually_true(lambda: old.execute(sleeping).fetchone() == (1,))
        assert daemon.stop() == 0
        assert len(daemon.events("daemon.drained")) == 1
    eventually_true(lambda: old.execute(sleeping).fetchone() == (0,))
    assert old.execute("select count(*) from outbox.deliveries").fetchone() == (1,)


@pytest.mark.parametrize("full", [False, True], ids=["a function is gone", "the disk is full"])
def test_a_daemon_goes_on_when_housekeeping_fails(empty_db: str, old: psycopg.Connection, *, full: bool) -> None:
    """The log says what failed, also what would be an outage elsewhere, and events are delivered as ever."""
    old.execute("drop function outbox.partitions()")
    if full:
        old.execute(
            "create function outbox.partitions(out parent text, out name text, out until timestamptz, out rows int, "
            "out bytes bigint) returns setof record language plpgsql as "
            "$$ begin raise 'No space left for outbox.partitions()' using errcode = 'disk_full'; end $$"
        )
    with Receiver() as receiver:
        add_config(old, receiver.url)
        with daemon_process(empty_db) as daemon:
            [line] = daemon.wait_for_event("housekeeping.failed")
            assert "outbox.partitions()" in line["error"]
            add_contacts(old, 1, 3)
            receiver.wait_for(3)
            assert daemon.stop() == 0


@pytest.fixture
def starved(every_db: str) -> str:
    """A database whose outbox is full of dead rows, which autovacuum does not get to; on each version."""
    with psycopg.connect(every_db, autocommit=True) as conn:
        for table in ("outbox", "deliveries"):
            conn.execute(f"alter table outbox.{table} set (autovacuum_enabled = off)".encode())
        conn.execute(
            "insert into outbox.outbox (type, resource, resource_id, data) "
            "select 'CREATE', 'contact', i, '{}' from generate_series(1, 60000) i"
        )
        conn.execute("delete from outbox.outbox")
    return every_db


def dead_rows(dsn: str) -> int:
    with psycopg.connect(dsn) as conn:
        row = conn.execute("select n_dead_tup from pg_stat_user_tables where relname = 'outbox'").fetchone()
    assert row is not None
    return int(row[0])


async def test_a_hot_table_that_autovacuum_does_not_reach_is_vacuumed(starved: str) -> None:
    """Once, and the log says so; then it is clean."""
    keeper = Housekeeper(Settings(dsn=starved), lambda _fits: None)
    await eventually(lambda: dead_rows(starved) == 60_000)  # the statistics come a moment after the rows
    with structlog.testing.capture_logs() as lines:
        await keeper.once()
        await keeper.once()
    told = [(line["table"], line["dead_rows"]) for line in lines if line["event"] == "housekeeping.vacuumed"]
    assert told == [("outbox", 60_000)]
    await eventually(lambda: dead_rows(starved) == 0)
    await keeper.close()


async def test_a_role_that_may_not_vacuum_says_so_once(starved: str) -> None:
    """It is no error, and all else goes on. With MAINTAIN (PostgreSQL 17) it may."""
    name = str(conninfo_to_dict(starved)["dbname"])
    role = f"daemon_of_{name}"
    keeper = Housekeeper(Settings(dsn=make_conninfo(starved, options=f"-c role={role}")), lambda _fits: None)
    with psycopg.connect(starved, autocommit=True) as conn:
        conn.execute(f"create role {role}".encode())
        try:
            conn.execute(f"grant usage on schema outbox to {role}".encode())
            conn.execute(f"grant select, insert, update, delete on all tables in schema outbox to {role}".encode())
            conn.execute(f"grant execute on all functions in schema outbox to {role}".encode())
            with structlog.testing.capture_logs() as lines:
                await keeper.once()
                await keeper.once()
            assert [line["event"] for line in lines if line["log_level"] == "warning"] == [
                "housekeeping.vacuum_refused"
            ]
            if conn.info.server_version >= 170_000:
                conn.execute(f"grant maintain on outbox.outbox to {role}".encode())
                await keeper.once()
                await eventually(lambda: dead_rows(starved) == 0)
        finally:
            await keeper.close()
            conn.execute(f"drop owned by {role}".encode())
            conn.execute(f"drop role {role}".encode())


async def test_purging_takes_turns_with_the_rest(empty_db: str) -> None:
    """Making partitions is left to nobody else: it is done also while another housekeeper is at work."""
    await asyncio.to_thread(lambda: asyncio.run(migrate(empty_db)))
    async with (
        await psycopg.AsyncConnection.connect(empty_db, autocommit=True) as one,
        await psycopg.AsyncConnection.connect(empty_db, autocommit=True) as other,
    ):
        await one.execute(
            "do $$ begin execute 'drop table ' || (select string_agg('outbox.' || name, ',') "
            "from outbox.partitions()); end $$"
        )
        async with housekeeping.turn(other):
            assert await housekeeping.make_partitions(one) == 16


async def test_a_day_that_stays_because_it_is_owed_is_told_of_once(empty_db: str, old: psycopg.Connection) -> None:
    """A config that was paused and forgotten keeps history for ever, and who wonders at the disk finds out why."""
    old.execute(
        "insert into outbox.events (id, created_at, type, resource, resource_id, location_id, data) "
        "select gen_random_uuid(), created_at, type, resource, '2', 'L', data "
        "from outbox.events cross join generate_series(1, 2000)"
    )
    config = add_config(old, "http://127.0.0.1:9/", paused_at="2001-01-01")
    old.execute(
        "insert into outbox.deliveries (event_id, config_id, event_created_at) "
        "select id, %s, created_at from outbox.events",
        [config],
    )
    old.execute("analyze outbox.events_20010101")
    keeper = Housekeeper(Settings(dsn=empty_db), lambda _: None)
    with structlog.testing.capture_logs() as lines:
        for _ in range(2):
            keeper._prune_at = 0.0  # noqa: SLF001 - an hour later
            await keeper.once()
    await keeper.close()
    [told] = [line for line in lines if line["event"] == "housekeeping.kept"]
    assert (told["partition"], told["events"]) == ("events_20010101", 2001)


async def test_a_schema_of_another_version_is_told_of_once(empty_db: str) -> None:
    """A newer outbox has migrated: no house is kept until this daemon is replaced, and the log says why."""
    await migrate(empty_db)
    fits: list[bool] = []
    keeper = Housekeeper(Settings(dsn=empty_db), fits.append)
    with psycopg.connect(empty_db, autocommit=True) as conn:
        conn.execute("insert into outbox.migrations (version, name, checksum) values (99, 'x', repeat('0', 64))")
    with structlog.testing.capture_logs() as lines:
        await keeper.once()
        await keeper.once()
    await keeper.close()
    [told] = [line for line in lines if line["event"] == "schema.differs"]
    assert "version 99" in told["differences"][0]
    assert fits == [False, False]


async def test_a_schema_that_fits_again_is_told_of_anew_when_it_differs_again(empty_db: str) -> None:
    """An undo, and a migration after it: each change is one line."""
    await migrate(empty_db)
    fits: list[bool] = []
    keeper = Housekeeper(Settings(dsn=empty_db), fits.append)
    with psycopg.connect(empty_db, autocommit=True) as conn, structlog.testing.capture_logs() as lines:
        for _ in range(2):
            conn.execute("insert into outbox.migrations (version, name, checksum) values (99, 'x', repeat('0', 64))")
            await keeper.once()
            conn.execute("delete from outbox.migrations where version = 99")
            await keeper.once()
    await keeper.close()
    assert len([line for line in lines if line["event"] == "schema.differs"]) == 2
    assert fits == [False, True, False, True]


async def test_a_daemon_that_was_upgraded_in_its_place_knows_what_it_was_started_with(
    empty_db: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of a newer version are there, and applied; the program that runs is still the older one."""
    shutil.copytree(migrations.sql_folder(), tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(migrations, "sql_folder", lambda: tmp_path)
    await migrate(empty_db)
    fits: list[bool] = []
    keeper = Housekeeper(Settings(dsn=empty_db), fits.append)
    newer = "insert into outbox.migrations (version, name, checksum)\nvalues (99, 'newer', '');\n"
    (tmp_path / "0099_newer.sql").write_text(migrations.sealed(newer))
    assert [each.version for each in await migrate(empty_db)] == [99]
    await keeper.once()
    await keeper.close()
    assert fits == [False]
