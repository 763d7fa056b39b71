"""A flood: more is captured for some than they can take. It stays in the outbox, and others' changes pass it by."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from uuid import UUID

import psycopg
import pytest
from structlog.testing import capture_logs

from outbox.core import bypass
from outbox.daemon import router as router_module
from outbox.daemon.fetcher import Fetcher
from outbox.daemon.intake import BYTES_IN_HAND
from outbox.daemon.router import Router
from outbox.settings import Settings
from tests.daemons import (
    LOOPBACK,
    add_config,
    add_contacts,
    captured,
    dispatching,
    eventually,
    owed,
    running,
    until_empty,
)
from tests.receiver import Gate, Hang, Receiver, Status


def add_others(conn: psycopg.Connection, url: str) -> None:
    """Subscribe 300 other locations, M0 to M299."""
    for number in range(300):
        add_config(conn, url, location_id=f"M{number}")


def owed_to(conn: psycopg.Connection, config_id: UUID) -> int:
    row = conn.execute("select count(*) from outbox.deliveries where config_id = %s", [config_id]).fetchone()
    assert row is not None
    return int(row[0])


def leased_in(conn: psycopg.Connection, config_id: UUID | None = None) -> int:
    query = "select count(*) from outbox.deliveries where leased and config_id = coalesce(%s, config_id)"
    row = conn.execute(query, [config_id]).fetchone()
    assert row is not None
    return int(row[0])


async def flood(fetcher: Fetcher) -> psycopg.AsyncConnection:
    """Look until there is a flood, and no room for more of it; return the connection of the looks."""
    conn = await fetcher._link.connection()  # noqa: SLF001
    while not fetcher._router.is_put_off:  # noqa: SLF001
        await fetcher._router.look(conn)  # noqa: SLF001
    assert fetcher._router.is_flooded  # noqa: SLF001
    return conn


@contextlib.asynccontextmanager
async def flooded(db: str) -> AsyncIterator[tuple[Router, psycopg.AsyncConnection]]:
    """Give a router that has met a flood, and the connection of its looks."""
    async with dispatching(db, allow_networks=LOOPBACK) as dispatcher:
        yield dispatcher._fetcher._router, await flood(dispatcher._fetcher)  # noqa: SLF001


async def test_a_flood_stays_in_the_outbox_until_its_config_can_take_more(
    contacts: psycopg.Connection, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is routed sooner has to be claimed later. Some goes ahead, for who is slow must not fill the outbox."""
    monkeypatch.setattr(router_module, "AHEAD_SECONDS", 3600.0)
    with Receiver(default=Hang()) as receiver:
        add_config(contacts, receiver.url)
        add_contacts(contacts, 1, 3000)
        async with dispatching(db, allow_networks=LOOPBACK) as dispatcher:
            router, buffer = dispatcher._fetcher._router, dispatcher._buffer  # noqa: SLF001
            conn = await flood(dispatcher._fetcher)  # noqa: SLF001
            assert dispatcher.reading()["outbox_flooded_configs"] == {"": [1.0]}
            left, leased = captured(contacts), buffer.in_hand
            assert leased == leased_in(contacts) == Settings(dsn=db).max_in_flight_per_config
            assert left > 2000
            assert not await router.look(conn)
            assert router.is_put_off
            assert captured(contacts) == left
            router._stride.ahead_at = router._not_before = 0.0  # noqa: SLF001 - time has passed
            await router.look(conn)
            assert captured(contacts) < left - router_module.AHEAD_ROWS // 2
            assert leased_in(contacts) == leased


async def test_what_overtakes_a_flood_does_not_keep_it_in_the_outbox(
    contacts: psycopg.Connection, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many configs want that, and lease it: what is routed ahead of a slow subscriber is as much as before."""
    monkeypatch.setattr(router_module, "AHEAD_SECONDS", 3600.0)
    monkeypatch.setattr(router_module, "AHEAD_ROWS", 300)
    with Receiver(default=Hang()) as receiver:
        add_config(contacts, receiver.url)
        others = [add_config(contacts, receiver.url, location_id="M") for _ in range(60)]
        add_contacts(contacts, 1, 3000)
        contacts.execute("insert into contacts select number, 'M' from generate_series(3001, 3010) as number")
        async with flooded(db) as (router, conn):
            await router.overtake(conn)
            assert sum(leased_in(contacts, config_id) for config_id in others) > router_module.AHEAD_ROWS
            left = captured(contacts)
            router._stride.ahead_at = router._not_before = 0.0  # noqa: SLF001 - time has passed
            await router.look(conn)
            assert captured(contacts) < left - router_module.AHEAD_ROWS // 2


async def test_a_flood_before_what_must_keep_its_place_is_routed_sooner(
    contacts: psycopg.Connection, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A config with strict order must not wait for as long as a slow subscriber takes to let the flood go."""
    monkeypatch.setattr(router_module, "AHEAD_ROWS", 1)
    with Receiver() as receiver:
        receiver.answer("/slow", Hang())
        add_config(contacts, receiver.url_for("/slow"))
        add_config(contacts, receiver.url_for("/strict"), location_id="M", strict_order="hold")
        add_contacts(contacts, 1, 20_000)
        contacts.execute("insert into contacts values (20001, 'M')")
        async with running(db, drain_timeout=0.0):
            await receiver.wait_for_async(1, path="/strict")


async def test_what_stands_behind_a_flood_is_leased(
    contacts: psycopg.Connection, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever it is committed: each look goes on where the last ended, and now and then all is looked at again."""
    monkeypatch.setattr(bypass, "AGAIN_SECONDS", 0.0)
    monkeypatch.setattr(bypass, "SCAN", 1000)
    with Receiver(default=Hang()) as receiver, psycopg.connect(db) as late:
        add_config(contacts, receiver.url)
        other = add_config(contacts, receiver.url, location_id="M")
        add_contacts(contacts, 1, 3000)
        late.execute("insert into contacts values (5001, 'M')")
        add_contacts(contacts, 6000, 1000)
        async with flooded(db) as (router, conn):
            contacts.execute("insert into contacts values (5002, 'M')")
            for number in range(1000):
                if leased_in(contacts, other) == 2:
                    break
                if leased_in(contacts, other) == 1:
                    late.commit()  # the look was there already
                add_contacts(contacts, 10_000 + number, 1)  # it goes on meanwhile
                await router.overtake(conn)
                await asyncio.sleep(0.01)
            assert leased_in(contacts, other) == 2
            assert captured(contacts) > 3000


async def test_what_comes_last_behind_a_long_flood_is_looked_at_before_what_is_in_between(
    contacts: psycopg.Connection, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of which nothing is forgotten: each look at it is followed by one at what is new."""
    monkeypatch.setattr(bypass, "SCAN", 200)
    monkeypatch.setattr(bypass, "SCAN_BESIDE", 200)
    with Receiver(default=Hang()) as receiver:
        add_config(contacts, receiver.url)
        between = add_config(contacts, receiver.url, location_id="M")
        last = add_config(contacts, receiver.url, location_id="N")
        add_contacts(contacts, 1, 2000)
        contacts.execute("insert into contacts values (2001, 'M')")
        add_contacts(contacts, 2002, 2000)
        contacts.execute("insert into contacts values (5000, 'N')")
        async with flooded(db) as (router, conn):
            await router.overtake(conn)
            await router.overtake(conn)
            assert (leased_in(contacts, between), leased_in(contacts, last)) == (0, 1)
            for _ in range(60):
                if leased_in(contacts, between):
                    break
                await asyncio.sleep(0.01)
                await router.overtake(conn)
            assert leased_in(contacts, between) == 1
            assert captured(contacts) > 2000


@pytest.mark.parametrize("slots", [0, 50])
async def test_a_flood_is_routed_and_passed_also_with_few_slots(
    contacts: psycopg.Connection, db: str, slots: int
) -> None:
    """Nothing rings, and who hangs gives no slot back; large records use the slots up."""
    with Receiver(default=Hang()) as receiver:
        add_config(contacts, receiver.url)
        other = add_config(contacts, receiver.url, location_id="M")
        add_contacts(contacts, 1, 3000)
        contacts.execute("insert into contacts values (5000, 'M')")
        async with dispatching(db, allow_networks=LOOPBACK, poll_interval=3600.0) as dispatcher:
            fetcher, intake = dispatcher._fetcher, dispatcher._fetcher._intake  # noqa: SLF001
            conn = await flood(fetcher)
            in_hand, left = dispatcher._buffer.in_hand, captured(contacts)  # noqa: SLF001
            intake._record_bytes = BYTES_IN_HAND / (in_hand + slots + 0.5)  # noqa: SLF001
            assert intake.slots == slots
            while not owed_to(contacts, other) or captured(contacts) > left - router_module.AHEAD_ROWS:
                assert fetcher._router.is_flooded  # noqa: SLF001
                await fetcher._turn(conn)  # noqa: SLF001
                seconds = fetcher._until_next_look()  # noqa: SLF001
                assert seconds <= 1.0
                await asyncio.sleep(seconds)
            assert leased_in(contacts, other) == (slots > 0)


async def test_a_flood_among_which_others_are_captured_stays_in_the_outbox(
    contacts: psycopg.Connection, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look brings one for a config that has nothing in hand, and could take more."""
    monkeypatch.setattr(router_module, "AHEAD_SECONDS", 3600.0)
    with Receiver(default=Hang()) as receiver:
        flooded = add_config(contacts, receiver.url)
        add_others(contacts, receiver.url)
        contacts.execute(
            "insert into contacts select i, case when i % 20 = 0 then 'M' || i / 20 % 300 else 'L' end"
            " from generate_series(1, 6000) i"
        )
        async with dispatching(db, allow_networks=LOOPBACK) as dispatcher:
            conn = await flood(dispatcher._fetcher)  # noqa: SLF001
            assert leased_in(contacts, flooded) > Settings(dsn=db).max_in_flight_per_config // 2
            assert captured(contacts) > 4000
            await dispatcher._fetcher._router.overtake(conn)  # noqa: SLF001
            await dispatcher._fetcher._router.overtake(conn)  # noqa: SLF001
            assert captured(contacts) > 4000
            assert len(owed(contacts)) == owed_to(contacts, flooded) + 300


async def test_what_nobody_wants_does_not_have_a_flood_passed_from_its_beginning(
    contacts: psycopg.Connection, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look that brings nothing else ends the flood, as far as one can see, and a later one finds it again."""
    monkeypatch.setattr(bypass, "SCAN", 2000)
    monkeypatch.setattr(bypass, "NEXT_TO_NOTHING", -1.0)
    monkeypatch.setattr(router_module, "AHEAD_SECONDS", 0.0)
    with Receiver(default=Hang()) as receiver:
        add_config(contacts, receiver.url)
        other = add_config(contacts, receiver.url, location_id="M")
        contacts.execute(
            "insert into contacts select i, case when i / 1000 % 2 = 0 then 'L' else 'X' end"
            " from generate_series(1, 12000) i"
        )
        async with dispatching(db, allow_networks=LOOPBACK) as dispatcher:
            router = dispatcher._fetcher._router  # noqa: SLF001
            conn = await dispatcher._fetcher._link.connection()  # noqa: SLF001
            began = ended = False
            while not (ended and router.is_flooded):
                for _ in range(6):
                    if router.may_overtake:
                        await router.overtake(conn)
                await router.look(conn)
                began |= router.is_flooded
                ended |= began and not router.is_flooded
                assert captured(contacts) > 2 * bypass.SCAN
            contacts.execute("insert into contacts values (13000, 'M')")
            await asyncio.sleep(max(bypass.PAUSE))
            await router.overtake(conn)
            assert owed_to(contacts, other) == 1


async def test_where_much_is_for_others_it_is_no_flood(
    contacts: psycopg.Connection, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passing by what one config is owed would take longer than routing it."""
    monkeypatch.setattr(router_module, "AHEAD_SECONDS", 3600.0)
    with Receiver(default=Hang()) as receiver:
        add_config(contacts, receiver.url)
        add_others(contacts, receiver.url)
        contacts.execute(
            "insert into contacts select i, case when i % 2 = 0 then 'M' || i % 300 else 'L' end"
            " from generate_series(1, 3000) i"
        )
        async with dispatching(db, allow_networks=LOOPBACK) as dispatcher:
            fetcher = dispatcher._fetcher  # noqa: SLF001
            conn = await fetcher._link.connection()  # noqa: SLF001
            async with asyncio.timeout(30):
                while captured(contacts):
                    await fetcher._router.look(conn)  # noqa: SLF001
                    await asyncio.sleep(0)


@pytest.mark.parametrize("slots", [1, 2, 3, 50])
async def test_a_turn_with_few_slots_left_by_a_flood_is_followed_by_a_rest(
    contacts: psycopg.Connection, db: str, monkeypatch: pytest.MonkeyPatch, slots: int
) -> None:
    """Also where a quarter of them is none: a claim that took no slot would be tried again at once."""
    monkeypatch.setattr(router_module, "AHEAD_SECONDS", 3600.0)
    with Receiver(default=Hang()) as receiver:
        add_config(contacts, receiver.url)
        add_contacts(contacts, 1, 3000)
        async with dispatching(db, allow_networks=LOOPBACK) as dispatcher:
            fetcher = dispatcher._fetcher  # noqa: SLF001
            conn = await flood(fetcher)
            in_hand = dispatcher._buffer.in_hand  # noqa: SLF001
            fetcher._intake._record_bytes = BYTES_IN_HAND / (in_hand + slots + 0.5)  # noqa: SLF001
            assert fetcher._intake.slots == slots  # noqa: SLF001
            await fetcher._turn(conn)  # noqa: SLF001
            assert fetcher._router.is_flooded  # noqa: SLF001
            assert fetcher._intake.is_full or fetcher._claimer.next_look > 0  # noqa: SLF001


async def test_a_change_is_sent_before_the_flood_that_it_stands_behind(
    contacts: psycopg.Connection, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else lets it pass: no more of the flood is routed than is sent."""
    monkeypatch.setattr(router_module, "AHEAD_ROWS", 1)
    with Receiver() as receiver:
        receiver.answer("/flooded", Status(200, delay=0.02))
        add_config(contacts, receiver.url_for("/flooded"))
        add_config(contacts, receiver.url_for("/other"), location_id="M")
        add_contacts(contacts, 1, 4000)
        contacts.execute("insert into contacts values (5000, 'M')")
        async with running(db, max_in_flight_per_config=20):
            await receiver.wait_for_async(1, path="/other")
            assert sum(each.path == "/flooded" for each in receiver.requests) < 3000
            await eventually(lambda: not captured(contacts) and not owed(contacts))
        assert Counter(each.path for each in receiver.requests) == {"/flooded": 4000, "/other": 1}


async def test_a_flood_that_lasts_is_told_of(contacts: psycopg.Connection, db: str) -> None:
    """Once when it has lasted, and once when it is over: an operator sees whose batch lies in the outbox."""
    gate = Gate()
    with Receiver(default=gate) as receiver, capture_logs() as lines:
        config = add_config(contacts, receiver.url)
        add_contacts(contacts, 1, 8000)
        async with running(db, request_timeout=60.0):
            await eventually(lambda: any(line["event"] == "flood.began" for line in lines))
            gate.open()
            await eventually(lambda: any(line["event"] == "flood.ended" for line in lines))
    began, ended = [line for line in lines if line["event"].startswith("flood.")][:2]
    assert (began["event"], began["configs"], began["config_ids"]) == ("flood.began", 1, [str(config)])
    assert ended["event"] == "flood.ended"
    assert ended["seconds"] >= 1.0


async def test_a_flood_ends_when_asked_to_run_until_nothing_is_owed(contacts: psycopg.Connection, db: str) -> None:
    """And each of its changes is sent once, by whichever of two daemons."""
    with Receiver() as receiver:
        add_config(contacts, receiver.url_for("/"))
        add_config(contacts, receiver.url_for("/both"), location_id=None)
        add_contacts(contacts, 1, 2500)
        await asyncio.gather(until_empty(db), until_empty(db))
        assert captured(contacts) == 0
        assert not owed(contacts)
        assert Counter(each.path for each in receiver.requests) == {"/": 2500, "/both": 2500}
