"""A change of an attached table is captured if and only if it is committed, as subscribers shall see it."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg import sql

from outbox.errors import UsageError
from outbox.postgres.capture import attach
from tests.daemons import doorbell_is_up
from tests.servers import role

CONTACTS = """
    create table contacts (
        id text primary key, location_id text, last_name text, note json, created_ts bigint default 1472325312
    )
"""


@pytest.fixture
def contacts(conn: psycopg.Connection) -> psycopg.Connection:
    """A connection to a database whose contacts are attached."""
    conn.execute(CONTACTS)
    conn.execute("select outbox.attach('contacts', 'contact')")
    return conn


def captured(conn: psycopg.Connection) -> list[tuple[Any, ...]]:
    return conn.execute("select type, resource_id, data::text from outbox.outbox order by seq").fetchall()


def test_insert_update_delete_are_captured_with_the_record_of_that_moment(
    contacts: psycopg.Connection,
) -> None:
    """CREATE and UPDATE carry the new row, DELETE the last one."""
    contacts.execute("insert into contacts (id, location_id, last_name) values ('1', 'L', 'Jones')")
    contacts.execute("update contacts set last_name = 'O''Neil & Söhne'")
    contacts.execute("delete from contacts")
    changes = captured(contacts)
    assert [row[:2] for row in changes] == [("CREATE", "1"), ("UPDATE", "1"), ("DELETE", "1")]
    assert changes[0][2] == '{"id":"1","location_id":"L","last_name":"Jones","note":null,"created_ts":1472325312}'
    assert json.loads(changes[1][2])["last_name"] == "O'Neil & Söhne"
    assert changes[2][2] == changes[1][2]


def test_only_changed_rows_of_an_update_are_captured_and_a_changed_key_is(
    contacts: psycopg.Connection,
) -> None:
    """A row that stays as it was sends nothing, in small statements and in large ones."""
    contacts.execute("insert into contacts (id, last_name) select i::text, 'x' from generate_series(1, 1000) i")
    contacts.execute("truncate outbox.outbox")
    contacts.execute("update contacts set last_name = case when id = '7' then 'y' else last_name end")
    contacts.execute("update contacts set id = 'new' where id = '8'")
    contacts.execute("update contacts set last_name = last_name where id = '9'")
    assert [row[:2] for row in captured(contacts)] == [("UPDATE", "7"), ("UPDATE", "new")]


@pytest.mark.parametrize("on", ["on", "ON", "True", "1"])
def test_rollback_and_suppress_capture_nothing(contacts: psycopg.Connection, on: str) -> None:
    """What was not committed, or was told to keep quiet, is no event."""
    with contacts.transaction(force_rollback=True):
        contacts.execute("insert into contacts (id) values ('1')")
    with contacts.transaction():
        contacts.execute(f"set local outbox.suppress = '{on}'".encode())
        contacts.execute("insert into contacts (id) values ('2')")
    assert captured(contacts) == []


def test_upsert_merge_copy_and_cascade_are_captured(contacts: psycopg.Connection) -> None:
    """Each way to write a row is a way to change it."""
    contacts.execute("create table notes (id int primary key, contact_id text references contacts on delete cascade)")
    contacts.execute("select outbox.attach('notes', 'note')")
    with contacts.cursor().copy("copy contacts (id) from stdin") as copy:
        copy.write_row(["1"])
    contacts.execute("insert into notes values (5, '1')")
    contacts.execute(
        "insert into contacts (id, last_name) values ('1', 'a'), ('2', 'b') "
        "on conflict (id) do update set last_name = 'c'"
    )
    contacts.execute(
        "merge into contacts c using (values ('2'), ('3')) s (id) on c.id = s.id "
        "when matched then update set last_name = 'm' when not matched then insert (id) values (s.id)"
    )
    contacts.execute("delete from contacts where id = '1'")
    assert sorted(row[:2] for row in captured(contacts)) == sorted(
        [
            ("CREATE", "1"), ("CREATE", "5"), ("UPDATE", "1"), ("CREATE", "2"), ("UPDATE", "2"), ("CREATE", "3"),
            ("DELETE", "5"), ("DELETE", "1"),
        ]
    )  # fmt: skip


def test_timestamps_named_ts_are_epoch_seconds(conn: psycopg.Connection) -> None:
    """The contract sends *_ts as epoch seconds, however the table keeps them."""
    conn.execute("create table t (id int primary key, created_ts timestamptz)")
    conn.execute("select outbox.attach('t', 'thing')")
    conn.execute("insert into t values (1, '2016-08-27 19:15:12.9+00')")
    assert captured(conn)[0][2] == '{"id":1,"created_ts":1472325312}'


def test_a_serializer_shapes_the_record(conn: psycopg.Connection) -> None:
    """What the function returns is what is sent; a change that it does not show is none; null captures nothing."""
    conn.execute("create table t (id int primary key, secret text, shown text)")
    conn.execute(
        "create function public.shape(t public.t) returns json language sql as "
        "$$ select case when t.id > 0 then json_build_object('id', t.id, 'shown', t.shown) end $$"
    )
    conn.execute("select outbox.attach('t', 'thing', serializer => 'public.shape')")
    conn.execute("insert into t values (1, 's', 'a'), (-1, 's', 'a')")
    conn.execute("update t set secret = 'other' where id = 1")
    conn.execute("update t set shown = 'b' where id = 1")
    assert [row[:2] for row in captured(conn)] == [("CREATE", "1"), ("UPDATE", "1")]
    assert json.loads(captured(conn)[1][2]) == {"id": 1, "shown": "b"}


def test_partitions_are_captured_once_by_either_name(conn: psycopg.Connection) -> None:
    """Writing to the parent or to the partition itself gives one event a change."""
    conn.execute("create table p (id int, day int, primary key (id, day)) partition by list (day)")
    conn.execute("create table p1 partition of p for values in (1)")
    conn.execute("create table p2 partition of p for values in (2)")
    conn.execute("select outbox.attach('p', 'part')")
    conn.execute("insert into p values (1, 1)")
    conn.execute("insert into p2 values (2, 2)")
    conn.execute("update p set day = 2 where id = 1")
    assert [row[:2] for row in captured(conn)] == [("CREATE", "1"), ("CREATE", "2"), ("UPDATE", "1")]


def test_two_tables_of_one_name_are_attached_at_once_with_a_function_each(conn: psycopg.Connection, db: str) -> None:
    """As a loop over the schemas of many tenants does in parallel: else one would get what the other asked for."""
    for schema in ("one", "two"):
        conn.execute(f"create schema {schema}; create table {schema}.t (id int primary key)".encode())
    with psycopg.connect(db) as other, ThreadPoolExecutor(1) as aside:
        other.execute("select outbox.attach('one.t', 'first')")
        attached = aside.submit(conn.execute, "select outbox.attach('two.t', 'second')")
        with psycopg.connect(db, autocommit=True) as watcher:
            waits = "select from pg_locks where not granted and relation = 'outbox.migrations'::regclass"
            while not watcher.execute(waits).fetchall():
                assert not attached.done()
        other.commit()
        attached.result()
    conn.execute("insert into one.t values (1); insert into two.t values (2)")
    rows = conn.execute("select resource, resource_id from outbox.outbox order by seq").fetchall()
    assert rows == [("first", "1"), ("second", "2")]


def test_attaching_again_updates_and_detaching_undoes(contacts: psycopg.Connection) -> None:
    """The second attach changes the options; detach leaves nothing behind."""
    contacts.execute("select outbox.attach('contacts', 'person')")
    contacts.execute("insert into contacts (id) values ('1')")
    assert contacts.execute("select resource from outbox.outbox").fetchall() == [("person",)]
    assert contacts.execute("select outbox.detach('contacts')").fetchall() == [(True,)]
    assert contacts.execute("select outbox.detach('contacts')").fetchall() == [(False,)]
    contacts.execute("insert into contacts (id) values ('2')")
    left = "select count(*) from pg_proc where proname like 'capture\\_%' and pronamespace = 'outbox'::regnamespace"
    assert contacts.execute(left).fetchall() == [(0,)]
    assert len(captured(contacts)) == 1


@pytest.mark.parametrize(
    ("ddl", "call", "message"),
    [
        ("create table t (id int)", "outbox.attach('t', 'thing')", "has no key"),
        (
            "create table t (id int primary key)",
            "outbox.attach('t', 'thing', key => 'nope')",
            'no NOT NULL column "nope"',
        ),
        (
            "create table t (id int primary key)",
            "outbox.attach('t', 'thing', location => 'x')",
            'no column "x"',
        ),
        ("create table t (id int primary key)", "outbox.attach('t', '')", "1 to 128 characters"),
        (
            (
                "create table whole (id int primary key) partition by range (id); "
                "create table t partition of whole for values from (0) to (9)"
            ),
            "outbox.attach('t', 'thing')",
            "is a part of another table",
        ),
        (
            "create table heir (id int primary key); create table t (primary key (id)) inherits (heir)",
            "outbox.attach('t', 'thing')",
            "is a part of another table",
        ),
        (
            (
                "create foreign data wrapper w; create server s foreign data wrapper w; "
                "create table t (id int not null) partition by range (id); "
                "create foreign table t1 partition of t for values from (0) to (9) server s"
            ),
            "outbox.attach('t', 'thing', key => 'id')",
            "has a foreign table among its partitions",
        ),
        (
            "create view t as select 1 as id",
            "outbox.attach('t', 'thing')",
            "not an ordinary or partitioned table",
        ),
        (
            "create table t (id int primary key); create table more () inherits (t)",
            "outbox.attach('t', 'thing')",
            "has tables that inherit from it",
        ),
    ],
)
def test_what_can_not_be_attached_says_why(conn: psycopg.Connection, ddl: str, call: str, message: str) -> None:
    """A wrong attach fails with its reason, not the application's next write."""
    conn.execute(ddl.encode())
    with pytest.raises(psycopg.Error, match=message):
        conn.execute(f"select {call}".encode())


def test_the_application_needs_no_right_on_our_schema(db: str, contacts: psycopg.Connection) -> None:
    """A role that may only write its own table is captured, and can not read or write the outbox."""
    with role(contacts, db) as (app, dsn):
        contacts.execute(f'grant select, insert on contacts to "{app}"'.encode())
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute("insert into contacts (id) values ('1')")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                conn.execute("select * from outbox.outbox")
        assert len(captured(contacts)) == 1


JUST_NOW = "select setval('outbox.doorbell', (extract(epoch from now() + interval '1 hour') * 1000)::bigint)"
"""Not to the millisecond: between two statements the machine may take its time."""

ASLEEP = "select setval('outbox.doorbell', 2)"
LONG_AGO = "select setval('outbox.doorbell', 1000)"


@pytest.mark.parametrize(("bell", "rings"), [(JUST_NOW, 0), (ASLEEP, 1), (LONG_AGO, 1)])
def test_the_doorbell_notifies_for_a_sleeping_daemon_and_now_and_then(
    contacts: psycopg.Connection, bell: str, rings: int
) -> None:
    """Not for each change. But who rang may be heard much later, or never."""
    contacts.execute("listen outbox")
    contacts.execute(bell)
    contacts.execute("insert into contacts (id) values ('1')")
    assert len(list(contacts.notifies(timeout=0, stop_after=5))) == rings
    (value,) = contacts.execute("select last_value from outbox.doorbell").fetchone() or (None,)
    assert rings == 0 or abs(value / 1000 - time.time()) < 60


def test_a_transaction_rings_once_and_leaves_the_doorbell_to_others(contacts: psycopg.Connection) -> None:
    """It is heard when it commits, which may be long after; each of its rows would keep the others from ringing."""
    with contacts.transaction():
        contacts.execute(ASLEEP)
        contacts.execute("insert into contacts (id) values ('1')")
        contacts.execute(ASLEEP)  # as a daemon does that looked meanwhile
        contacts.execute("insert into contacts (id) values ('2')")
        assert doorbell_is_up(contacts)
    contacts.execute("listen outbox")
    contacts.execute("insert into contacts (id) values ('3')")
    assert len(list(contacts.notifies(timeout=0, stop_after=5))) == 1


def test_a_ring_that_was_rolled_back_is_made_anew(contacts: psycopg.Connection) -> None:
    """To a savepoint: what follows in the same transaction rings."""
    contacts.execute("listen outbox")
    with contacts.transaction():
        contacts.execute(ASLEEP)
        with contacts.transaction(force_rollback=True):
            contacts.execute("insert into contacts (id) values ('1')")
        contacts.execute(LONG_AGO)
        contacts.execute("insert into contacts (id) values ('2')")
    assert len(list(contacts.notifies(timeout=0, stop_after=5))) == 1


HOSTILE_COLUMNS = ("n", "o", "c", "record", "type", "data", "resource_id", "tg_op", "outbox_new", 'a "b" \n', "select")


@pytest.mark.parametrize("timestamps", [False, True], ids=["plain", "with timestamps"])
def test_columns_of_any_name_are_captured_as_they_are(conn: psycopg.Connection, *, timestamps: bool) -> None:
    """Whatever the application calls its columns, the record is the whole row, and its statements go through."""
    names = sql.SQL(", ").join(sql.SQL("{} text").format(sql.Identifier(name)) for name in HOSTILE_COLUMNS)
    more = sql.SQL(", made_ts timestamptz default now()" if timestamps else "")
    table = sql.Identifier('my "table" of x')
    conn.execute(sql.SQL("create table {} (id int primary key, {}{})").format(table, names, more))
    conn.execute("select outbox.attach(c.oid, 'thing') from pg_class c where c.relname = %s", ['my "table" of x'])
    conn.execute(sql.SQL("insert into {} (id, n, o, record) values (1, 'x', 'y', 'z')").format(table))
    conn.execute(sql.SQL("update {} set n = 'w'").format(table))
    conn.execute(sql.SQL("delete from {}").format(table))
    changes = captured(conn)
    assert [row[:2] for row in changes] == [("CREATE", "1"), ("UPDATE", "1"), ("DELETE", "1")]
    assert [json.loads(row[2])["n"] for row in changes] == ["x", "w", "w"]
    assert list(json.loads(changes[0][2])) == ["id", *HOSTILE_COLUMNS, *(["made_ts"] if timestamps else [])]


def test_the_writers_session_does_not_change_what_is_sent(conn: psycopg.Connection) -> None:
    """Time zone, date style, interval style, bytea and float output of the writer are his own."""
    conn.execute(
        "create table t (id int primary key, b bytea, f float8, i interval, d date, z timestamptz, m money, r regclass)"
    )
    conn.execute("select outbox.attach('t', 'thing')")
    insert = (
        "insert into t values (%s, '\\x00ff', 0.1::float8 + 0.2, '1 day 2 hours', '2026-01-02', "
        "'2026-01-02 03:04+00', 12.5, 'pg_class')"
    )
    conn.execute(insert, [1])
    conn.execute("set bytea_output = 'escape'; set extra_float_digits = -5; set intervalstyle = 'iso_8601'")
    conn.execute("set quote_all_identifiers = on; set datestyle = 'German'; set timezone = 'Asia/Tokyo'")
    conn.execute(insert, [2])
    [one, two] = [row[2] for row in captured(conn)]
    assert two == one.replace('"id":1', '"id":2')


def test_a_virtual_generated_column_needs_a_serializer(every_db: str) -> None:
    """Triggers can not read one: attaching says so, and with a serializer the rest is captured."""
    with psycopg.connect(every_db, autocommit=True) as conn:
        if conn.info.server_version < 180_000:
            conn.execute("create table t (id int primary key, twice int generated always as (id * 2) stored)")
            conn.execute("select outbox.attach('t', 'thing')")
            conn.execute("insert into t (id) values (2)")
            assert captured(conn) == [("CREATE", "2", '{"id":2,"twice":4}')]
            return
        conn.execute("create table t (id int primary key, at_ts timestamptz, twice int generated always as (id * 2))")
        with pytest.raises(psycopg.errors.FeatureNotSupported, match="virtual generated column"):
            conn.execute("select outbox.attach('t', 'thing')")
        conn.execute("create function shape(t) returns json language sql as 'select json_build_object(''id'', $1.id)'")
        conn.execute("select outbox.attach('t', 'thing', serializer => 'shape')")
        conn.execute("insert into t (id) values (2)")
        assert [row[:2] for row in captured(conn)] == [("CREATE", "2")]


@pytest.mark.parametrize("timestamps", [False, True], ids=["plain", "with timestamps"])
def test_names_with_a_percent_sign_a_comma_or_ours_are_captured(conn: psycopg.Connection, *, timestamps: bool) -> None:
    """A name is a name: as table, key, location, resource or column, also where our own text uses it."""
    ours = ("outbox_row", "outbox_old_row", "outbox_record", "captured", "member", "100%s", "%1$L", "f", "$1", "it's\\")
    names = sql.SQL(", ").join(sql.SQL("{} text default 'v'").format(sql.Identifier(name)) for name in ours)
    table, key, location = sql.Identifier("%s member"), sql.Identifier(" a,%I "), sql.Identifier("loc%")
    more = sql.SQL(", made_ts timestamptz" if timestamps else "")
    conn.execute(
        sql.SQL("create table {} ({} text primary key, {} text, {}{})").format(table, key, location, names, more)
    )
    conn.execute("select outbox.attach('\"%%s member\"', %s, key => ' a,%%I ', location => 'loc%%')", ["50% 'off'"])
    conn.execute(sql.SQL("insert into {} ({}, {}) values ('1', 'L')").format(table, key, location))
    conn.execute(sql.SQL("update {} set outbox_row = 'w'").format(table))
    conn.execute(sql.SQL("delete from {}").format(table))
    rows = conn.execute("select type, resource, resource_id, location_id from outbox.outbox order by seq").fetchall()
    assert rows == [(kind, "50% 'off'", "1", "L") for kind in ("CREATE", "UPDATE", "DELETE")]
    assert [json.loads(row[2])["outbox_row"] for row in captured(conn)] == ["v", "w", "w"]
    assert list(json.loads(captured(conn)[0][2])) == [" a,%I ", "loc%", *ours, *(["made_ts"] if timestamps else [])]


def test_tables_with_long_names_have_functions_of_their_own(conn: psycopg.Connection) -> None:
    """A name is cut by bytes: two long names that begin alike are two attachments."""
    for last in "ab":
        conn.execute(sql.SQL("create table {} (id int primary key)").format(sql.Identifier("ü" * 31 + last)))
        conn.execute(sql.SQL("select outbox.attach({}, {})").format("ü" * 31 + last, last))
    for last in "ab":
        conn.execute(sql.SQL("insert into {} values (1)").format(sql.Identifier("ü" * 31 + last)))
    assert conn.execute("select resource from outbox.outbox order by seq").fetchall() == [("a",), ("b",)]


ALTERATIONS = (
    ("alter table t drop column gone", ["id", "note", "made_ts", "left_ts"]),
    ("alter table t add column extra text default 'x'", ["id", "note", "made_ts", "left_ts", "extra"]),
    ("alter table t add column more_ts timestamp default '2016-08-27 19:15:12.9'",
     ["id", "note", "made_ts", "left_ts", "extra", "more_ts"]),
    ("alter table t rename column left_ts to went_ts", ["id", "note", "made_ts", "went_ts", "extra", "more_ts"]),
    ("alter table t drop column went_ts", ["id", "note", "made_ts", "extra", "more_ts"]),
    ("alter table t alter column made_ts type bigint using 7", ["id", "note", "made_ts", "extra", "more_ts"]),
)  # fmt: skip


def test_an_altered_table_is_captured_as_it_is_now(every_db: str) -> None:
    """Columns come and go, and a write neither fails nor sends the columns of yesterday; attaching again agrees."""
    with psycopg.connect(every_db, autocommit=True) as conn:
        conn.execute(
            "create table t (id int primary key, gone text, note json, made_ts timestamptz, left_ts timestamp)"
        )
        conn.execute("select outbox.attach('t', 'thing')")
        write = 'insert into t (id, note, made_ts) values (%s, \'{ "made_ts" : "2016-08-27T19:15:12.9+00:00" }\', %s)'
        conn.execute(write, [0, "2016-08-27 19:15:12.9+00"])
        for number, (ddl, keys) in enumerate(ALTERATIONS, start=1):
            conn.execute(ddl.encode())
            made = 5 if "bigint" in ddl else "2016-08-27 19:15:12.9+00"
            conn.execute(write, [number, made])
            before = captured(conn)[-1][2]
            assert list(json.loads(before)) == keys
            assert json.loads(before)["made_ts"] == (5 if "bigint" in ddl else 1472325312)
            assert json.loads(before).get("more_ts", 1472325312) == 1472325312
            assert '"note":{ "made_ts" : "2016-08-27T19:15:12.9+00:00" },' in before
            conn.execute("update t set note = '1' where id = %s", [number])
            conn.execute("delete from t where id = %s", [number])
            assert [row[0] for row in captured(conn)[-2:]] == ["UPDATE", "DELETE"]
            with conn.transaction(force_rollback=True):
                conn.execute("select outbox.attach('t', 'thing')")
                conn.execute(write, [number, made])
                assert captured(conn)[-1][2] == before


ESCAPES = r'"\\", "\\\\", "\u0000", "\\u0000", "\\\u0041", "\ud800", "\n\u00e9\t\"\\e", "\\e\\u", "a\/b", "ü"'


@pytest.mark.parametrize("columns", ["null", r"""'{id,a_ts,j,"k\\"}'"""], ids=["all", "chosen"])
def test_an_altered_table_may_hold_any_json(every_db: str, columns: str) -> None:
    """PostgreSQL's own functions can not read all that a json column holds; the application's write must not fail."""
    with psycopg.connect(every_db, autocommit=True) as conn:
        conn.execute("""create table t (id int primary key, a_ts timestamptz, j json, "k\\" text, b int)""")
        conn.execute(f"select outbox.attach('t', 'thing', columns => {columns})".encode())
        insert = "insert into t (id, a_ts, j, \"k\\\") values (%s, '2016-08-27 19:15:12.9+00', %s, %s)"
        written = f'{{"a": [{ESCAPES}], "{chr(92)}u0000": 1}}'
        text = "".join(map(chr, range(1, 200))) + chr(92) + "u0000"
        for number, ddl in enumerate(("drop column b", "add column l_ts timestamp")):
            conn.execute(insert, [number, written, text])
            conn.execute(f"alter table t {ddl}".encode())
            conn.execute(insert, [10 + number, written, text])
            before, after = (row[2] for row in captured(conn)[-2:])
            assert after.replace(',"l_ts":null', "") == before.replace(',"b":null', "").replace(
                f'"id":{number}', f'"id":{10 + number}'
            )
            assert f',"a_ts":1472325312,"j":{written},' in after
            conn.execute("select outbox.attach('t', 'thing', columns => %s)".replace("%s", columns).encode())


def test_a_serializer_outlives_alterations(every_db: str) -> None:
    """A column more or less of the table whose row the serializer takes does not fail the application's write."""
    with psycopg.connect(every_db, autocommit=True) as conn:
        conn.execute("create table t (id int primary key, gone text, shown bytea)")
        conn.execute(
            "create function shape(r t) returns json language sql as "
            "$$ select json_build_object('id', r.id, 'shown', r.shown) $$"
        )
        conn.execute("select outbox.attach('t', 'thing', serializer => 'shape')")
        conn.execute("alter table t drop column gone")
        conn.execute("alter table t add column extra int[]")
        conn.execute("insert into t values (1, '\\x00ff', '{1}')")
        assert json.loads(captured(conn)[0][2]) == {"id": 1, "shown": "\\x00ff"}


def test_infinity_is_null(conn: psycopg.Connection) -> None:
    """A timestamp without epoch seconds does not fail the application's write, before or after an alteration."""
    conn.execute("create table t (id int primary key, a_ts timestamptz default 'infinity', b_ts timestamp)")
    conn.execute("select outbox.attach('t', 'thing')")
    conn.execute("insert into t values (1)")
    conn.execute("alter table t drop column b_ts")
    conn.execute("insert into t values (2)")
    assert [row[2] for row in captured(conn)] == ['{"id":1,"a_ts":null,"b_ts":null}', '{"id":2,"a_ts":null}']


@pytest.mark.parametrize("rows", [2, 51, 52, 200])
def test_small_and_large_updates_are_captured_alike(every_db: str, rows: int) -> None:
    """Keys that move on to each other's places, composite keys, nulls and long values: no branch sees it otherwise."""
    with psycopg.connect(every_db, autocommit=True) as conn:
        conn.execute("create table t (a int, b text, maybe text, long text, primary key (a, b))")
        conn.execute("select outbox.attach('t', 'thing')")
        conn.execute(
            "insert into t select i, 'k', case when i %% 2 = 0 then 'even' end, "
            "case when i = 2 then repeat('x', 1000000) end "
            "from generate_series(1, %s) i",
            [rows],
        )
        conn.execute("truncate outbox.outbox")
        conn.execute("update t set long = long || '' ")
        assert captured(conn) == []
        conn.execute("update t set maybe = null, long = long || case when a = 2 then 'y' end")
        changes = {row[1]: json.loads(row[2]) for row in captured(conn)}
        assert sorted(changes) == sorted(f"{i},k" for i in range(2, rows + 1, 2))
        assert changes["2,k"] == {"a": 2, "b": "k", "maybe": None, "long": "x" * 1_000_000 + "y"}
        conn.execute("truncate outbox.outbox")
        conn.execute("update t set a = a - 1, maybe = a::text")
        assert {row[1]: json.loads(row[2])["maybe"] for row in captured(conn)} == {
            f"{i},k": str(i + 1) for i in range(rows)
        }


@pytest.mark.parametrize("rows", [2, 60])
def test_swapped_keys_are_matched_by_key(every_db: str, rows: int) -> None:
    """Two rows that trade a deferrable key are told apart by the index that is checked at once."""
    with psycopg.connect(every_db, autocommit=True) as conn:
        conn.execute("create table t (id int not null unique deferrable, k int primary key)")
        conn.execute("select outbox.attach('t', 'thing')")
        conn.execute("insert into t select i, i from generate_series(1, %s) i", [rows])
        conn.execute("truncate outbox.outbox")
        conn.execute("update t set id = %s - id", [rows + 1])
        assert {row[1]: json.loads(row[2])["k"] for row in captured(conn)} == {
            str(i): rows + 1 - i for i in range(1, rows + 1)
        }


def test_a_virtual_generated_column_is_no_key_and_no_location(every_db: str) -> None:
    """A serializer does not make it readable to the trigger; one that is added later is null and breaks nothing."""
    with psycopg.connect(every_db, autocommit=True) as conn:
        if conn.info.server_version < 180_000:
            pytest.skip("virtual generated columns begin with PostgreSQL 18")
        conn.execute(
            "create table t (id int primary key, a_ts timestamptz, location_id text generated always as ('L'))"
        )
        conn.execute("create function shape(t) returns json language sql as 'select to_json($1)'")
        with pytest.raises(psycopg.errors.FeatureNotSupported, match='"location_id" is a virtual generated column'):
            conn.execute("select outbox.attach('t', 'thing', serializer => 'shape')")
        conn.execute("alter table t drop column location_id")
        conn.execute("select outbox.attach('t', 'thing')")
        conn.execute("alter table t add column twice int generated always as (id * 2)")
        conn.execute("insert into t values (1)")
        assert captured(conn)[0][2] == '{"id":1,"a_ts":null,"twice":null}'


async def test_the_command_says_that_a_virtual_column_does_not_fit(db: str, pg_version: int) -> None:
    """The user reads why and what to do instead of the database's error."""
    if pg_version < 18:
        pytest.skip("virtual generated columns begin with PostgreSQL 18")
    async with await psycopg.AsyncConnection.connect(db, autocommit=True) as conn:
        await conn.execute("create table t (id int primary key, twice int generated always as (id * 2))")
        with pytest.raises(UsageError, match=r"virtual generated column.*STORED"):
            await attach(conn, "t", "thing")


TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (TRACE, TRACE),
        ("", None),
        (TRACE.upper(), None),
        (TRACE + "\r\nx: y", None),
        (TRACE + "\n", None),
        ("ff" + TRACE[2:], None),
        ("00-" + "0" * 32 + TRACE[35:], None),
        (TRACE[:36] + "0" * 16 + "-01", None),
        ("nonsense", None),
    ],
)
def test_the_writers_trace_is_captured_where_it_is_one(
    contacts: psycopg.Connection, said: str, kept: str | None
) -> None:
    """What a transaction names as its traceparent stands beside its changes; what is none fails no write."""
    with contacts.transaction():
        contacts.execute("select set_config('outbox.traceparent', %s, true)", [said])
        contacts.execute("insert into contacts (id) values ('1')")
        contacts.execute("update contacts set last_name = 'x'")
        contacts.execute("delete from contacts")
    contacts.execute("insert into contacts (id) values ('2')")
    assert contacts.execute("select traceparent from outbox.outbox order by seq").fetchall() == [
        (kept,), (kept,), (kept,), (None,),
    ]  # fmt: skip


def test_the_writers_trace_is_captured_in_large_updates_and_of_altered_tables(every_db: str) -> None:
    """Each form of the trigger's statement has it."""
    with psycopg.connect(every_db, autocommit=True) as conn:
        conn.execute("create table t (id int primary key, a_ts timestamptz, n int)")
        conn.execute("select outbox.attach('t', 'thing')")
        conn.execute("insert into t select i from generate_series(1, 60) i")
        conn.execute("truncate outbox.outbox")
        with conn.transaction():
            conn.execute("select set_config('outbox.traceparent', %s, true)", [TRACE])
            conn.execute("update t set n = 1")
            conn.execute("alter table t add m int")
            conn.execute("update t set n = 2")
        found = conn.execute("select traceparent, count(*) from outbox.outbox group by 1").fetchall()
        assert found == [(TRACE, 120)]


# Columns and conditions.


def test_only_the_named_columns_are_sent(every_db: str) -> None:
    """In the table's order; the key and the location need not be among them; what only others show is no change."""
    with psycopg.connect(every_db, autocommit=True) as conn:
        conn.execute(
            "create table t (id int primary key, location_id text, made_ts timestamptz, secret text, name text)"
        )
        conn.execute("select outbox.attach('t', 'thing', columns => array['name', 'made_ts', 'name'])")
        conn.execute("insert into t values (1, 'L', '2016-08-27 19:15:12.9+00', 's', 'a')")
        conn.execute("update t set secret = 'other', location_id = 'M'")
        conn.execute("update t set name = 'b'")
        conn.execute("delete from t")
        rows = conn.execute("select type, resource_id, location_id, data::text from outbox.outbox order by seq")
        assert rows.fetchall() == [
            ("CREATE", "1", "L", '{"made_ts":1472325312,"name":"a"}'),
            ("UPDATE", "1", "M", '{"made_ts":1472325312,"name":"b"}'),
            ("DELETE", "1", "M", '{"made_ts":1472325312,"name":"b"}'),
        ]
        assert conn.execute("select columns from outbox.attachments").fetchone() == (["made_ts", "name"],)
        conn.execute("select outbox.attach('t', 'thing')")
        assert conn.execute("select columns, condition from outbox.attachments").fetchone() == (None, None)
        conn.execute("insert into t values (2)")
        assert list(json.loads(captured(conn)[-1][2])) == ["id", "location_id", "made_ts", "secret", "name"]


def test_named_columns_outlive_alterations(every_db: str) -> None:
    """One that is dropped is sent no more, one that is added neither, and no write fails."""
    with psycopg.connect(every_db, autocommit=True) as conn:
        conn.execute('create table t (id int primary key, "a,%s ""b" text default 1, c text, d_ts timestamp)')
        conn.execute("select outbox.attach('t', 'thing', columns => array['id', 'a,%s \"b', 'c', 'd_ts'])")
        for ddl, keys in (
            ("select 1", ["id", 'a,%s "b', "c", "d_ts"]),
            ("alter table t add e text default 'e'", ["id", 'a,%s "b', "c", "d_ts"]),
            ("alter table t drop c", ["id", 'a,%s "b', "d_ts"]),
            ("alter table t rename d_ts to f", ["id", 'a,%s "b']),
        ):
            conn.execute(ddl.encode())
            conn.execute("truncate t")
            conn.execute("insert into t values (1)")
            conn.execute("update t set id = 2 where id = 1")
            conn.execute("delete from t")
            assert [list(json.loads(row[2])) for row in captured(conn)[-3:]] == [keys] * 3
        conn.execute('alter table t drop "a,%s ""b"')
        conn.execute("alter table t rename id to key")
        with pytest.raises(psycopg.errors.UndefinedColumn):
            conn.execute("insert into t values (1)")


@pytest.mark.parametrize("others", [0, 100], ids=["few rows", "many rows"])
@pytest.mark.parametrize("altered", [False, True], ids=["as attached", "altered"])
def test_a_condition_shows_subscribers_the_rows_that_fulfil_it(every_db: str, others: int, *, altered: bool) -> None:
    """A row that comes to fulfil it is a CREATE, one that no longer does a DELETE with the last record that did.

    A row that a null leaves undecided does not fulfil it. One whose key changed is a DELETE and a CREATE.
    """
    with psycopg.connect(every_db, autocommit=True) as conn:
        conn.execute("create table t (id int primary key, total numeric, name text, made_ts timestamp, x int)")
        conn.execute("select outbox.attach('t', 'thing', condition => $$ total > 0 and name like '%%' -- drafts $$)")
        if altered:
            conn.execute("alter table t drop column x")

        def events(statement: str) -> list[tuple[Any, ...]]:
            conn.execute("truncate outbox.outbox")
            conn.execute(statement.replace("others", "or id > 1000").encode())
            rows = conn.execute(
                "select type, resource_id, (data ->> 'total')::int, data ->> 'name' from outbox.outbox"
                " where resource_id::int < 100 order by resource_id"
            )
            return rows.fetchall()

        conn.execute("insert into t select 1000 + i, 5, 'o' from generate_series(1, %s) i", [others])
        assert events("insert into t values (1, 5, 'a'), (2, 0, 'b'), (3, null, 'c')") == [("CREATE", "1", 5, "a")]
        assert events("update t set name = name || '2' where id < 4 others") == [("UPDATE", "1", 5, "a2")]
        assert events("update t set total = 7, name = 'd' where id in (2, 3) others") == [
            ("CREATE", "2", 7, "d"), ("CREATE", "3", 7, "d"),
        ]  # fmt: skip
        assert events("update t set total = -total, name = 'e' where id = 1 others") == [("DELETE", "1", 5, "a2")]
        assert events("update t set total = null, name = 'f' where id in (1, 2) others") == [("DELETE", "2", 7, "d")]
        assert events("update t set id = 9 where id = 3") == [("DELETE", "3", 7, "d"), ("CREATE", "9", 7, "d")]
        assert events("update t set id = 6, total = 0 where id = 9") == [("DELETE", "9", 7, "d")]
        assert events("update t set id = 9, total = 7 where id = 6") == [("CREATE", "9", 7, "d")]
        assert events("update t set id = 8 where id = 1") == []
        assert events("delete from t") == [("DELETE", "9", 7, "d")]


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("nope = 1", 'condition: column "nope" does not exist'),
        ("id", "condition: argument of CHECK must be type boolean"),
        ("id = 'x'", "condition: invalid input syntax"),
        ("id >", "condition: syntax error"),
        ("true) or (true", "condition: syntax error"),
        ("true, true", "condition: syntax error"),
        ("true); drop table t; select (true", "condition: cannot open multi-query plan as cursor"),
        ("true /*", "condition: unterminated"),
        ("exists (select from outbox.migrations)", "condition: cannot use subquery"),
        ("count(*) > 0", "condition: aggregate functions are not allowed"),
        ("generate_series(1, id) > 0", "condition: set-returning functions are not allowed"),
        ("random() > 0.5", r"condition: random\(\) can not be used"),
        ("public.mine(id)", r"condition: public.mine\(integer\) can not be used"),
        ("mine(id)", r"condition: function mine\(integer\) does not exist"),
        ("id operator(public.===) 1", r"condition: public.mine_equal\(integer,integer\) can not be used"),
        ("t.id = 1", 'condition: missing FROM-clause entry for table "t"'),
        ("tableoid > 0", "condition: the whole row and system columns can not be used"),
        ("outbox_row.id = 1", "condition: missing FROM-clause entry"),
        ("$1 = id", r"condition: there is no parameter \$1"),
    ],
)
def test_a_condition_that_is_none_is_refused(every_db: str, condition: str, message: str) -> None:
    """By attach, with its reason; nothing is left of the examination."""
    with psycopg.connect(every_db, autocommit=True) as conn:
        conn.execute("create table t (id int primary key)")
        conn.execute("create function mine(int) returns boolean immutable language sql as 'select true'")
        conn.execute("create function mine_equal(int, int) returns boolean immutable language sql as 'select true'")
        conn.execute("create operator === (leftarg = int, rightarg = int, function = mine_equal)")
        with pytest.raises(psycopg.errors.InvalidParameterValue, match=message):
            conn.execute("select outbox.attach('t', 'thing', condition => %s)", [condition])
        assert conn.execute("select count(*) from outbox.attachments").fetchone() == (0,)
        left = "select count(*) from pg_class where relname like 'condition%'"
        assert conn.execute(left.encode()).fetchone() == (0,)


def test_a_condition_may_use_what_postgres_has(every_db: str) -> None:
    """Types of one's own, literals of any content, a collation, functions that are no more than stable."""
    with psycopg.connect(every_db, autocommit=True) as conn:
        conn.execute("create type mood as enum ('sad', 'ok')")
        conn.execute("create domain word as text check (value <> '')")
        conn.execute(
            """
            create table t (
                id int primary key, feels mood, w word, j jsonb, at timestamptz, outbox_row text, c text collate "C",
                "a %s ""b" text default '%s', tg_op text default 'mine'
            )
            """
        )
        condition = """
            feels in ('ok') and w ~ '^x' and j ->> 'k' = 'it''s; 100%s' and at < now() and outbox_row is null
            and c > 'B' and "a %s ""b" = '%s' /* %s */ and tg_op = 'mine' and extract(year from at) > 2000
        """.strip()
        conn.execute("select outbox.attach('t', 'thing', columns => array['id'], condition => %s)", [condition])
        assert conn.execute("select condition from outbox.attachments").fetchone() == (condition,)
        conn.execute(
            """
            insert into t values (1, 'ok', 'xy', '{"k": "it''s; 100%s"}', '2020-01-01', null, 'a'),
                (2, 'sad', 'xy', null, null, null, 'a'), (3, 'ok', 'y', null, null, 'o', 'a')
            """
        )
        conn.execute("update t set j = '{}'")
        assert captured(conn) == [("CREATE", "1", '{"id":1}'), ("DELETE", "1", '{"id":1}')]


def test_a_condition_and_columns_of_a_virtual_column(every_db: str) -> None:
    """Columns that leave it out make a serializer needless; a condition can not use it."""
    with psycopg.connect(every_db, autocommit=True) as conn:
        if conn.info.server_version < 180_000:
            pytest.skip("virtual generated columns begin with PostgreSQL 18")
        conn.execute("create table t (id int primary key, n int, twice int generated always as (n * 2))")
        with pytest.raises(psycopg.errors.FeatureNotSupported, match='"twice" is a virtual generated column'):
            conn.execute("select outbox.attach('t', 'thing', columns => array['id'], condition => 'twice > 2')")
        with pytest.raises(psycopg.errors.FeatureNotSupported, match='virtual generated column "twice"'):
            conn.execute("select outbox.attach('t', 'thing', columns => array['id', 'twice'])")
        conn.execute("select outbox.attach('t', 'thing', columns => array['n'], condition => 'n * 2 > 2')")
        conn.execute("insert into t values (1, 1), (2, 2)")
        conn.execute("update t set n = 3 - n")
        assert captured(conn) == [("CREATE", "2", '{"n":2}'), ("CREATE", "1", '{"n":2}'), ("DELETE", "2", '{"n":2}')]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("columns => '{}'", "columns must name one column or more"),
        ("columns => array['id', null]", "columns must name one column or more"),
        ("columns => array['nope']", 'columns: public.t has no column "nope"'),
        ("columns => array['id'], serializer => 'shape'", "exclude each other"),
    ],
)
def test_columns_that_do_not_fit_are_refused(conn: psycopg.Connection, options: str, message: str) -> None:
    """By attach, with the reason."""
    conn.execute("create table t (id int primary key)")
    conn.execute("create function shape(t) returns json language sql as 'select to_json($1)'")
    with pytest.raises(psycopg.Error, match=message):
        conn.execute(f"select outbox.attach('t', 'thing', {options})".encode())
