"""The claim beside the routes: it takes what they left, tells what they overtook, and leaves nothing to a lease."""

import asyncio
import datetime as dt
from uuid import UUID

import psycopg
import pytest

from outbox.core.lane import Held
from outbox.core.model import Delivery
from outbox.daemon import router as router_module
from tests.daemons import add_config, add_contacts, attach_contacts, dispatching, owed

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


@pytest.fixture
def contacts(conn: psycopg.Connection) -> psycopg.Connection:
    """A connection to a database whose contacts are attached."""
    attach_contacts(conn)
    return conn


async def test_a_claim_that_finds_all_slots_taken_is_owed(contacts: psycopg.Connection, db: str) -> None:
    """Routes beside it may have leased as many as there were slots before it came to reserve its own."""
    add_config(contacts, "http://127.0.0.1:9/")
    add_contacts(contacts, 1, 3)
    async with dispatching(db) as dispatcher:
        buffer, claimer = dispatcher._buffer, dispatcher._fetcher._claimer  # noqa: SLF001
        buffer.put(
            Held(Delivery(str(UUID(int=n)), UUID(int=1), 1, 0, NOW, 1, "CREATE", "contact", "{}"), NOW, 0.0, 1e12)
            for n in range(buffer.slots)
        )
        await claimer.claim()
        assert claimer.is_owed
        buffer.withdraw()
        await claimer.claim()
        assert not claimer.is_owed


async def test_what_a_route_leaves_behind_a_claim_is_looked_at_again(contacts: psycopg.Connection, db: str) -> None:
    """The claim's snapshot is older, so that it came to the last config says nothing of it."""
    async with dispatching(db) as dispatcher:
        fetcher = dispatcher._fetcher  # noqa: SLF001
        claimer = fetcher._claimer  # noqa: SLF001
        await claimer.connect()
        claiming = asyncio.create_task(claimer.claim())
        await asyncio.sleep(0)  # it waits for the answer now
        add_config(contacts, "http://127.0.0.1:9/", strict_order="hold")  # what is owed to it is not leased at once
        add_contacts(contacts, 1, 1)
        await fetcher._router.look(await fetcher._link.connection())  # noqa: SLF001
        await claiming
        assert claimer.is_owed
        await claimer.claim()
        assert not claimer.is_owed


async def test_no_route_is_made_while_nothing_rings_but_one_before_the_sleep(
    contacts: psycopg.Connection, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was captured before the bell was up rings nobody, and may commit after the last route."""
    monkeypatch.setattr(router_module, "QUIET_SECONDS", 3600.0)
    async with dispatching(db, poll_interval=7200.0) as dispatcher:
        fetcher, tally = dispatcher._fetcher, dispatcher._tally  # noqa: SLF001
        conn = await fetcher._link.connection()  # noqa: SLF001
        await fetcher._look_once_more(conn)  # noqa: SLF001 - raises the bell
        await fetcher._turn(conn)  # noqa: SLF001 - finds nothing
        add_contacts(contacts, 1, 1)  # nobody listens here
        fetcher._claimer.not_before = 0.0  # noqa: SLF001 - so that no claim is owed, for which it would look again
        await fetcher._turn(conn)  # noqa: SLF001
        assert tally.routed == 0
        assert 0 < fetcher._until_next_look() <= 3600  # noqa: SLF001 - also with something in hand
        await fetcher._look_once_more(conn)  # noqa: SLF001
        assert tally.routed == 1
        await fetcher._turn(conn)  # noqa: SLF001
        add_contacts(contacts, 2, 1)
        dispatcher.ring()
        await fetcher._turn(conn)  # noqa: SLF001
        assert tally.routed == 2


async def test_what_is_fetched_after_the_stop_is_given_back(contacts: psycopg.Connection, db: str) -> None:
    """Nobody would send it any more, and its lease keeps it from the other daemons."""
    add_config(contacts, "http://127.0.0.1:9/")
    add_contacts(contacts, 1, 3)
    async with dispatching(db) as dispatcher:
        fetcher, settler = dispatcher._fetcher, dispatcher._settler  # noqa: SLF001
        dispatcher.stop()
        await fetcher._turn(await fetcher._link.connection())  # noqa: SLF001
        assert dispatcher._buffer.in_hand == 0  # noqa: SLF001
        settler.end()
        await settler.run()
    assert owed(contacts) == [("pending", 0, False)] * 3
