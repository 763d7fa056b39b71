"""The schema is installed, checked and undone alike by psql and by `outbox migrate`."""

import asyncio
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from outbox.postgres.migrations import Migration, differences, known_migrations, migrate, sealed, sql_folder
from tests.servers import fresh_database

CATALOG = """
    select 'class', c.relname::text, c.relkind::text from pg_class c where relnamespace = to_regnamespace('outbox')
    union all
    select 'function', p.oid::regprocedure::text, md5(p.prosrc) from pg_proc p
    where pronamespace = to_regnamespace('outbox')
    union all
    select 'constraint', conname::text, pg_get_constraintdef(oid) from pg_constraint
    where connamespace = to_regnamespace('outbox')
    order by 1, 2
"""


def catalog(dsn: str) -> list[tuple[str, str, str]]:
    with psycopg.connect(dsn) as conn:
        return conn.execute(CATALOG).fetchall()


def apply_file(dsn: str, text: str) -> None:
    """Do what `psql -1 -f` does: one transaction, the file as it stands."""
    with psycopg.connect(dsn) as conn:
        conn.execute(text.encode())


def test_files_applied_by_hand_and_by_the_command_give_the_same_schema_and_ledger(empty_db: str) -> None:
    """Both ways may be mixed, and a second application changes nothing."""
    first, *rest = known_migrations()
    apply_file(empty_db, first.text)
    assert asyncio.run(migrate(empty_db)) == rest
    assert asyncio.run(migrate(empty_db)) == []
    mixed = catalog(empty_db)
    with pytest.raises(psycopg.Error):
        apply_file(empty_db, rest[0].text)
    assert catalog(empty_db) == mixed


async def test_many_that_migrate_at_once_take_turns(server_dsn: str) -> None:
    """None of them fails, though each has looked for the ledger before any had made it; each file is applied once."""
    known = known_migrations()
    for _ in range(3):
        with fresh_database(server_dsn) as dsn:
            done = await asyncio.gather(*(migrate(dsn) for _ in range(6)))
            assert sorted(file.version for each in done for file in each) == [file.version for file in known]


def test_each_undo_file_restores_the_catalog(empty_db: str) -> None:
    """An undo file removes precisely what its file made, also where tables are attached."""
    before = []
    for migration in known_migrations():
        before.append(catalog(empty_db))
        apply_file(empty_db, migration.text)
        if migration.name == "capture":
            apply_file(empty_db, "create table contacts (id int primary key)")
            apply_file(empty_db, "create function tags_of(text) returns json language sql as 'select to_json($1)'")
            expand = "select outbox.{}register_expand('contact', 'tags'{})"
            unattached = catalog(empty_db)
            apply_file(empty_db, expand.format("", ", 'tags_of'"))
            apply_file(empty_db, "select outbox.attach('contacts', 'contact')")
            apply_file(empty_db, "select outbox.detach('contacts')")
            apply_file(empty_db, expand.format("un", ""))
            assert catalog(empty_db) == unattached
            apply_file(empty_db, "select outbox.attach('contacts', 'contact')")
            apply_file(empty_db, expand.format("", ", 'tags_of'"))
    for migration in reversed(known_migrations()):
        apply_file(empty_db, (sql_folder() / "undo" / migration.file_name).read_text())
        assert catalog(empty_db) == before.pop()


def test_a_file_outside_of_a_transaction_is_refused(empty_db: str) -> None:
    """Without psql -1 a file stops before it has done anything, so it can not be applied by half."""
    with (
        psycopg.connect(empty_db, autocommit=True) as conn,
        pytest.raises(psycopg.errors.NoActiveSqlTransaction),
    ):
        conn.execute(known_migrations()[0].text.split(";")[0].encode())


def test_differences_name_what_is_behind_ahead_and_edited() -> None:
    """The check names each version that does not fit."""
    known = known_migrations()
    ledger = {migration.version: migration.checksum for migration in known}
    assert differences(ledger, known) == []
    assert "0003_capture.sql" in differences({1: known[0].checksum, 2: known[1].checksum}, known)[0]
    assert "version 99" in differences({**ledger, 99: "x"}, known)[0]
    edited = replace(known[0], text=known[0].text + "-- one more line\n")
    assert "0001_ledger.sql" in differences(ledger, [edited, *known[1:]])[0]
    assert "0001_ledger.sql" in differences({**ledger, 1: "0" * 64}, known)[0]


def test_the_files_carry_their_checksums() -> None:
    """Each file declares the checksum of its own text."""
    assert [m.file_name for m in known_migrations() if sealed(m.text) != m.text] == []


@pytest.mark.skipif(shutil.which("psql") is None, reason="psql is not installed here; CI installs it")
def test_psql_alone_installs_and_undoes_without_a_superuser(server_dsn: str) -> None:
    """A DBA with nothing but psql, whose role owns the database, gets what the command makes, and can undo it."""
    with fresh_database(server_dsn) as admin_dsn:
        name = psycopg.conninfo.conninfo_to_dict(admin_dsn)["dbname"]
        role = f"owner_of_{name}"
        with psycopg.connect(server_dsn, autocommit=True) as admin:
            admin.execute(f"create role {role} login".encode())
            admin.execute(f"alter database {name} owner to {role}".encode())
        dsn = psycopg.conninfo.make_conninfo(admin_dsn, user=role)
        try:
            empty = catalog(dsn)
            files = [sql_folder() / migration.file_name for migration in known_migrations()]
            for path in files:
                assert psql(dsn, path).returncode == 0
            again = psql(dsn, files[1])
            assert (again.returncode, "already exists" in again.stderr) == (3, True)
            assert asyncio.run(migrate(dsn)) == []
            for path in reversed(files):
                assert psql(dsn, path.parent / "undo" / path.name).returncode == 0
            assert catalog(dsn) == empty
        finally:
            with psycopg.connect(server_dsn, autocommit=True) as admin:
                admin.execute(f"alter database {name} owner to current_user".encode())
                admin.execute(f"drop role {role}".encode())


def psql(dsn: str, path: Path) -> subprocess.CompletedProcess[str]:
    command = ["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-1", "-f", str(path), dsn]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("migration", known_migrations()[:-1], ids=lambda each: each.name)
def test_nothing_is_undone_before_what_came_later(empty_db: str, migration: Migration) -> None:
    """Tables would go from under triggers that are still there, and the application's writes fail."""
    asyncio.run(migrate(empty_db))
    with pytest.raises(psycopg.errors.RaiseException, match="Undo the later files first"):
        apply_file(empty_db, (sql_folder() / "undo" / migration.file_name).read_text())
