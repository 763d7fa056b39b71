"""Related records are taken in the writer's transaction, for who asks for them; a fault in that fails no write."""

import json
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from tests.servers import role

SHOP = """
    create table contacts (id int primary key, location_id text default 'L', name text, a_ts timestamptz);
    create table tags (contact_id int, tag text);
    create function tags_of(id text) returns json stable language sql as
        $$ select to_json(array(select t.tag from public.tags t where t.contact_id = id::int order by 1)) $$;
    create function logs_of(id text) returns jsonb stable language sql as $$ select jsonb_build_object('of', id) $$;
    create function fails(id text) returns json language plpgsql as $$ begin raise 'no %', id; end $$;
"""


@pytest.fixture
def shop(every_db: str) -> Any:  # noqa: ANN401 - a generator
    """A connection to a database whose contacts are attached; they have tags."""
    with psycopg.connect(every_db, autocommit=True) as conn:
        conn.execute(SHOP)
        conn.execute("select outbox.attach('contacts', 'contact')")
        yield conn


def register(conn: psycopg.Connection, name: str, function: str, resource: str = "contact") -> None:
    conn.execute("select outbox.register_expand(%s, %s, %s)", [resource, name, function])


def ask(conn: psycopg.Connection, expands: str, **fields: object) -> None:
    """Add a config that asks for these expands."""
    columns = {"location_id": "L", "resource": "contact", "url": "http://x/", "expands": expands, **fields}
    query = "insert into outbox.postback_configs ({}) values ({})"
    conn.execute(query.format(", ".join(columns), ", ".join(["%s"] * len(columns))).encode(), list(columns.values()))


def taken(conn: psycopg.Connection) -> list[str | None]:
    """Return the expansions of what was captured, and forget it."""
    rows = conn.execute("with o as (delete from outbox.outbox returning *) select expansions::text from o order by seq")
    return [row[0] for row in rows]


def test_what_a_config_asks_for_is_taken_at_that_moment(shop: psycopg.Connection) -> None:
    """Of each kind of change, in small statements, in large ones and of an altered table; not what comes later."""
    register(shop, "tags", "tags_of")
    register(shop, "logs", "logs_of")
    ask(shop, "tags, logs")
    shop.execute("insert into tags values (1, 'a'), (1, 'b')")
    shop.execute("insert into contacts values (1), (2)")
    assert taken(shop) == ['{"logs":{"of": "1"},"tags":["a","b"]}', '{"logs":{"of": "2"},"tags":[]}']
    with shop.transaction():
        shop.execute("update contacts set name = 'x' where id = 1")
        shop.execute("delete from tags")
        shop.execute("update contacts set name = 'y' where id = 1")
        shop.execute("delete from contacts where id = 1")
    assert [json.loads(each or "")["tags"] for each in taken(shop)] == [["a", "b"], [], []]
    shop.execute("insert into contacts select i from generate_series(10, 100) i")
    shop.execute("update contacts set name = 'x'")
    shop.execute("alter table contacts add more int")
    shop.execute("update contacts set name = 'y' where id > 50")
    found = taken(shop)
    assert (len(found), None in found) == (91 + 92 + 50, False)


def test_nothing_is_taken_that_no_matching_config_asks_for(shop: psycopg.Connection) -> None:
    """Only the expands of configs that will get the change: active, of its location, its account and its kind."""
    register(shop, "tags", "tags_of")
    register(shop, "logs", "logs_of")
    shop.execute("insert into contacts values (1)")
    ask(shop, "")
    ask(shop, "unknown")
    ask(shop, "tags", is_active=False)
    ask(shop, "tags", deleted_at="now()")
    ask(shop, "tags", location_id="M")
    ask(shop, "tags", on_create=False, on_update=False)
    ask(shop, "tags", product_transaction_id="P")
    ask(shop, "tags", resource="other")
    shop.execute("insert into contacts values (2, 'L'), (3, 'N')")
    shop.execute("update contacts set name = 'x' where id = 1")
    assert taken(shop) == [None] * 4
    shop.execute("delete from contacts where id = 1")
    ask(shop, "unknown,logs", location_id=None)
    shop.execute("insert into contacts values (4, 'N'), (5, 'M')")
    assert taken(shop) == ['{"tags":[]}', '{"logs":{"of": "4"}}', '{"logs":{"of": "5"},"tags":[]}']


def test_an_expand_that_fails_is_left_out_and_fails_no_write(shop: psycopg.Connection) -> None:
    """The others are taken, the change is captured, and the server's log has a warning; null is a value."""
    shop.execute("create function null_of(id text) returns json language sql as 'select null::json'")
    shop.execute("create function wide(id text) returns json language sql as $$ select E' \n{ \"a\" :1} '::json $$")
    shop.execute("create function gone(id text) returns json language sql as 'select null::json'")
    for name, function in (("t", "tags_of"), ("f", "fails"), ("n", "null_of"), ("w", "wide"), ("g", "gone")):
        register(shop, name, function)
    shop.execute("drop function gone")
    ask(shop, "f,t,n,w,g")
    said: list[str] = []
    shop.add_notice_handler(lambda notice: said.append(notice.message_primary or ""))
    shop.execute("insert into contacts values (1)")
    assert taken(shop) == ['{"n":null,"t":[],"w":{ "a" :1}}']
    assert said[0] == 'outbox: the expand "f" of the record "1" was not taken: no 1'
    assert said[1].startswith('outbox: the expand "g" of the record "1" was not taken: function public.gone')


def test_registering_once_more_replaces_and_unregistering_ends_it(shop: psycopg.Connection) -> None:
    """The view has what is registered; the capture of the resource is as it was before, and keeps its options."""
    shop.execute(
        "select outbox.attach('contacts', 'contact', location => '', columns => array['id', 'a_ts'],"
        " condition => 'id > 0', key => 'id')"
    )
    options = b"select * from outbox.attachments"
    body = b"select prosrc from pg_proc where proname = 'capture_contacts'"
    before = shop.execute(options).fetchall(), shop.execute(body).fetchall()
    ask(shop, "tags", location_id=None)
    register(shop, "tags", "fails")
    register(shop, "tags", "tags_of")
    register(shop, "logs", "logs_of")
    register(shop, "tags", "tags_of", "50% 'other'")
    assert shop.execute('select * from outbox.expands order by resource collate "C", name').fetchall() == [
        ("50% 'other'", "tags", "public.tags_of"),
        ("contact", "logs", "public.logs_of"),
        ("contact", "tags", "public.tags_of"),
    ]
    shop.execute("insert into contacts values (1)")
    assert taken(shop) == ['{"tags":[]}']
    assert shop.execute(options).fetchall() == before[0]
    unregister = b"select outbox.unregister_expand('contact', %s)"
    assert [shop.execute(unregister, [name]).fetchone() for name in ("tags", "tags")] == [(True,), (False,)]
    shop.execute("insert into contacts values (2)")
    assert taken(shop) == [None]
    shop.execute(unregister, ["logs"])
    assert (shop.execute(options).fetchall(), shop.execute(body).fetchall()) == before
    assert shop.execute("select resource, name from outbox.expands").fetchall() == [("50% 'other'", "tags")]


def test_tables_and_partitions_of_the_resource_follow(shop: psycopg.Connection) -> None:
    """Those that are attached before, and those that are attached after; each change is captured once."""
    shop.execute("create table p (id int primary key) partition by range (id)")
    shop.execute("create table p1 partition of p for values from (0) to (10) partition by range (id)")
    shop.execute("create table p11 partition of p1 for values from (0) to (10)")
    shop.execute("select outbox.attach('p', 'part', location => '')")
    register(shop, "logs", "logs_of", "part")
    ask(shop, "logs", resource="part")
    ask(shop, "logs", resource="part", location_id=None)
    shop.execute("create table q (id int primary key)")
    shop.execute("select outbox.attach('q', 'part')")
    shop.execute("insert into p values (0); insert into p1 values (1)")
    shop.execute("insert into p11 values (2); insert into q values (3)")
    assert taken(shop) == [f'{{"logs":{{"of": "{number}"}}}}' for number in range(4)]
    assert shop.execute("select count(distinct function) from outbox.attachments").fetchone() == (3,)
    shop.execute("select outbox.attach('q', 'thing')")
    shop.execute("insert into q values (5)")
    assert taken(shop) == [None]


def test_a_serializer_whose_name_another_function_has_too_is_kept(shop: psycopg.Connection) -> None:
    """The table is attached anew with the one that takes its row."""
    shop.execute(
        "create function short(contacts) returns json language sql as 'select json_build_object(''i'', $1.id)'"
    )
    shop.execute("select outbox.attach('contacts', 'contact', serializer => 'short')")
    shop.execute("create function short(int) returns json language sql as 'select to_json($1)'")
    register(shop, "logs", "logs_of")
    ask(shop, "logs")
    shop.execute("insert into contacts values (1)")
    rows = shop.execute("select data::text, expansions::text from outbox.outbox").fetchall()
    assert rows == [('{"i" : 1}', '{"logs":{"of": "1"}}')]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("('contact', 'a,b', 'tags_of')", "name must have 1 to 128"),
        ("('contact', '', 'tags_of')", "name must have 1 to 128"),
        ("('contact', null, 'tags_of')", "name must have 1 to 128"),
        ("('', 'tags', 'tags_of')", "resource must have 1 to 128"),
        ("('contact', 'tags', null)", "function: null must take one text"),
        ("('contact', 'tags', 'pg_backend_pid')", "function: pg_backend_pid must take one text"),
        ("('contact', 'tags', 'array_to_json')", "more than one function"),
        ("('contact', 'tags', 'json_agg')", "must take one text"),
    ],
)
def test_what_can_not_be_registered_says_why(shop: psycopg.Connection, call: str, message: str) -> None:
    """A wrong registration fails with its reason, and nothing is registered."""
    with pytest.raises(psycopg.Error, match=message):
        shop.execute(f"select outbox.register_expand{call}".encode())
    assert shop.execute("select * from outbox.expands").fetchall() == []


def test_the_application_needs_no_right_on_the_configs(shop: psycopg.Connection) -> None:
    """Expands are taken with the rights of the outbox's owner, whoever writes; nobody else may call what takes them."""
    register(shop, "tags", "tags_of")
    ask(shop, "tags")
    with role(shop, make_conninfo(shop.info.dsn, host=shop.info.host)) as (app, dsn):
        shop.execute(f'grant select, insert on contacts to "{app}"'.encode())
        with psycopg.connect(dsn) as conn:
            conn.execute("insert into contacts (id) values (1)")
        assert taken(shop) == ['{"tags":[]}']
        query = (
            "select has_function_privilege(%s, p.oid, 'EXECUTE') from pg_proc p"
            " where p.pronamespace = 'outbox'::regnamespace and p.proname ~ 'expand'"
        )
        assert set(shop.execute(query, [app]).fetchall()) == {(False,)}


def test_a_statement_that_is_cancelled_is_cancelled(shop: psycopg.Connection) -> None:
    """A slow expand ends with the writer's own statement_timeout, and nothing is written."""
    shop.execute("create function slow(id text) returns json language sql as 'select to_json(pg_sleep(60)::text)'")
    register(shop, "slow", "slow")
    ask(shop, "slow")
    dsn = make_conninfo(shop.info.dsn, options="-c statement_timeout=200ms", host=shop.info.host)
    with psycopg.connect(dsn) as writer, pytest.raises(psycopg.errors.QueryCanceled):
        writer.execute("insert into contacts values (1)")
    assert shop.execute("select count(*) from contacts").fetchone() == (0,)


def test_a_write_reads_no_config_of_another_location(shop: psycopg.Connection) -> None:
    """However many there are that ask for expands: the writer would wait for each of them."""
    register(shop, "tags", "tags_of")
    shop.execute(
        "insert into outbox.postback_configs (location_id, resource, url, expands) "
        "select 'M' || i, 'contact', 'http://x/', 'tags' from generate_series(1, 5000) i"
    )
    ask(shop, "tags")
    shop.execute("analyze outbox.postback_configs")
    with shop.transaction():
        shop.execute("insert into contacts values (1)")
        row = shop.execute(
            "select seq_tup_read + idx_tup_fetch from pg_stat_xact_user_tables where relname = 'postback_configs'"
        ).fetchone()
    assert row is not None
    assert row[0] < 50
    assert taken(shop) == ['{"tags":[]}']
