"""What is replayed goes out again as it was, with a fresh budget and a counter that goes on, never twice at once."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest

from outbox.core.model import Dead, Delivered, Delivery, Outcome, Retry
from outbox.postgres import configs, history
from outbox.postgres import replay as module
from outbox.postgres.pool import Link
from outbox.postgres.replay import REPLAYABLE, replay
from outbox.postgres.selection import Filter, State
from tests.tried import add_config, attach_contacts, claim, route, settle, try_all

BOTH = Filter(states=REPLAYABLE)


@pytest.fixture
async def aconn(conn: psycopg.Connection, db: str) -> AsyncIterator[psycopg.AsyncConnection]:
    """A command's connection to a database whose contacts are attached."""
    attach_contacts(conn)
    link = Link(db, "test", settings=None)
    yield await link.connection()
    await link.drop()


def owed(conn: psycopg.Connection) -> list[tuple[Any, ...]]:
    return conn.execute("select * from outbox.deliveries order by event_id, config_id").fetchall()


@pytest.mark.parametrize("outcome", [Dead("status 500"), Delivered()])
async def test_a_replay_sends_the_same_event_and_counts_on(
    conn: psycopg.Connection, aconn: psycopg.AsyncConnection, outcome: Outcome
) -> None:
    """Id and bytes are the same; the next try has the next number and is the first of its budget, each time."""
    add_config(conn)
    conn.execute("insert into contacts values (1, 'L', 'Zoë')")
    await try_all(aconn, Retry(0, "status 503"))
    conn.execute("update outbox.deliveries set due_at = now()")
    conn.execute("update contacts set name = 'changed since'")
    [before] = [each for each in await try_all(aconn, outcome) if each.attempt == 2]
    for attempt in (3, 4):
        assert await replay(aconn, Filter(states=REPLAYABLE, event=before.event_id)) == 1
        [after] = await claim(aconn)
        assert (after.event_id, after.config_id, after.data) == (before.event_id, before.config_id, before.data)
        assert after.attempt == attempt
        assert after.attempt - after.attempts_uncounted == 1
        await settle(aconn, [after], outcome)


@pytest.mark.parametrize("outcome", [Dead("status 500"), Delivered()])
async def test_a_replay_during_a_replay_leaves_one_pending_copy(
    conn: psycopg.Connection, aconn: psycopg.AsyncConnection, outcome: Outcome
) -> None:
    """What is pending is not touched, waiting or in hand."""
    add_config(conn)
    conn.execute("insert into contacts values (1, 'L', 'x')")
    await try_all(aconn, outcome)
    assert await replay(aconn, BOTH) == 1
    waiting = owed(conn)
    assert await replay(aconn, BOTH) == 0
    assert owed(conn) == waiting
    await claim(aconn)
    in_hand = owed(conn)
    assert await replay(aconn, BOTH) == 0
    assert owed(conn) == in_hand


@pytest.mark.parametrize("outcome", [Dead("status 500"), Delivered()])
async def test_replays_at_the_same_moment_share_the_work(
    conn: psycopg.Connection, aconn: psycopg.AsyncConnection, db: str, outcome: Outcome
) -> None:
    """Neither waits for the other for ever, and each delivery is replayed by one of them."""
    add_config(conn)
    conn.execute("insert into contacts select i, 'L', 'x' from generate_series(1, 500) i")
    await try_all(aconn, outcome)
    async with AsyncExitStack() as ends:
        links = [Link(db, "test", settings=None) for _ in range(4)]
        for link in links:
            ends.push_async_callback(link.drop)
        done = await asyncio.gather(*[replay(await link.connection(), BOTH) for link in links])
    assert sum(done) == 500
    assert len(await claim(aconn)) == 500


async def test_a_dry_run_says_how_many_and_changes_nothing(
    conn: psycopg.Connection, aconn: psycopg.AsyncConnection
) -> None:
    """It says what the replay then does, in each state."""
    add_config(conn)
    conn.execute("insert into contacts values (1, 'L', 'x'), (2, 'L', 'x')")
    await try_all(aconn, Delivered())
    conn.execute("insert into contacts values (3, 'L', 'x')")
    await try_all(aconn, Dead("no"))
    before = owed(conn)
    for states, count in (((State.DEAD,), 1), ((State.DELIVERED,), 2), (REPLAYABLE, 3)):
        assert await replay(aconn, Filter(states=states), dry_run=True) == count
        assert owed(conn) == before
    assert await replay(aconn, BOTH) == 3


async def test_what_can_not_be_sent_is_not_replayed(conn: psycopg.Connection, aconn: psycopg.AsyncConnection) -> None:
    """Neither for a deleted config nor of an event that is no longer kept, by any filter; a paused one holds it."""
    paused, deleted = add_config(conn, "P"), add_config(conn, "D")
    conn.execute("insert into contacts values (1, 'P', 'x'), (2, 'D', 'x'), (3, 'P', 'gone')")
    tried = await try_all(aconn, Delivered())
    conn.execute("insert into contacts values (4, 'P', 'x'), (5, 'D', 'x'), (6, 'P', 'gone')")
    tried += await try_all(aconn, Dead("no"))
    await configs.pause(aconn, paused)
    conn.execute("update outbox.postback_configs set deleted_at = now() where id = %s", [deleted])
    conn.execute("""delete from outbox.events where data ->> 'name' = 'gone'""")
    for delivery in tried:
        keeps = delivery.config_id == paused and "gone" not in str(delivery.data)
        assert await replay(aconn, Filter(states=REPLAYABLE, event=delivery.event_id), dry_run=True) == keeps
    assert await replay(aconn, Filter(states=REPLAYABLE, config=deleted)) == 0
    assert await replay(aconn, BOTH) == 2
    assert await claim(aconn) == []
    await configs.resume(aconn, paused)
    assert {str(delivery.data) for delivery in await claim(aconn)} == {str(tried[0].data), str(tried[3].data)}


Choose = Callable[[list[Delivery], UUID], Filter]


@pytest.mark.parametrize(
    ("choose", "count"),
    [
        (lambda tried, _: Filter(event=tried[0].event_id), 2),
        (lambda tried, config: Filter(event=tried[0].event_id, config=config), 1),
        (lambda _, config: Filter(config=config), 3),
        (lambda _, config: Filter(config=config, states=[State.DEAD]), 1),
        (lambda _, __: Filter(record="1"), 2),
        (lambda _, config: Filter(record="1", resource="contact", config=config), 1),
        (lambda _, __: Filter(record="1", resource="transaction"), 0),
        (lambda tried, _: Filter(since=tried[0].event_created_at - timedelta(hours=1)), 6),
        (lambda tried, _: Filter(since=tried[0].event_created_at + timedelta(hours=1)), 0),
        (lambda tried, _: Filter(until=tried[0].event_created_at), 0),
    ],
)
async def test_each_filter_chooses(
    conn: psycopg.Connection, aconn: psycopg.AsyncConnection, choose: Choose, count: int
) -> None:
    """Filters are the lists' own."""
    config, _ = add_config(conn), add_config(conn)
    conn.execute("insert into contacts values (1, 'L', 'x'), (2, 'L', 'x')")
    tried = await try_all(aconn, Delivered())
    conn.execute("insert into contacts values (3, 'L', 'x')")
    await try_all(aconn, Dead("no"))
    chosen = choose(tried, config)
    assert len(await history.deliveries(aconn, chosen, limit=100)) == count
    assert await replay(aconn, chosen) == count
    assert len(await claim(aconn)) == count


async def test_a_replay_of_many_batches_meets_each_once(
    conn: psycopg.Connection, aconn: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches meet without gap or overlap, where all have one time and where each has its own."""
    monkeypatch.setattr(module, "_BATCH", 3)
    add_config(conn)
    conn.execute("insert into contacts select i, 'L', 'x' from generate_series(1, 10) i")
    await try_all(aconn, Delivered())
    for number in range(11, 18):
        conn.execute("insert into contacts values (%s, 'L', 'x')", [number])
        await try_all(aconn, Dead("no"))
    assert await replay(aconn, BOTH, dry_run=True) == 17
    assert await replay(aconn, BOTH) == 17
    assert len(await claim(aconn)) == 17


async def test_what_dies_again_during_the_replay_is_not_replayed_again(
    conn: psycopg.Connection, aconn: psycopg.AsyncConnection, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A subscriber that refuses at once can not keep a replay going for ever."""
    monkeypatch.setattr(module, "_BATCH", 2)
    add_config(conn)
    conn.execute("insert into contacts select i, 'L', 'x' from generate_series(1, 7) i")
    await try_all(aconn, Dead("no"))
    daemon = Link(db, "test")
    try:
        refusing = asyncio.create_task(keep_refusing(await daemon.connection()))
        assert await asyncio.wait_for(replay(aconn, BOTH), 30) == 7
        refusing.cancel()
        await asyncio.gather(refusing, return_exceptions=True)
    finally:
        await daemon.drop()


async def keep_refusing(conn: psycopg.AsyncConnection) -> Coroutine[Any, Any, None]:
    while True:
        await try_all(conn, Dead("no"))


async def test_a_replay_rings_for_a_sleeping_daemon(
    conn: psycopg.Connection, aconn: psycopg.AsyncConnection, db: str
) -> None:
    """A daemon that polls seldom hears of it at once; a dry run wakes nobody."""
    add_config(conn)
    conn.execute("insert into contacts values (1, 'L', 'x')")
    await route(aconn)
    await settle(aconn, await claim(aconn), Delivered())
    with psycopg.connect(db, autocommit=True) as sleeper:
        sleeper.execute("listen outbox")
        await replay(aconn, BOTH, dry_run=True)
        assert list(sleeper.notifies(timeout=0.1)) == []
        await replay(aconn, BOTH)
        assert len(list(sleeper.notifies(timeout=30, stop_after=1))) == 1
