"""A transaction that captures much, and takes long: others are not kept waiting by it, and nothing of it is lost."""

import asyncio
from typing import Any

import psycopg
import pytest

from outbox.core import low_water
from outbox.postgres import routing
from tests.daemons import add_config, add_contacts, captured, doorbell_is_up, eventually, owed, running, until_empty
from tests.receiver import Receiver, Status

A_LONG_TIME = 3600.0


def last_seq(conn: psycopg.Connection) -> int:
    row = conn.execute("select last_value from outbox.outbox_seq_seq").fetchone()
    assert row is not None
    return int(row[0])


@pytest.fixture
def lows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Above which seq each route looked so far."""
    seqs: list[int] = []
    route = routing.route

    async def noting(*arguments: Any, low: int, **named: Any) -> routing.Routed:  # noqa: ANN401 - whatever it takes
        seqs.append(low)
        return await route(*arguments, low=low, **named)

    monkeypatch.setattr(routing, "route", noting)
    return seqs


@pytest.mark.parametrize("quick_seconds", [low_water.QUICK_SECONDS, -1.0])
async def test_no_route_reads_through_what_is_under_way(
    contacts: psycopg.Connection, db: str, monkeypatch: pytest.MonkeyPatch, lows: list[int], quick_seconds: float
) -> None:
    """Once something behind it was routed. When it is committed all of it is found, wherever one looks for it."""
    monkeypatch.setattr(low_water, "QUICK_SECONDS", quick_seconds)
    monkeypatch.setattr(low_water, "REACH", 100)
    with Receiver() as receiver, psycopg.connect(db) as large:
        add_config(contacts, receiver.url)
        async with running(db, poll_interval=A_LONG_TIME):
            await eventually(lambda: doorbell_is_up(contacts))
            add_contacts(large, 1, 5)
            large.execute("insert into contacts select i, 'X' from generate_series(11, 2000) i")
            add_contacts(large, 6, 5)
            add_contacts(contacts, 3001, 1)
            await receiver.wait_for_async(1)
            await asyncio.sleep(2 * low_water.TRAIL_SECONDS)
            routes, behind = len(lows), last_seq(contacts)
            for number in range(3002, 3012):
                add_contacts(contacts, number, 1)
                await receiver.wait_for_async(number - 3000)
                await eventually(lambda: not owed(contacts))
            assert min(lows[routes:]) >= behind - 100
            await asyncio.sleep(2 * low_water.TRAIL_SECONDS)  # the mark is behind all of it by then
            large.commit()
            await receiver.wait_for_async(11 + 10)
            await eventually(lambda: not owed(contacts) and not captured(contacts))
        assert len(receiver.requests) == 11 + 10


async def test_who_commits_late_is_found_while_others_keep_the_daemon_busy(
    contacts: psycopg.Connection, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is never idle, so nothing but time has it look below the mark."""
    monkeypatch.setattr(low_water, "MISSING_SECONDS", 0.0)
    with Receiver() as receiver, psycopg.connect(db) as late:
        add_config(contacts, receiver.url_for("/others"))
        add_config(contacts, receiver.url_for("/late"), location_id="M")
        async with running(db, poll_interval=A_LONG_TIME):
            await eventually(lambda: doorbell_is_up(contacts))
            late.execute("insert into contacts values (1, 'M')")
            number = 1
            while number < 100:
                number += 1
                add_contacts(contacts, number, 1)
                await asyncio.sleep(2 * low_water.TRAIL_SECONDS / 100)
            late.commit()
            while not any(each.path == "/late" for each in receiver.requests):
                assert number < 5000
                number += 1
                add_contacts(contacts, number, 1)
                await asyncio.sleep(0.005)
            await receiver.wait_for_async(number)


async def test_a_look_below_that_is_cut_off_is_made_again_before_all_is_done(
    contacts: psycopg.Connection, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `--until-empty` nothing else would find what was committed late."""
    monkeypatch.setattr(low_water, "TRAIL_SECONDS", 0.0)
    monkeypatch.setattr(low_water, "MISSING_SECONDS", 0.0)
    lowest, cut = routing.lowest, list[int]()

    async def cut_off_once(conn: psycopg.AsyncConnection, *, up_to: int) -> int | None:
        if not cut:
            cut.append(conn.info.backend_pid)
            contacts.execute("select pg_terminate_backend(%s, 5000)", cut)
        return await lowest(conn, up_to=up_to)

    monkeypatch.setattr(routing, "lowest", cut_off_once)
    with Receiver() as receiver, psycopg.connect(db) as late:
        receiver.answer("/", Status(200, delay=0.3))
        add_config(contacts, receiver.url_for("/"))
        add_contacts(late, 1, 1)
        add_contacts(contacts, 2, 1)
        done = asyncio.create_task(until_empty(db))
        await receiver.wait_for_async(1)
        late.commit()
        await done
        assert cut
        assert not owed(contacts)
        assert not captured(contacts)
        assert len(receiver.requests) == 2


async def test_the_changes_of_a_record_keep_their_order_across_the_mark(
    contacts: psycopg.Connection, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is committed late, when the mark has passed it, and the second at once."""
    monkeypatch.setattr(low_water, "TRAIL_SECONDS", 0.0)
    monkeypatch.setattr(low_water, "MISSING_SECONDS", 0.0)
    with Receiver() as receiver, psycopg.connect(db) as late:
        add_config(contacts, receiver.url_for("/strict"), strict_order="hold")
        add_config(contacts, receiver.url_for("/others"), location_id="M")
        contacts.execute("set outbox.suppress = 'on'")
        add_contacts(contacts, 1, 1)
        contacts.execute("set outbox.suppress = 'off'")
        wanted = []
        async with running(db, poll_interval=A_LONG_TIME):
            for turn in range(10):
                late.execute("update contacts set name = %s where id = '1'", [f"first {turn}"])
                for number in range(10):
                    contacts.execute("insert into contacts values (%s, 'M')", [1000 + 10 * turn + number])
                    await asyncio.sleep(0.005)
                late.commit()
                contacts.execute("update contacts set name = %s where id = '1'", [f"second {turn}"])
                wanted += [f"first {turn}", f"second {turn}"]
                await receiver.wait_for_async(len(wanted), path="/strict")
        got = [each.data["name"] for each in receiver.requests if each.path == "/strict"]
        assert got == wanted
