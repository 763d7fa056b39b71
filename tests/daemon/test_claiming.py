"""The claim beside the routes: it takes what they left, tells what they overtook, and leaves nothing to a lease."""

import asyncio
import datetime as dt
import time
from uuid import UUID

import psycopg
import pytest

from outbox.core.buffer import Buffer
from outbox.core.lane import Held
from outbox.core.model import Attempt, Delivered, Delivery
from outbox.daemon import rest as rest_module
from outbox.daemon.fetcher import RECHECK_SECONDS
from outbox.postgres import routing
from tests.daemons import add_config, add_contacts, captured, dispatching, owed
from tests.ids import config_id

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
MORE_THAN_ROOM = 40
"""Deliveries of one config: more than a route leases of one of whom nothing is known."""


async def test_a_claim_that_finds_all_slots_taken_is_owed(contacts: psycopg.Connection, db: str) -> None:
    """Routes beside it may have leased as many as there were slots before it came to reserve its own."""
    add_config(contacts, "http://127.0.0.1:9/")
    add_contacts(contacts, 1, 3)
    async with dispatching(db) as dispatcher:
        buffer, claimer = dispatcher._buffer, dispatcher._fetcher._claimer  # noqa: SLF001
        buffer.put(
            Held(Delivery(str(UUID(int=n)), config_id(1), 1, 0, NOW, 1, "CREATE", "contact", "{}"), NOW, 0.0, 1e12)
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
        add_config(contacts, "http://127.0.0.1:9/")
        add_contacts(contacts, 1, MORE_THAN_ROOM)
        await fetcher._router.look(await fetcher._link.connection())  # noqa: SLF001
        await claiming
        assert claimer.is_owed
        await claimer.claim()
        assert not claimer.is_owed


async def test_a_claim_that_found_nothing_rests_unless_a_route_leaves_something_due(
    contacts: psycopg.Connection, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside traffic that is leased as it is routed, each claim would find nothing, a hundred times a second."""
    monkeypatch.setattr(rest_module, "NOTHING_DUE_SECONDS", 3600.0)
    async with dispatching(db, poll_interval=7200.0) as dispatcher:
        fetcher = dispatcher._fetcher  # noqa: SLF001
        claimer = fetcher._claimer  # noqa: SLF001
        await claimer.claim()
        assert not claimer.is_possible
        add_config(contacts, "http://127.0.0.1:9/")
        add_contacts(contacts, 1, MORE_THAN_ROOM)
        await fetcher._router.look(await fetcher._link.connection())  # noqa: SLF001
        assert claimer.next_look < time.monotonic() + 60
        await asyncio.sleep(max(0.0, claimer.next_look - time.monotonic()))
        assert claimer.is_possible


async def test_a_claim_of_governed_configs_that_found_nothing_rests_unless_something_of_theirs_falls_due(
    contacts: psycopg.Connection, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the traffic of others, each would find nothing. A route ends the rest, or a settle that frees a change."""
    monkeypatch.setattr(rest_module, "NOTHING_DUE_SECONDS", 3600.0)
    add_config(contacts, "http://127.0.0.1:9/", strict_order="hold")
    async with dispatching(db, poll_interval=7200.0) as dispatcher:
        fetcher, settler = dispatcher._fetcher, dispatcher._settler  # noqa: SLF001
        claimer, conn = fetcher._governed_claimer, await fetcher._link.connection()  # noqa: SLF001
        monkeypatch.setattr(fetcher._intake, "_start_senders", lambda: None)  # noqa: SLF001
        await claimer.prepare(conn)

        async def claim() -> list[Delivery]:
            await asyncio.sleep(min(1.0, max(0.0, claimer.next_look - time.monotonic())))
            await claimer.claim(conn)
            return [held.delivery for held in dispatcher._buffer.withdraw()]  # noqa: SLF001

        assert await claim() == []
        assert claimer.next_look > time.monotonic() + 60
        add_contacts(contacts, 1, 1)
        contacts.execute("update contacts set name = 'b'")
        await fetcher._router.look(conn)  # noqa: SLF001
        [first] = await claim()
        settler.add(Attempt(first, Delivered(), 200, b"", 5, dt.datetime.now(dt.UTC)))
        await settler._settle(await settler._link.connection())  # noqa: SLF001
        [second] = await claim()
        assert (second.type, second.resource) == ("UPDATE", "contact")
        assert not claimer.is_owed


async def test_what_can_not_be_claimed_yet_is_not_looked_at_over_and_over(
    contacts: psycopg.Connection, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another daemon has an earlier change in an uncommitted route: nothing may go, or be parked, and all is due."""
    monkeypatch.setattr(rest_module, "NOTHING_DUE_SECONDS", 3600.0)
    add_config(contacts, "http://127.0.0.1:9/", strict_order="hold")
    add_contacts(contacts, 1, MORE_THAN_ROOM)
    with psycopg.connect(db) as other:
        other.execute("select from outbox.outbox order by seq limit 1 for update")
        async with dispatching(db, poll_interval=7200.0) as dispatcher:
            fetcher = dispatcher._fetcher  # noqa: SLF001
            conn = await fetcher._link.connection()  # noqa: SLF001
            while captured(contacts) > 1:
                await fetcher._router.look(conn)  # noqa: SLF001
            await fetcher._turn(conn)  # noqa: SLF001
            claimer = fetcher._governed_claimer  # noqa: SLF001
            assert claimer.is_owed
            assert claimer.next_look > time.monotonic() + 60
    assert owed(contacts) == [("pending", 0, False)] * (MORE_THAN_ROOM - 1)


async def test_whose_rules_are_new_is_found_when_they_are_learned(contacts: psycopg.Connection, db: str) -> None:
    """Nobody knew of a governed config when the route left it a change: it does not wait for the poll."""
    async with dispatching(db, poll_interval=3600.0) as dispatcher:
        fetcher = dispatcher._fetcher  # noqa: SLF001
        conn = await fetcher._link.connection()  # noqa: SLF001
        await fetcher._turn(conn)  # noqa: SLF001
        add_config(contacts, "http://127.0.0.1:9/", strict_order="hold")
        add_contacts(contacts, 1, 1)
        await fetcher._router.look(conn)  # noqa: SLF001
        seconds = fetcher._until_next_look()  # noqa: SLF001
        assert seconds <= RECHECK_SECONDS
        await asyncio.sleep(seconds)
        await fetcher._turn(conn)  # noqa: SLF001
        assert owed(contacts) == [("pending", 1, True)]


async def test_no_claim_that_rests_is_owed_for_the_sake_of_another(
    contacts: psycopg.Connection, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else two of them, each put off when it is the other's turn, would keep a daemon awake that has nothing to do."""
    monkeypatch.setattr(rest_module, "NOTHING_DUE_SECONDS", 3600.0)
    add_config(contacts, "http://127.0.0.1:9/", strict_order="hold")
    async with dispatching(db, poll_interval=7200.0) as dispatcher:
        fetcher = dispatcher._fetcher  # noqa: SLF001
        conn = await fetcher._link.connection()  # noqa: SLF001
        await fetcher._turn(conn)  # noqa: SLF001 - both claim, and rest
        await fetcher._turn(conn)  # noqa: SLF001 - neither may claim
        assert not fetcher._claimer.is_owed  # noqa: SLF001
        assert not fetcher._governed_claimer.is_owed  # noqa: SLF001


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


@pytest.mark.parametrize("is_nearly_full", [True, False])
async def test_a_claim_that_leaves_next_to_no_room_is_not_followed_at_once(
    contacts: psycopg.Connection, db: str, monkeypatch: pytest.MonkeyPatch, *, is_nearly_full: bool
) -> None:
    """It would bring few. It is owed, and made soon."""
    monkeypatch.setattr(rest_module, "NEARLY_FULL_SECONDS", 60.0)
    monkeypatch.setattr(Buffer, "is_nearly_full", is_nearly_full)
    monkeypatch.setattr(Buffer, "claimable", lambda *_: 2)
    for number in range(4):
        add_config(contacts, "http://127.0.0.1:9/", location_id=f"M{number}")
    contacts.execute("insert into contacts select number, 'M' || number from generate_series(0, 3) as number")
    async with dispatching(db, poll_interval=3600.0) as dispatcher:
        claimer = dispatcher._fetcher._claimer  # noqa: SLF001
        conn = await claimer.connect()
        await routing.route(conn, low=0, rows=4, slots=0, room=1, rooms={}, lease=60)
        await claimer.claim()
        assert sum(leased for _, _, leased in owed(contacts)) == 2
        assert claimer.is_owed
        assert claimer.is_possible is not is_nearly_full
        assert (claimer.next_look > time.monotonic()) is is_nearly_full
        assert claimer.next_look < time.monotonic() + 60
