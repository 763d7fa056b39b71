"""What is replayed goes out again as it was, with a fresh budget and a counter that goes on, never twice at once."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest

from outbox.core.model import Dead, Delivered, Delivery, Outcome, Retry
from outbox.postgres import configs, history
from outbox.postgres.pool import Link
from outbox.postgres.replay import REPLAYABLE, batches, ending, replay, total
from outbox.postgres.selection import Filter, State
from tests.tried import add_config, attach_contacts, claim, route, settle, try_all

BOTH = Filter(states=REPLAYABLE)


@pytest.fixture(autouse=True)
def _contacts(conn: psycopg.Connection) -> None:
    attach_contacts(conn)


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
        keeps = delivery.config_id == str(paused) and "gone" not in str(delivery.data)
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


async def in_batches(conn: psycopg.AsyncConnection, chosen: Filter, *, size: int, dry_run: bool = False) -> list[int]:
    chosen = await ending(conn, chosen)
    return [count async for count in batches(conn, chosen, size=size, dry_run=dry_run)]


async def test_a_replay_of_many_batches_meets_each_once(
    conn: psycopg.Connection, aconn: psycopg.AsyncConnection
) -> None:
    """Batches meet without gap or overlap, where all have one time and where each has its own."""
    add_config(conn)
    conn.execute("insert into contacts select i, 'L', 'x' from generate_series(1, 10) i")
    await try_all(aconn, Delivered())
    for number in range(11, 18):
        conn.execute("insert into contacts values (%s, 'L', 'x')", [number])
        await try_all(aconn, Dead("no"))
    assert sum(await in_batches(aconn, BOTH, size=3, dry_run=True)) == 17
    done = await in_batches(aconn, BOTH, size=3)
    assert (sum(done), max(done)) == (17, 3)
    assert len(await claim(aconn)) == 17


async def test_what_dies_again_during_the_replay_is_not_replayed_again(
    conn: psycopg.Connection, aconn: psycopg.AsyncConnection, db: str
) -> None:
    """A subscriber that refuses at once can not keep a replay going for ever."""
    add_config(conn)
    conn.execute("insert into contacts select i, 'L', 'x' from generate_series(1, 7) i")
    await try_all(aconn, Dead("no"))
    daemon = Link(db, "test")
    try:
        refusing = asyncio.create_task(keep_refusing(await daemon.connection()))
        assert sum(await asyncio.wait_for(in_batches(aconn, BOTH, size=2), 30)) == 7
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


@pytest.mark.parametrize("outcome", [Dead("no"), Delivered()])
async def test_a_replay_that_was_broken_off_goes_on_with_what_is_left(
    conn: psycopg.Connection, aconn: psycopg.AsyncConnection, outcome: Outcome
) -> None:
    """What was done stays done. With the same end, what was tried again since is not replayed twice."""
    add_config(conn), add_config(conn)
    conn.execute("insert into contacts select i, 'L', 'x' from generate_series(1, 5) i")
    await try_all(aconn, outcome)
    chosen = await ending(aconn, BOTH)
    begun = batches(aconn, chosen, size=3)
    assert await anext(begun) == 3
    await begun.aclose()
    assert len(await try_all(aconn, outcome)) == 3
    assert sum([count async for count in batches(aconn, chosen, size=3)]) == 7
    assert {each.attempt for each in await claim(aconn)} == {2}
    assert sum([count async for count in batches(aconn, chosen, size=3)]) == 0


async def test_the_total_of_dead_ones_is_what_a_replay_does(
    conn: psycopg.Connection, aconn: psycopg.AsyncConnection
) -> None:
    """By config, location and time; anything else is not counted before, as it would have to be looked for."""
    config, other = add_config(conn), add_config(conn, "M")
    conn.execute("insert into contacts values (1, 'L', 'x'), (2, 'L', 'x'), (3, 'M', 'x')")
    [first, *_] = await try_all(aconn, Dead("no"))
    dead = await ending(aconn, Filter(states=[State.DEAD]))
    for chosen, count in (
        (dead, 3),
        (replace(dead, config=config), 2),
        (replace(dead, config=other), 1),
        (replace(dead, locations=["M"]), 1),
        (replace(dead, since=dead.until), 0),
        (replace(dead, until=first.event_created_at - timedelta(hours=1)), 0),
    ):
        assert await total(aconn, chosen) == count
        assert sum([each async for each in batches(aconn, chosen, dry_run=True)]) == count
    for chosen in (replace(dead, states=REPLAYABLE), replace(dead, event=first.event_id), replace(dead, record="1")):
        assert await total(aconn, chosen) is None


@pytest.mark.parametrize("outcome", [Dead("no"), Delivered()])
@pytest.mark.parametrize("by", ["nothing", "event", "record", "resource", "config"])
async def test_only_what_is_of_the_locations_is_replayed(
    conn: psycopg.Connection, aconn: psycopg.AsyncConnection, outcome: Outcome, by: str
) -> None:
    """By whatever filter, and whoever else was told of the event."""
    mine, theirs, of_all = add_config(conn), add_config(conn), add_config(conn)
    conn.execute("insert into contacts values (1, 'L', 'x')")
    [tried, *_] = await try_all(aconn, outcome)
    conn.execute("update outbox.postback_configs set location_id = 'M' where id = %s", [theirs])
    conn.execute("update outbox.postback_configs set location_id = null where id = %s", [of_all])
    narrowed: dict[str, dict[str, Any]] = {
        "nothing": {}, "event": {"event": tried.event_id}, "record": {"record": "1"},
        "resource": {"resource": "contact"}, "config": {"config": theirs},
    }  # fmt: skip
    chosen = Filter(states=REPLAYABLE, locations=["L"], **narrowed[by])
    replayed = [] if by == "config" else [mine]
    assert await replay(aconn, replace(chosen, locations=[])) == 0
    assert await replay(aconn, chosen, dry_run=True) == len(replayed)
    assert await replay(aconn, chosen) == len(replayed)
    assert [UUID(each.config_id) for each in await claim(aconn)] == replayed


@pytest.mark.parametrize("outcome", [Dead("no"), Delivered()])
async def test_a_config_that_leaves_the_locations_is_left_alone_from_then_on(
    conn: psycopg.Connection, aconn: psycopg.AsyncConnection, outcome: Outcome
) -> None:
    """Each statement that acts asks for the location itself: what was looked up before it does not count."""
    config = add_config(conn)
    conn.execute("insert into contacts select i, 'L', 'x' from generate_series(1, 5) i")
    await try_all(aconn, outcome)
    begun = batches(aconn, await ending(aconn, Filter(states=REPLAYABLE, locations=["L"])), size=2)
    assert await anext(begun) == 2
    conn.execute("update outbox.postback_configs set location_id = 'M' where id = %s", [config])
    assert sum([count async for count in begun]) == 0
