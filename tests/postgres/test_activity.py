"""A look at what the outbox does just now, on a real Postgres."""

from collections.abc import AsyncIterator
from uuid import UUID

import psycopg
import pytest

from outbox.core.activity import Look, Tries, totals
from outbox.core.model import Dead, Delivered, Retry
from outbox.postgres import activity, figures
from outbox.postgres.pool import Link, connected
from tests.tried import add_config, attach_contacts, claim, route, settle

TRIED = """
insert into outbox.attempts (event_id, config_id, number, at, event_created_at, duration_ms, outcome)
select gen_random_uuid(), %(config)s, 1, now() - make_interval(secs => %(ago)s), now(), %(ms)s, %(outcome)s
from generate_series(1, %(count)s)
"""


@pytest.fixture
async def aconn(conn: psycopg.Connection, db: str) -> AsyncIterator[psycopg.AsyncConnection]:
    """A connection as `outbox top` has it, to a database whose contacts are attached."""
    attach_contacts(conn)
    async with connected(db, "command", settings=figures.SETTINGS) as opened:
        yield opened


def add_contacts(conn: psycopg.Connection, *ids: int, location: str = "L") -> None:
    conn.execute("insert into contacts select i, %s, 'x' from unnest(%s::int[]) i", [location, list(ids)])


def tried(
    conn: psycopg.Connection, config: UUID, count: int, *, ago: float, ms: int = 5, outcome: str = "delivered"
) -> None:
    conn.execute(TRIED, {"config": config, "count": count, "ago": ago, "ms": ms, "outcome": outcome})


async def test_an_empty_outbox_has_nothing(aconn: psycopg.AsyncConnection) -> None:
    """No config, no event and no daemon are no fault."""
    found = await activity.look(aconn)
    assert found == Look(
        at=found.at, captured=0, unrouted=0, oldest_unrouted_s=0.0, configs=(), daemons=()
    )  # fmt: skip
    assert found.at > 1_600_000_000


async def test_each_delivery_is_counted_once(conn: psycopg.Connection, aconn: psycopg.AsyncConnection) -> None:
    """It is due, in flight, waiting for its next try, held, or dead. What a deleted config left behind is nothing."""
    config, other, deleted = add_config(conn), add_config(conn, "M"), add_config(conn, "L")
    add_contacts(conn, 1, 2, 3)
    add_contacts(conn, 4, 5, location="M")
    conn.execute("update outbox.postback_configs set deleted_at = now() where id = %s", [deleted])
    await route(aconn)
    first, second, *rest = await claim(aconn)
    await settle(aconn, [first], Retry(300, "status 500"))
    await settle(aconn, [second], Dead("status 500"))
    add_contacts(conn, 6, 7, 8)
    await route(aconn)
    add_contacts(conn, 9)
    conn.execute("update outbox.postback_configs set paused_at = now() where id = %s", [other])
    conn.execute("update outbox.deliveries set due_at = now() - interval '1 hour' where not leased and attempts = 0")
    conn.execute("update outbox.outbox set created_at = now() - interval '2 hours'")
    found = await activity.look(aconn)
    by_id = {each.id: each for each in found.configs}
    assert set(by_id) == {config, other}
    ours = by_id[config]
    assert (ours.pending, ours.due, ours.in_flight, ours.retrying, ours.held, ours.dead) == (5, 3, 1, 1, 0, 1)
    assert 3600 <= ours.oldest_due_s < 3700
    assert ours.url == "http://127.0.0.1:9/hook"
    theirs = by_id[other]
    assert (theirs.pending, theirs.due, theirs.in_flight, theirs.retrying, theirs.held) == (2, 0, 2, 0, 0)
    assert len(rest) == 3
    sums = totals(found, None)
    assert (sums.unrouted, sums.due, sums.in_flight, sums.retrying, sums.held, sums.dead) == (1, 3, 3, 1, 0, 1)
    assert 7200 <= sums.oldest_s < 7300


async def test_what_is_captured_is_numbered_on_whether_routed_or_not(
    conn: psycopg.Connection, aconn: psycopg.AsyncConnection
) -> None:
    """Routing changes no number, so that what comes in is told while no daemon runs, too."""
    add_contacts(conn, 1, 2, 3)
    first = await activity.look(aconn)
    await route(aconn)
    assert (await activity.look(aconn)).captured == first.captured
    add_contacts(conn, *range(10, 5010))
    second = await activity.look(aconn)
    assert second.captured == first.captured + 5000
    assert (first.unrouted, second.unrouted) == (3, 5000)
    await route(aconn)
    assert (await activity.look(aconn)).captured == second.captured


async def test_tries_are_those_of_the_last_minute_and_the_newest_of_many(
    conn: psycopg.Connection, aconn: psycopg.AsyncConnection
) -> None:
    """Those that ended of late are counted by when they ended; where there are too many, how far they reach is told."""
    config, busy, idle = add_config(conn), add_config(conn), add_config(conn)
    tried(conn, config, 4, ago=3, ms=20)
    tried(conn, config, 3, ago=40)
    tried(conn, config, 2, ago=31, ms=30_000, outcome="retry")
    tried(conn, config, 1, ago=30, outcome="dead")
    tried(conn, config, 50, ago=90)
    tried(conn, idle, 5, ago=3600)
    tried(conn, busy, 2500, ago=4)
    tried(conn, busy, 2500, ago=8)
    found = {each.id: each for each in (await activity.look(aconn)).configs}
    assert found[config].delivered == Tries(7, 4, None)
    assert found[config].failed == Tries(3, 2, None)
    assert found[config].p95_ms == 30_000
    assert (found[idle].delivered, found[idle].failed, found[idle].p95_ms) == (
        Tries(0, 0, None),
        Tries(0, 0, None),
        None,
    )
    span = found[busy].delivered.span
    assert found[busy].delivered == Tries(2000, 2000, span)
    assert span is not None
    assert 4 <= span < 8
    assert found[busy].p95_ms == 5


async def test_a_delivered_one_is_a_try_that_is_seen_at_once(
    conn: psycopg.Connection, aconn: psycopg.AsyncConnection
) -> None:
    """What settle writes is what is read."""
    add_config(conn)
    add_contacts(conn, 1, 2)
    await route(aconn)
    await settle(aconn, await claim(aconn), Delivered())
    [found] = (await activity.look(aconn)).configs
    assert (found.pending, found.delivered) == (0, Tries(2, 2, None))


async def test_daemons_are_the_sessions_that_fetch(db: str, aconn: psycopg.AsyncConnection) -> None:
    """One for each process, by the name that we give it or by the DSN's own; never the one that looks."""
    links = [Link(db, "fetch"), Link(db, "fetch"), Link(db, "settle")]
    pids = [(await each.connection()).info.backend_pid for each in links]
    try:
        found = (await activity.look(aconn)).daemons
        assert sorted(each.pid for each in found) == sorted(pids[:2])
        assert all(each.since is not None for each in found)
        named = (await activity.look(aconn, application_name="outbox settle")).daemons
        assert sorted(each.pid for each in named) == sorted(pids)
        assert len((await activity.look(aconn, application_name="outbox command")).daemons) == 2
    finally:
        for link in links:
            await link.drop()


async def test_history_is_not_read(conn: psycopg.Connection, aconn: psycopg.AsyncConnection) -> None:
    """However many tries a day has, looks read a few pages of them, also while no statistics tell of the many."""
    config = add_config(conn)
    conn.execute(
        "insert into outbox.attempts (event_id, config_id, number, at, event_created_at, duration_ms, outcome) "
        "select gen_random_uuid(), %s, 1, now() - make_interval(secs => 120 + i / 10.0), now(), 5, 'delivered' "
        "from generate_series(1, 50000) i",
        [config],
    )
    conn.execute("select pg_stat_force_next_flush()")
    before, size = pages(conn)
    for _ in range(3):
        assert (await activity.look(aconn)).configs[0].delivered.count == 0
    await aconn.execute("select pg_stat_force_next_flush()")
    assert size > 500
    assert pages(conn)[0] - before < size / 2


def pages(conn: psycopg.Connection) -> tuple[int, int]:
    """Return how many pages of tries and of their indexes were read so far, and how many the tries have."""
    row = conn.execute(
        "select sum(s.heap_blks_read + s.heap_blks_hit + s.idx_blks_read + s.idx_blks_hit)::bigint, "
        "sum(pg_relation_size(s.relid) / current_setting('block_size')::int)::bigint "
        "from pg_statio_user_tables as s where s.schemaname = 'outbox' and s.relname like 'attempts%'"
    ).fetchone()
    assert row is not None
    return row[0], row[1]
