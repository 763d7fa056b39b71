"""What a subscriber receives of related records: as they were when the change was written, on every try."""

from typing import Any

import psycopg
import pytest

from outbox.postgres.history import DeliveryKey, delivery
from outbox.postgres.pool import Link
from outbox.postgres.replay import REPLAYABLE, replay
from outbox.postgres.selection import Filter
from tests.daemons import add_config, attach_contacts, make_due, until_empty
from tests.receiver import Receiver, Status


@pytest.fixture
def contacts(conn: psycopg.Connection) -> psycopg.Connection:
    """A connection to a database whose contacts are attached and have tags and changelogs."""
    attach_contacts(conn)
    conn.execute("create table tags (contact_id int, tag text)")
    conn.execute(
        "create function tags_of(id text) returns json stable language sql as $$"
        " select to_json(array(select t.tag from public.tags t where t.contact_id = id::int order by 1)) $$"
    )
    conn.execute(
        "create function changelogs_of(id text) returns json language sql as"
        ' $$ select (\'{ "é\\u0000":"\' || id || \'", "b" : 1.50}\')::json $$'
    )
    conn.execute("select outbox.register_expand('contact', 'tags', 'tags_of')")
    conn.execute("select outbox.register_expand('contact', 'changelogs', 'changelogs_of')")
    return conn


def sent(receiver: Receiver, path: str) -> list[str]:
    """Return the data of each request to the path."""
    return [dict(each.form)["data"] for each in receiver.requests if each.path == path]


async def test_each_config_gets_what_it_asks_for_in_its_order(contacts: psycopg.Connection, db: str) -> None:
    """Embedded behind the record, byte for byte; one that asks for nothing gets the bare record. So it is shown."""
    with Receiver() as receiver:
        add_config(contacts, receiver.url_for("/both"), expands="tags, changelogs, unknown")
        add_config(contacts, receiver.url_for("/one"), expands="changelogs,name")
        add_config(contacts, receiver.url_for("/none"))
        contacts.execute("insert into tags values (1, 'new')")
        contacts.execute("insert into contacts (id, name) values (1, 'Zoë')")
        await until_empty(db)
        record, changelogs = '{"id":1,"location_id":"L","name":"Zoë"', '{ "é\\u0000":"1", "b" : 1.50}'
        assert sent(receiver, "/both") == [f'{record},"tags":["new"],"changelogs":{changelogs}}}']
        assert sent(receiver, "/one") == [f'{record},"changelogs":{changelogs}}}']
        assert sent(receiver, "/none") == [record + "}"]
        keys = contacts.execute("select event_id, config_id from outbox.attempts").fetchall()
        link = Link(db, "test", settings=None)
        shown = [await delivery(await link.connection(), DeliveryKey(*key)) for key in keys]
        await link.drop()
        assert {each.data for each in shown if each} == {dict(each.form)["data"] for each in receiver.requests}


@pytest.mark.parametrize("fields", [{}, {"strict_order": "hold"}], ids=["common", "governed"])
async def test_they_are_frozen_on_every_try_and_replay(
    contacts: psycopg.Connection, db: str, fields: dict[str, Any]
) -> None:
    """What was changed since, unregistered or dropped changes nothing of what is sent."""
    with Receiver() as receiver:
        receiver.answer("/", Status(500), Status(500), Status(200), Status(200))
        add_config(contacts, receiver.url_for("/"), expands="tags", number_of_attempts=2, **fields)
        contacts.execute("insert into tags values (1, 'then')")
        contacts.execute("insert into contacts values (1)")
        assert await until_empty(db) == 0
        contacts.execute("update tags set tag = 'now'")
        make_due(contacts)
        assert await until_empty(db) == 1
        contacts.execute("select outbox.unregister_expand('contact', 'tags')")
        contacts.execute("drop table tags cascade")
        link = Link(db, "test", settings=None)
        for _ in range(2):
            assert await replay(await link.connection(), Filter(states=REPLAYABLE)) == 1
            await until_empty(db)
        await link.drop()
        assert sent(receiver, "/") == ['{"id":1,"location_id":"L","name":null,"tags":["then"]}'] * 4


async def test_an_older_event_has_none_for_a_later_config(contacts: psycopg.Connection, db: str) -> None:
    """Nobody asked for them then; the record comes without."""
    with Receiver() as receiver:
        paused = add_config(contacts, receiver.url_for("/late"), paused_at="now")
        contacts.execute("insert into contacts values (1)")
        contacts.execute(
            "update outbox.postback_configs set expands = 'tags', paused_at = null, revision = 2 where id = %s",
            [paused],
        )
        contacts.execute("insert into contacts values (2)")
        await until_empty(db)
        assert sorted(sent(receiver, "/late")) == [
            '{"id":1,"location_id":"L","name":null}',
            '{"id":2,"location_id":"L","name":null,"tags":[]}',
        ]
