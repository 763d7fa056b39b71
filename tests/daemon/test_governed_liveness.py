"""A record that is blocked costs its config's other records nothing."""

import asyncio
from typing import Any

import psycopg
import pytest

from outbox.daemon.dispatcher import Dispatcher
from outbox.daemon.doorbell import LATE_LOOKS
from outbox.daemon.outage import Outage
from outbox.daemon.targets import Targets
from outbox.http.sender import Sender
from outbox.postgres.governed import LOOKED_AT
from outbox.secrets import SecretBox
from outbox.settings import Settings
from tests.daemons import (
    add_config,
    attach_contacts,
    doorbell_is_up,
    eventually,
    make_due,
    owed,
    running,
    until_empty,
)
from tests.receiver import Receiver, Status


async def test_a_long_line_behind_a_dead_change_holds_no_other_record(conn: psycopg.Connection, db: str) -> None:
    """One claim looks at so many; what is due behind them is looked at by the next, before the daemon rests or ends."""
    attach_contacts(conn)
    with Receiver(default=Status(204)) as receiver:
        receiver.answer("/in", Status(422), Status(204))
        config = add_config(conn, receiver.url_for("/in"), strict_order="hold")
        conn.execute("insert into contacts (id, name) values (1, 'a')")
        assert await until_empty(db) == 1
        conn.execute(
            "insert into outbox.outbox (type, resource, resource_id, location_id, data) "
            """select 'UPDATE', 'contact', '1', 'L', '{"id":1}' from generate_series(1, %s)""",
            [5 * LOOKED_AT],
        )
        await until_empty(db)
        make_due(conn)
        conn.execute("update outbox.postback_configs set paused_at = now() where id = %s", [config])
        conn.execute("insert into contacts (id, name) values (2, 'b')")
        await until_empty(db)
        conn.execute("update outbox.postback_configs set paused_at = null where id = %s", [config])
        await until_empty(db)
        assert [each.data["id"] for each in receiver.requests] == [1, 2]


@pytest.mark.parametrize("fields", [{"rate_limit": 4}, {"strict_order": "hold"}], ids=["paced", "in order"])
async def test_what_waits_for_its_turn_does_not_wait_for_the_poll(
    conn: psycopg.Connection, db: str, fields: dict[str, Any]
) -> None:
    """Or who polls seldom would get a second's worth, or one change of a record, in each interval."""
    attach_contacts(conn)
    with Receiver() as receiver:
        add_config(conn, receiver.url, **fields)
        for number in range(10):
            conn.execute(
                "insert into contacts (id, name) values (1, %s) on conflict (id) do update set name = excluded.name",
                [str(number)],
            )
        async with running(db, poll_interval=3600.0):
            await eventually(lambda: len(receiver.requests) == 10)
        names = [each.data["name"] for each in receiver.requests]
        assert "rate_limit" in fields or names == sorted(names)


async def test_a_change_that_was_parked_for_less_than_the_one_before_it_takes_goes_after_it(
    conn: psycopg.Connection, db: str
) -> None:
    """It is due when the settle comes, and no claim has seen that."""
    attach_contacts(conn)
    with Receiver(default=Status(204, delay=1.3)) as receiver:
        add_config(conn, receiver.url, strict_order="hold")
        async with running(db, poll_interval=3600.0):
            await eventually(lambda: doorbell_is_up(conn))
            await asyncio.sleep(2 * max(LATE_LOOKS))  # the daemon has done all that it does unasked
            conn.execute("insert into contacts (id, name) values (1, 'a')")
            await eventually(lambda: any(leased for _, _, leased in owed(conn)))
            conn.execute("update contacts set name = 'b'")
            await receiver.wait_for_async(2)


async def test_once_nothing_is_governed_nothing_is_waited_for(db: str) -> None:
    """What the last look at governed configs left open keeps nobody from ending, or from sleeping."""
    settings = Settings(dsn=db)
    async with Sender.of(settings) as sender, asyncio.timeout(30):
        dispatcher = Dispatcher(settings, sender, Targets(SecretBox(())), Outage())
        fetcher = dispatcher._fetcher  # noqa: SLF001 - the moment in between is not to be had from outside
        claimer = fetcher._governed_claimer  # noqa: SLF001
        claimer.note_woken()
        claimer._refilled_at = 0.0  # noqa: SLF001
        await dispatcher.run(until_empty=True)
