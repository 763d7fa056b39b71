"""Each role of roles.sql can do what its process does, and nothing else; on each PostgreSQL that is installed."""

import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from cryptography.fernet import Fernet
from psycopg.conninfo import make_conninfo

from outbox.demo.embedded import Binaries, EmbeddedPostgres
from outbox.postgres.migrations import known_migrations, sql_folder
from outbox.settings import Settings
from tests.apis import new_user, serving
from tests.daemons import (
    LOOPBACK,
    add_config,
    add_contacts,
    daemon_process,
    doorbell_is_up,
    eventually_true,
    make_due,
    owed,
)
from tests.pgbouncer import needs_pgbouncer, pgbouncer
from tests.receiver import Receiver, Status
from tests.servers import fresh_database, installed_binaries
from tests.terminals import terminal
from tests.tried import outbox

ROLES = ("outbox_owner", "outbox_capture", "outbox_daemon", "outbox_api", "outbox_reader")
LOGINS = {"deployer": "outbox_owner", "dispatcher": "outbox_daemon", "web": "outbox_api", "eyes": "outbox_reader"}
GRANTS = """
    select 'schema ' || n.nspname, nspacl::text[] from pg_namespace n where nspname = 'outbox'
    union all
    select relname::text, relacl::text[] from pg_class where relnamespace = 'outbox'::regnamespace
    union all
    select attrelid::regclass::text || '.' || attname, attacl::text[] from pg_attribute
    where attrelid in (select oid from pg_class where relnamespace = 'outbox'::regnamespace) and attacl is not null
    union all
    select oid::regprocedure::text, coalesce(proacl, acldefault('f', proowner))::text[] from pg_proc
    where pronamespace = 'outbox'::regnamespace
    order by 1
"""


class Database:
    """A database of one test: `admin` is its superuser's connection, `dsn(login)` anybody's DSN."""

    def __init__(self, dsn: str, admin: psycopg.Connection) -> None:
        self._dsn = dsn
        self.admin = admin

    def dsn(self, login: str) -> str:
        """Return the DSN of a role that logs in. The deployer is the owner of the outbox from the first on."""
        options = "-c role=outbox_owner" if login == "deployer" else ""
        return make_conninfo(self._dsn, user=login, options=options)

    def refuses(self, login: str, *statements: str) -> None:
        """Demand that each statement is forbidden to the role."""
        with psycopg.connect(self.dsn(login), autocommit=True) as conn:
            for statement in statements:
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    conn.execute(statement.encode())

    def grants(self) -> dict[str, list[str]]:
        """Return who may do what with each object of the schema, but for its owner."""
        owner = self.admin.execute(
            "select nspowner::regrole::text from pg_namespace where nspname = 'outbox'"
        ).fetchone()
        assert owner is not None
        return {
            name: granted
            for name, acl in self.admin.execute(GRANTS).fetchall()
            if (granted := sorted(each for each in acl or () if not each.startswith(f"{owner[0]}=")))
        }


@pytest.fixture(scope="module", params=installed_binaries(), ids=lambda binaries: f"pg{binaries.version}")
def server(request: pytest.FixtureRequest) -> Iterator[EmbeddedPostgres]:
    """A server of these tests' own: roles are the whole server's."""
    binaries: Binaries = request.param
    with EmbeddedPostgres(binaries, fsync=False) as started:
        yield started


@pytest.fixture
def bare(server: EmbeddedPostgres) -> Iterator[Database]:
    """A database without our schema, and the roles that log in; no role of ours exists yet."""
    with psycopg.connect(server.dsn, autocommit=True) as cluster:
        logins = ("dba", "app", *LOGINS)
        for login in logins:
            cluster.execute(f"create role {login} login {'createrole' if login == 'dba' else ''}".encode())
        try:
            with fresh_database(server.dsn) as dsn, psycopg.connect(dsn, autocommit=True) as admin:
                yield Database(dsn, admin)
        finally:
            # In this order: whoever granted a membership can not be dropped before it (PostgreSQL 16).
            for role in (*ROLES, *logins):
                cluster.execute(f"drop role if exists {role}".encode())


@pytest.fixture
def database(bare: Database) -> Database:
    """A database as sql/README.md tells to make it: no superuser migrates or attaches."""
    make_roles(bare.dsn("dba"))
    admin = bare.admin
    for login, role in LOGINS.items():
        admin.execute(f"grant {role} to {login}".encode())
    admin.execute("create schema outbox authorization outbox_owner")
    admin.execute("grant create on schema public to app")
    with psycopg.connect(bare.dsn("app"), autocommit=True) as app:
        app.execute("create table contacts (id int primary key, location_id text default 'L', name text)")
        app.execute("grant trigger on contacts to outbox_owner")
    with psycopg.connect(bare.dsn("deployer"), autocommit=True) as owner:
        for migration in known_migrations():
            in_transaction(owner, migration.text)
        owner.execute("select outbox.attach('contacts', 'contact')")
    return bare


def in_transaction(conn: psycopg.Connection, text: str) -> None:
    """Do what `psql -1 -f` does."""
    with conn.transaction():
        conn.execute(text.encode())


def make_roles(dsn: str) -> list[str]:
    """Run roles.sql; return what it said."""
    said: list[str] = []
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.add_notice_handler(lambda notice: said.append(str(notice.message_primary)))
        conn.execute((sql_folder() / "roles.sql").read_bytes())
    return said


def test_the_commands_make_all_as_the_owner(bare: Database) -> None:
    """Who migrates and attaches as outbox_owner gives each object to it, but the capture function to outbox_capture."""
    make_roles(bare.dsn("dba"))
    bare.admin.execute("grant outbox_owner to deployer")
    bare.admin.execute("create schema outbox authorization outbox_owner")
    bare.admin.execute("create table contacts (id int primary key)")
    bare.admin.execute("grant trigger on contacts to outbox_owner")
    for arguments in (["migrate"], ["attach", "contacts", "--resource", "contact"]):
        done = outbox(bare.dsn("deployer"), *arguments)
        assert (done.returncode, done.stderr) == (0, "")
    owners = bare.admin.execute(
        """
        select pg_get_userbyid(owner), string_agg(name, ',') filter (where owner <> 'outbox_owner'::regrole) from (
            select relowner, relname from pg_class where relnamespace = 'outbox'::regnamespace
            union all select proowner, proname from pg_proc where pronamespace = 'outbox'::regnamespace
            union all select nspowner, nspname from pg_namespace where nspname = 'outbox'
        ) as o (owner, name)
        group by 1 order by 1
        """
    ).fetchall()
    assert owners == [("outbox_capture", "capture_contacts"), ("outbox_owner", None)]


def test_the_daemon_works_as_outbox_daemon(database: Database) -> None:
    """It routes, claims, sends, retries, buries, settles and keeps house."""
    admin = database.admin
    with psycopg.connect(database.dsn("app"), autocommit=True) as app, Receiver() as receiver:
        receiver.answer("/", Status(500), Status(200))
        receiver.answer("/dead", Status(500))
        add_config(admin, receiver.url_for("/"), number_of_attempts=2)
        add_config(admin, receiver.url_for("/dead"))
        gone = add_config(admin, receiver.url_for("/gone"))
        admin.execute("update outbox.postback_configs set deleted_at = now() where id = %s", [gone])
        admin.execute("insert into outbox.deliveries values (gen_random_uuid(), %s, now())", [gone])
        [(newest,)] = admin.execute(
            "select max(relname) from pg_class where relname like 'events\\_2%' and relispartition and relkind = 'r'"
        ).fetchall()
        admin.execute(f"drop table outbox.{newest}".encode())
        with daemon_process(database.dsn("dispatcher")) as daemon:
            daemon.wait_for_event("daemon.started")
            assert admin.execute("select to_regclass(%s) is not null", [f"outbox.{newest}"]).fetchone() == (True,)
            daemon.wait_for_event("deliveries.purged")
            add_contacts(app, 1, 1)
            receiver.wait_for(2)
            eventually_true(lambda: sorted(owed(admin)) == [("dead", 1, False), ("pending", 1, False)])
            make_due(admin)
            receiver.wait_for(3)
            eventually_true(lambda: owed(admin) == [("dead", 1, False)])
            assert doorbell_is_up(admin), "it could raise the bell"
            assert daemon.stop() == 0
            assert [daemon.events(name) for name in ("housekeeping.failed", "database.lost")] == [[], []]
        assert admin.execute("select count(*) from outbox.attempts").fetchone() == (3,)


def test_the_daemon_can_do_nothing_else(database: Database) -> None:
    """It forges no event, changes no subscription, rewrites no history and reads no user."""
    database.refuses(
        "dispatcher",
        "select * from outbox.users",
        "select id from outbox.users",
        "insert into outbox.outbox (type, resource, resource_id, data) values ('CREATE', 'contact', '1', '{}')",
        "update outbox.outbox set data = '{}'",
        "update outbox.events set data = '{}'",
        "delete from outbox.events",
        "update outbox.postback_configs set url = 'http://127.0.0.1'",
        "insert into outbox.postback_configs (resource, url) values ('contact', 'http://127.0.0.1')",
        "delete from outbox.attempts",
        "delete from outbox.migrations",
        "select outbox.attach('contacts', 'contact')",
        "select outbox.detach('contacts')",
        "select outbox.grant_roles()",
        "drop table outbox.outbox",
        "create table outbox.mine ()",
        "select * from contacts",
    )


async def test_the_api_works_as_outbox_api(database: Database) -> None:
    """It signs users in, keeps configs with their passwords, shows the log and replays from it."""
    dsn = database.dsn("web")
    headers = await new_user(database.dsn("deployer"), "L")
    settings = Settings(dsn=dsn, allow_networks=LOOPBACK, secret_key=(Fernet.generate_key().decode(),))
    with Receiver() as receiver, psycopg.connect(database.dsn("app"), autocommit=True) as app:
        async with serving(settings) as client:
            config = {"location_id": "L", "resource": "contact", "url": receiver.url, "basic_auth_username": "me"}
            made = await client.post("/v2/postbackconfigs", json={"postbackconfig": config}, headers=headers)
            assert made.status == 201
            address = f"/v2/postbackconfigs/{(await made.json())['postbackconfig']['id']}"
            change = {"postbackconfig": {"basic_auth_username": None, "on_delete": "0"}}
            assert (await client.put(address, json=change, headers=headers)).status == 200
            assert (
                len((await (await client.get("/v2/postbackconfigs", headers=headers)).json())["postbackconfigs"]) == 1
            )
            add_contacts(app, 1, 2)
            with daemon_process(database.dsn("dispatcher"), "--until-empty") as daemon:
                assert daemon.process.wait(timeout=30) == 0
            [first, _] = (await (await client.get("/v2/postbacklogs", headers=headers)).json())["postbacklogs"]
            assert (await client.get(f"/v2/postbacklogs/{first['id']}", headers=headers)).status == 200
            replayed = await client.post(f"/v2/postbacklogs/{first['id']}/replay", headers=headers)
            assert (replayed.status, len(owed(database.admin))) == (202, 1)
            assert (await client.delete(address, headers=headers)).status == 204
            assert owed(database.admin) == []
    for command in (["config", "list"], ["status"], ["top", "--once"]):
        done = outbox(dsn, *command)
        assert (done.returncode, done.stderr) == (0, ""), command
    made_later = outbox(dsn, "replay", "--missing", "--config", str(add_config(database.admin, "http://127.0.0.1:9/")))
    assert (made_later.stdout, made_later.stderr, len(owed(database.admin))) == ("Made 2 deliveries.\n", "", 2)


def test_the_api_can_do_nothing_else(database: Database) -> None:
    """It touches neither what was captured nor the users, and forges no event."""
    database.refuses(
        "web",
        "select data from outbox.outbox",
        "insert into outbox.outbox (type, resource, resource_id, data) values ('CREATE', 'contact', '1', '{}')",
        "delete from outbox.outbox",
        "insert into outbox.events (id, created_at, type, resource, resource_id, data) "
        "values (gen_random_uuid(), now(), 'CREATE', 'contact', '1', '{}')",
        "update outbox.attempts set answer = ''",
        "delete from outbox.postback_configs",
        "update outbox.users set is_operator = true",
        "insert into outbox.users (name, key_hash, location_ids) values ('me', sha256(''), '{L}')",
        "select setval('outbox.doorbell', 1)",
        "select outbox.make_partitions()",
        "select outbox.attach('contacts', 'contact')",
        "select * from contacts",
    )


async def test_the_reading_commands_work_as_outbox_reader(database: Database) -> None:
    """Status, deliveries and users are shown; no secret is, and nothing is changed."""
    await new_user(database.dsn("deployer"), "L")
    dsn = database.dsn("eyes")
    with Receiver() as receiver, psycopg.connect(database.dsn("app"), autocommit=True) as app:
        config = add_config(database.admin, receiver.url)
        add_contacts(app, 1, 2)
        with daemon_process(database.dsn("dispatcher"), "--until-empty") as daemon:
            assert daemon.process.wait(timeout=30) == 0
        add_contacts(app, 3, 1)
    [(key,)] = database.admin.execute(
        "select event_id || '.' || config_id from outbox.attempts order by event_id limit 1"
    ).fetchall()
    for arguments in (
        ["status", "--json"],
        ["top", "--json"],
        ["deliveries", "list", "--json"],
        ["deliveries", "show", key],
        ["user", "list"],
        ["migrate", "--check"],
        ["replay", "--record", "1", "--state", "delivered", "--dry-run"],
        ["replay", "--missing", "--config", str(config), "--dry-run"],
    ):
        done = outbox(dsn, *arguments)
        assert (done.returncode, done.stderr) == (0, ""), arguments
    refused = outbox(dsn, "replay", "--record", "1", "--state", "delivered")
    assert (refused.returncode, "permission denied" in refused.stderr) == (1, True)
    assert "Traceback" not in refused.stderr
    with terminal(dsn, "top") as screen:
        screen.wait_for(lambda text: "q quit" in text)
        screen.type(b"py")
        screen.wait_for(lambda text: "Nothing was changed: permission denied" in text)
        screen.type(b"q")
        assert screen.ended() == 0
    database.refuses(
        "eyes",
        "select basic_auth_password from outbox.postback_configs",
        "select basic_auth_username from outbox.postback_configs",
        "select signing_secrets from outbox.postback_configs",
        "select * from outbox.postback_configs",
        "select key_hash from outbox.users",
        "select data from outbox.outbox",
        "update outbox.deliveries set due_at = now()",
        "delete from outbox.events",
        "select id from outbox.postback_configs for update",
        "select outbox.make_partitions()",
        "select outbox.attach('contacts', 'contact')",
    )


def test_the_application_can_neither_read_nor_forge(database: Database) -> None:
    """Its writes are captured and it has no right on our schema; not even one that it was given helps it to forge."""
    admin = database.admin
    forgeries = (
        "select * from outbox.outbox",
        "insert into outbox.outbox (type, resource, resource_id, data) values ('CREATE', 'contact', '1', '{}')",
        "select * from outbox.events",
        "select setval('outbox.doorbell', 2)",
        "select outbox.grant_roles()",
    )
    with psycopg.connect(database.dsn("app"), autocommit=True) as app:
        add_contacts(app, 1, 1)
        app.execute("create table forged (id int primary key, location_id text, name text)")
    assert admin.execute("select resource_id from outbox.outbox").fetchall() == [("1",)]
    database.refuses("app", *forgeries)
    admin.execute("grant usage on schema outbox to app")
    [(function,)] = admin.execute("select function from outbox.attachments").fetchall()
    database.refuses(
        "app",
        *forgeries,
        "create trigger mine after insert on forged referencing new table as outbox_new "
        f"for each statement execute function outbox.{function}()",
    )


def test_a_writer_that_owns_nothing_changes_nothing_of_what_is_captured(database: Database) -> None:
    """Tables, types and functions of its own, and settings of its session, shadow nothing in the capture's function."""
    admin = database.admin
    admin.execute("create role writer login")
    admin.execute("create schema shadows authorization writer")
    with psycopg.connect(database.dsn("app"), autocommit=True) as app:
        app.execute("grant select, insert, update, delete on contacts to writer")
    try:
        with psycopg.connect(database.dsn("writer"), autocommit=True) as writer:
            for statement in (
                "create temp table outbox_new (id int, location_id text, name text)",
                "insert into outbox_new values (666, 'EVIL', 'forged')",
                "create temp table outbox_row (id int)",
                "create temp table pg_attribute (attrelid oid)",
                "create type pg_temp.json as (a int)",
                "create function pg_temp.to_json(anyelement) returns pg_catalog.json language sql as $$ select '1' $$",
                "create function shadows.concat_ws(text, int) returns text language sql as $$ select 'forged' $$",
                "create function shadows.equal(int, int) returns boolean language sql as $$ select false $$",
                "create operator shadows.= (leftarg = int, rightarg = int, function = shadows.equal)",
                "set search_path = pg_temp, shadows, pg_catalog, public",
                "set standard_conforming_strings = off",
                "set timezone = 'Asia/Tokyo'",
                "set outbox.traceparent = E'00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\\r\\nX: y'",
                "insert into public.contacts values (1, 'L', 'a')",
                "update public.contacts set name = 'b'",
                "delete from public.contacts",
            ):
                writer.execute(statement.encode())
        captured = admin.execute(
            "select type, resource, resource_id, location_id, data::text, traceparent from outbox.outbox order by seq"
        ).fetchall()
        data = [f'{{"id":1,"location_id":"L","name":"{name}"}}' for name in "abb"]
        assert captured == [
            (kind, "contact", "1", "L", each, None)
            for kind, each in zip(("CREATE", "UPDATE", "DELETE"), data, strict=True)
        ]
        database.refuses(
            "writer",
            "select * from outbox.outbox",
            "select outbox.make_partitions()",
            "select outbox.tell_of_config(gen_random_uuid(), 'opened', '')",
            "create trigger mine after insert on contacts execute function outbox.capture_contacts()",
            "alter table contacts add column more int",
        )
    finally:
        admin.execute("drop owned by writer cascade")
        admin.execute("drop role writer")


# What the owner of an attached table has the capture run: a cast to json of a type of its own.
ATTACK = """
    create type kind as enum ('a');
    create table loot (act text, fate text);
    grant insert on loot to public;
    create table acts (act text);
    grant select on acts to public;
    create function steal(kind) returns json language plpgsql as $$
    declare
        wanted text;
    begin
        insert into public.loot values ('who', current_user);
        for wanted in select act from public.acts loop
            begin
                execute wanted;
                insert into public.loot values (wanted, 'done');
            exception
                when others then insert into public.loot values (wanted, sqlstate);
            end;
        end loop;
        return '"stolen"';
    end
    $$;
    create cast (kind as json) with function steal(kind);
    alter table contacts add kind kind;
"""


def attack(app: psycopg.Connection, *acts: str) -> dict[str, str]:
    """Have the capture do these acts; return what became of each: done, or an SQLSTATE."""
    if app.execute("select to_regclass('loot')").fetchone() == (None,):
        app.execute(ATTACK)
    app.execute("delete from acts; delete from loot")
    for act in acts:
        app.execute("insert into acts values (%s)", [act])
    app.execute("insert into contacts (id, kind) select coalesce(max(id), 0) + 1, 'a' from contacts")
    return dict(app.execute("select act, fate from loot").fetchall())


def test_code_in_the_capture_can_neither_read_the_outbox_nor_alter_nor_replay(database: Database) -> None:
    """An attached table's owner has the capture run code of its own, which may do nothing but what a capture does."""
    acts = (
        "select key_hash from outbox.users",
        "select id from outbox.users",
        "select url from outbox.postback_configs",
        "select basic_auth_password from outbox.postback_configs",
        "select signing_secrets from outbox.postback_configs",
        "select data from outbox.outbox",
        "select data from outbox.events",
        "select answer from outbox.attempts",
        "select * from outbox.deliveries",
        "insert into outbox.users (name, key_hash, location_ids) values ('me', sha256(''), '{L}')",
        (
            "insert into outbox.deliveries (event_id, config_id, event_created_at) "
            "values (gen_random_uuid(), gen_random_uuid(), now())"
        ),
        "update outbox.deliveries set due_at = now()",
        "update outbox.outbox set data = '{}'",
        (
            "insert into outbox.outbox (seq, type, resource, resource_id, data) overriding system value "
            "values (1, 'CREATE', 'contact', '1', '{}')"
        ),
        (
            "insert into outbox.outbox (created_at, type, resource, resource_id, data) "
            "values ('2000-01-01', 'CREATE', 'contact', '1', '{}')"
        ),
        "delete from outbox.events",
        "truncate outbox.outbox",
        "update outbox.postback_configs set url = 'http://127.0.0.1/'",
        "select id from outbox.postback_configs for update",
        "delete from outbox.migrations",
        "select setval('outbox.outbox_seq_seq', 1)",
        "alter table outbox.outbox disable trigger all",
        "create table outbox.mine ()",
        "create function outbox.make_partitions() returns integer language sql as 'select 1'",
        "create or replace function outbox.capture_contacts() returns trigger language plpgsql as 'begin end'",
        "alter function outbox.capture_contacts() rename to capture_others",
        "select outbox.make_partitions()",
        "select outbox.tell_of_config(gen_random_uuid(), 'opened', '')",
        "select outbox.grant_roles()",
        "select outbox.attach('public.contacts', 'other')",
        "select outbox.detach('public.contacts')",
        "set role outbox_owner",
        "set session authorization deployer",
        "grant outbox_capture to app",
        "grant outbox_owner to outbox_capture",
    )
    with psycopg.connect(database.dsn("app"), autocommit=True) as app:
        found = attack(app, *acts)
    assert found.pop("who") == "outbox_capture"
    assert found == dict.fromkeys(acts, "42501")
    assert database.admin.execute("select data ->> 'kind' from outbox.outbox").fetchall() == [("stolen",)]


def test_code_in_the_capture_can_not_say_what_the_owner_attaches(database: Database) -> None:
    """The capture's role owns its functions; how a table is attached does not stand where an owner can write."""
    admin = database.admin
    admin.execute("create function as_owner() returns boolean immutable language sql as 'select true'")
    with psycopg.connect(database.dsn("app"), autocommit=True) as app:
        before = admin.execute("select * from outbox.attachments").fetchall()
        act = """comment on function outbox.capture_contacts() is
            '{"resource": "contact", "key": "id", "location": "location_id", "condition": "public.as_owner()"}'"""
        assert attack(app, act) == {"who": "outbox_capture", act: "done"}
        app.execute("create function nothing(text) returns json language sql as 'select null::json'")
    with psycopg.connect(database.dsn("deployer"), autocommit=True) as owner:
        assert owner.execute("select * from outbox.attachments").fetchall() == before
        owner.execute("select outbox.register_expand('contact', 'nothing', 'nothing')")
        assert owner.execute("select * from outbox.attachments").fetchall() == before


def captured(admin: psycopg.Connection) -> list[tuple[str, str, str, str | None]]:
    """Return what was captured, and forget it."""
    return admin.execute(
        "with o as (delete from outbox.outbox returning *)"
        " select type, resource_id, data::text, expansions::text from o order by seq"
    ).fetchall()


def test_the_capture_needs_no_more_than_outbox_capture_may(database: Database) -> None:
    """Small and large statements, expands, a serializer, partitions; attached again, and roles.sql run again."""
    admin = database.admin
    admin.execute("""
        create table tags (id int, tag text);
        insert into tags values (1, 'x');
        create table hidden (id int);
        create function tags_of(id text) returns json language sql as
            $$ select json_agg(t.tag) from public.tags as t where t.id = $1::int $$;
        create function hidden_of(id text) returns json language sql as
            $$ select json_agg(h.id) from public.hidden as h $$;
        create table p (id int primary key, location_id text) partition by range (id);
        create table p1 partition of p for values from (0) to (1000);
        create function short(p) returns json language sql as
            $$ select json_build_object('i', $1.id, 'tags', (select count(*) from public.tags)) $$;
        grant trigger on p, p1 to outbox_owner;
        grant insert, select, delete on p, p1 to app;
        grant select on tags to outbox_capture;
        insert into outbox.postback_configs (resource, url, expands) values ('contact', 'http://x/', 'tags,hidden');
    """)
    again = ("", "select outbox.attach('contacts', 'contact')", "select outbox.grant_roles()", "roles.sql")
    with (
        psycopg.connect(database.dsn("deployer"), autocommit=True) as owner,
        psycopg.connect(database.dsn("app"), autocommit=True) as app,
    ):
        for name in ("tags", "hidden"):
            owner.execute("select outbox.register_expand('contact', %s, %s)", [name, f"{name}_of"])
        owner.execute("select outbox.attach('p', 'part', serializer => 'short')")
        for step in again:
            if step == "roles.sql":
                assert make_roles(database.dsn("deployer")) == []
            elif step:
                owner.execute(step.encode())
            app.execute("insert into contacts (id, name) values (1, 'a')")
            app.execute("update contacts set name = 'b'")
            app.execute("delete from contacts")
            assert captured(admin) == [
                (kind, "1", f'{{"id":1,"location_id":"L","name":"{name}"}}', '{"tags":["x"]}')
                for kind, name in (("CREATE", "a"), ("UPDATE", "b"), ("DELETE", "b"))
            ]
            app.execute("insert into contacts (id) select i from generate_series(1, 100) as i")
            app.execute("update contacts set name = 'c'")
            app.execute("delete from contacts")
            assert len(captured(admin)) == 300
            app.execute("insert into p values (1); insert into p1 values (2); delete from p")
            assert [row[0] for row in captured(admin)] == ["CREATE", "CREATE", "DELETE", "DELETE"]
        admin.execute("alter table p add more int")
        app.execute("insert into p values (1)")
        assert [row[2] for row in captured(admin)] == ['{"i" : 1, "tags" : 1}'], "the form for altered tables works too"
        assert owner.execute("select outbox.unregister_expand('contact', 'tags')").fetchone() == (True,)
        app.execute("insert into contacts (id) values (1)")
        assert [row[3] for row in captured(admin)] == [None]
    generated = admin.execute(
        "select proowner::regrole::text, count(*) from pg_proc where proname ~ '^(capture_[cp]|expand_[0-9a-f]{32})'"
        " group by 1"
    ).fetchall()
    assert len(generated) == 1
    assert generated[0][0] == "outbox_capture"
    granted = admin.execute("select has_schema_privilege('outbox_capture', 'outbox', 'create')").fetchone()
    assert granted == (False,)


def test_tables_attached_at_the_same_time_wait_for_each_other(database: Database) -> None:
    """Giving a function to outbox_capture changes a row of the catalog that all have in common."""
    admin = database.admin
    admin.execute("create table one (id int primary key); create table two (id int primary key)")
    admin.execute("grant trigger on one, two to outbox_owner")
    with (
        psycopg.connect(database.dsn("deployer")) as first,
        psycopg.connect(database.dsn("deployer"), autocommit=True) as second,
        ThreadPoolExecutor(1) as pool,
    ):
        first.execute("select outbox.attach('one', 'one')")
        waiting = pool.submit(second.execute, "select outbox.attach('two', 'two')")
        eventually_true(
            lambda: (
                admin.execute("select count(*) from pg_locks where not granted").fetchone() == (1,) or waiting.done()
            )
        )
        first.commit()
        waiting.result(timeout=30)
    assert admin.execute("select count(*) from outbox.attachments").fetchone() == (3,)


def test_what_was_attached_before_is_handed_over_and_handed_back(bare: Database) -> None:
    """roles.sql gives the capture's functions to outbox_capture, undoing 0006 gives them back, and all is captured."""
    admin = bare.admin
    for migration in known_migrations():
        in_transaction(admin, migration.text)
    admin.execute("create table contacts (id int primary key)")
    admin.execute("create function one(text) returns json language sql as 'select to_json(1)'")
    admin.execute("select outbox.attach('contacts', 'contact'), outbox.register_expand('contact', 'one', 'one')")
    add_config(admin, "http://127.0.0.1/", expands="one", location_id=None)
    owners = """
        select array_agg(distinct proowner::regrole::text), count(*) from pg_proc
        where proname = 'capture_contacts' or proname ~ '^expand_[0-9a-f]{32}$'
    """
    superuser = str(admin.info.user)
    assert admin.execute(owners).fetchone() == ([superuser], 2)
    make_roles(make_conninfo(bare.dsn("dba"), user=superuser))
    assert admin.execute(owners).fetchone() == (["outbox_capture"], 2)
    admin.execute("insert into contacts values (1)")
    in_transaction(admin, (sql_folder() / "undo" / "0006_roles.sql").read_text())
    assert admin.execute(owners).fetchone() == ([superuser], 2)
    admin.execute("insert into contacts values (2)")
    admin.execute("select outbox.attach('contacts', 'contact')")
    admin.execute("insert into contacts values (3)")
    assert [row[1:] for row in captured(admin)] == [(n, f'{{"id":{n}}}', '{"one":1}') for n in "123"]


def test_an_owner_that_is_no_member_of_outbox_capture_captures_by_itself(bare: Database) -> None:
    """Roles of another database's outbox may be there already; nothing is refused, and outbox_capture gets nothing."""
    make_roles(bare.dsn("dba"))
    admin = bare.admin
    admin.execute("create schema outbox authorization app")
    admin.execute("grant create on schema public to app")
    with psycopg.connect(bare.dsn("app"), autocommit=True) as app:
        for migration in known_migrations():
            in_transaction(app, migration.text)
        app.execute("create table contacts (id int primary key)")
        app.execute("select outbox.attach('contacts', 'contact')")
        app.execute("insert into contacts values (1)")
        granted = app.execute("select outbox.grant_roles()").fetchone()
        assert granted == (["outbox_api", "outbox_daemon", "outbox_reader"],)
        admin.execute("grant outbox_capture to app")
        app.execute("select outbox.grant_roles()")
        app.execute("insert into contacts values (2)")
    assert [row[1] for row in captured(admin)] == ["1", "2"]
    owner = admin.execute("select proowner::regrole::text from pg_proc where proname = 'capture_contacts'").fetchone()
    assert owner == ("outbox_capture",)


def test_a_schema_that_was_waiting_for_us_is_not_moved_into(bare: Database) -> None:
    """Whoever owns a schema may drop and replace all in it, so nobody else's is taken, not even by a superuser."""
    bare.admin.execute("create schema outbox authorization app")
    bare.admin.execute("grant all on schema outbox to public")
    for login in ("dba", str(bare.admin.info.user)):
        refused = outbox(bare.dsn(login), "migrate")
        assert (refused.returncode, f"belongs to somebody else than {login}" in refused.stderr) == (1, True)
    assert bare.admin.execute("select from pg_class where relnamespace = 'outbox'::regnamespace").fetchall() == []


def test_partitions_made_later_need_no_grant(database: Database) -> None:
    """Who names the parent is asked for the parent's rights; a partition by itself is nobody's."""
    with psycopg.connect(database.dsn("deployer"), autocommit=True) as owner:
        owner.execute("select outbox.make_partitions(20)")
    with psycopg.connect(database.dsn("dispatcher"), autocommit=True) as daemon:
        daemon.execute(
            "insert into outbox.events (id, created_at, type, resource, resource_id, data) "
            "values (gen_random_uuid(), now() + interval '15 days', 'CREATE', 'contact', 'late', '{}')"
        )
    [(partition,)] = database.admin.execute("select tableoid::regclass::text from outbox.events").fetchall()
    assert partition.startswith("outbox.events_2")
    for login in ("eyes", "web", "dispatcher"):
        with psycopg.connect(database.dsn(login), autocommit=True) as conn:
            assert conn.execute("select resource_id from outbox.events").fetchall() == [("late",)]
        database.refuses(login, f"table {partition}")


def test_granting_again_changes_nothing_and_takes_what_is_too_much(database: Database) -> None:
    """roles.sql and grant_roles() can be run again; a grant that is not on the list does not last."""
    granted = database.grants()
    everybody = [name for name, acl in granted.items() if any(each.startswith("=") for each in acl)]
    assert everybody == []
    assert make_roles(database.dsn("deployer")) == []
    assert database.grants() == granted
    database.admin.execute("grant insert on outbox.outbox to outbox_api")
    database.admin.execute("grant select (key_hash) on outbox.users to outbox_reader")
    database.admin.execute("grant execute on function outbox.detach(regclass) to public")
    assert database.grants() != granted
    with psycopg.connect(database.dsn("deployer"), autocommit=True) as owner:
        [(present,)] = owner.execute("select outbox.grant_roles()").fetchall()
    assert present == ["outbox_api", "outbox_capture", "outbox_daemon", "outbox_reader"]
    assert database.grants() == granted


def test_roles_may_come_after_the_schema_and_only_in_part(bare: Database) -> None:
    """Those that exist are granted what they need. Whoever may not grant is told who can."""
    admin = bare.admin
    for migration in known_migrations():
        in_transaction(admin, migration.text)
    before = bare.grants()
    admin.execute("create role outbox_reader")
    assert admin.execute("select outbox.grant_roles()").fetchone() == (["outbox_reader"],)
    admin.execute("drop owned by outbox_reader")
    assert bare.grants() == before
    assert make_roles(bare.dsn("dba")) == [f"Have {admin.info.user} say: select outbox.grant_roles()"]
    assert bare.grants() == before
    assert make_roles(make_conninfo(bare.dsn("dba"), user=admin.info.user)) == []
    assert bare.grants() != before
    in_transaction(admin, (sql_folder() / "undo" / "0006_roles.sql").read_text())
    assert [acl for acl in bare.grants().values() if any("outbox_" in each for each in acl)] == []


@pytest.mark.skipif(shutil.which("psql") is None, reason="psql is not installed here; CI installs it")
def test_psql_runs_it_as_the_readme_says(bare: Database) -> None:
    """Without a transaction, by a role that is no superuser, twice."""
    command = ["psql", "-X", "-v", "ON_ERROR_STOP=1", "-f", str(Path(sql_folder()) / "roles.sql"), bare.dsn("dba")]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, "No outbox.grant_roles()" in done.stderr) == (0, True)
    found = bare.admin.execute(
        "select rolname, rolcanlogin from pg_roles where rolname = any(%s) order by 1", [list(ROLES)]
    ).fetchall()
    assert found == [(role, False) for role in sorted(ROLES)]


@needs_pgbouncer
def test_the_owner_migrates_through_pgbouncer(bare: Database) -> None:
    """PgBouncer passes no `options` on, so the role is set for the login; the daemon's login works through it too."""
    make_roles(bare.dsn("dba"))
    admin = bare.admin
    admin.execute("grant outbox_owner to deployer")
    admin.execute("grant outbox_daemon to dispatcher")
    admin.execute("alter role deployer set role = 'outbox_owner'")
    admin.execute("create schema outbox authorization outbox_owner")
    with pgbouncer(bare.dsn("dba"), "deployer", "dispatcher") as bouncer:
        done = outbox(make_conninfo(bouncer.dsn, user="deployer"), "migrate")
        assert (done.returncode, done.stderr) == (0, "")
        with daemon_process(make_conninfo(bouncer.dsn, user="dispatcher"), "--until-empty") as daemon:
            assert daemon.process.wait(timeout=30) == 0
    [owner] = admin.execute("select relowner::regrole::text from pg_class where oid = 'outbox.outbox'::regclass")
    assert owner == ("outbox_owner",)
