"""What a config was never owed is made once, in the order of capture, and only what it wants."""

import asyncio
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from uuid import UUID, uuid4

import psycopg
import pytest

from outbox.core.model import Dead, Delivered, Outcome, Retry
from outbox.postgres import configs
from outbox.postgres.missing import batches, period
from outbox.postgres.pool import Link
from tests.tried import attach_contacts, claim, route, settle, try_all


@pytest.fixture(autouse=True)
def _contacts(conn: psycopg.Connection) -> None:
    attach_contacts(conn)


def add_config(conn: psycopg.Connection, **fields: object) -> UUID:
    columns = {"location_id": "L", "resource": "contact", "url": "http://127.0.0.1:9/hook", **fields}
    names, marks = ", ".join(columns), ", ".join(["%s"] * len(columns))
    query = f"insert into outbox.postback_configs ({names}) values ({marks}) returning id"  # noqa: S608 - our own names
    row = conn.execute(query.encode(), list(columns.values())).fetchone()
    assert row is not None
    return UUID(str(row[0]))


async def make(
    conn: psycopg.AsyncConnection,
    config: UUID,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    record: str | None = None,
    dry_run: bool = False,
    size: int = 1000,
) -> int:
    gap = await period(conn, config, since=since, until=until, record=record)
    assert gap is not None
    return sum([count async for count in batches(conn, gap, size=size, dry_run=dry_run)])


def data(conn: psycopg.Connection) -> list[str]:
    """Return what is pending, in the order of capture."""
    rows = conn.execute(
        "select e.data ->> 'name' from outbox.deliveries as d join outbox.events as e on e.id = d.event_id"
        " where d.state = 'pending' order by e.id"
    ).fetchall()
    return [name for (name,) in rows]


async def test_a_config_that_came_later_gets_what_happened_before(
    conn: psycopg.Connection, aconn: psycopg.AsyncConnection
) -> None:
    """Frozen as it was, as a first try with its whole budget; asked again, nothing is missing any more."""
    conn.execute("insert into contacts values (1, 'L', 'Zoë')")
    conn.execute("update contacts set name = 'changed since'")
    await route(aconn)
    config = add_config(conn)
    assert await make(aconn, config, dry_run=True) == 2
    assert data(conn) == []
    assert await make(aconn, config) == 2
    assert await make(aconn, config) == 0
    first, second = await claim(aconn)
    assert (first.data, first.type) == ('{"id":1,"location_id":"L","name":"Zoë"}', "CREATE")
    assert (first.attempt, first.attempts_uncounted, second.type) == (1, 0, "UPDATE")


@pytest.mark.parametrize("outcome", [None, Retry(300, "status 503"), Dead("no"), Delivered()])
async def test_what_was_owed_once_is_not_missing(
    conn: psycopg.Connection, aconn: psycopg.AsyncConnection, outcome: Outcome | None
) -> None:
    """Waiting, dead or delivered: it is left as it is."""
    config = add_config(conn)
    conn.execute("insert into contacts values (1, 'L', 'x')")
    await route(aconn)
    if outcome is not None:
        await settle(aconn, await claim(aconn), outcome)
    before = conn.execute("select * from outbox.deliveries").fetchall()
    assert await make(aconn, config) == 0
    assert conn.execute("select * from outbox.deliveries").fetchall() == before


@pytest.mark.parametrize(
    ("wants", "names"),
    [
        ({}, ["L-Create", "L-Update", "L-Update"]),
        ({"on_create": False}, ["L-Update", "L-Update"]),
        ({"on_update": False}, ["L-Create", "L-Update"]),
        ({"on_delete": False}, ["L-Create", "L-Update"]),
        ({"location_id": None}, ["L-Create", "M-Create", "L-Update", "L-Update"]),
        ({"location_id": "N"}, []),
        ({"resource": "accountvault"}, []),
        ({"product_transaction_id": "p"}, []),
        ({"is_active": False}, ["L-Create", "L-Update", "L-Update"]),
    ],
)
async def test_a_config_gets_what_it_wants_now(
    conn: psycopg.Connection, aconn: psycopg.AsyncConnection, wants: dict[str, object], names: list[str]
) -> None:
    """By resource, location, product transaction and type, as a route matches; an inactive one holds it."""
    conn.execute("insert into contacts values (1, 'L', 'L-Create'), (2, 'M', 'M-Create')")
    conn.execute("update contacts set name = 'L-Update' where id = 1")
    conn.execute("delete from contacts where id = 1")
    await route(aconn)
    config = add_config(conn, **wants)
    assert await make(aconn, config) == len(names)
    assert data(conn) == names
    assert len(await claim(aconn)) == (0 if wants == {"is_active": False} else len(names))


async def test_only_of_the_record_and_the_time(conn: psycopg.Connection, aconn: psycopg.AsyncConnection) -> None:
    """The beginning is included, the end is not; what happens after the beginning of the command is not chased."""
    conn.execute("insert into contacts values (1, 'L', 'one'), (2, 'L', 'two')")
    conn.execute("update contacts set name = 'changed' where id = 2")
    await route(aconn)
    config = add_config(conn)
    row = conn.execute("select created_at from outbox.events where data ->> 'name' = 'changed'").fetchone()
    assert row is not None
    [changed_at] = row
    assert await make(aconn, config, dry_run=True, record="2") == 2
    assert await make(aconn, config, dry_run=True, record="3") == 0
    assert await make(aconn, config, dry_run=True, since=changed_at) == 1
    assert await make(aconn, config, dry_run=True, until=changed_at) == 2
    assert await make(aconn, config, dry_run=True, record="2", until=changed_at) == 1
    assert await make(aconn, config, dry_run=True, until=changed_at + timedelta(days=1)) == 3
    gap = await period(aconn, config, since=None, until=None)
    assert gap is not None
    conn.execute("update outbox.postback_configs set is_active = false")
    conn.execute("insert into contacts values (4, 'L', 'later')")
    await route(aconn)
    assert sum([count async for count in batches(aconn, gap)]) == 3
    assert "later" not in data(conn)


@pytest.mark.parametrize(("size", "most"), [(1, 10), (3, 10), (10, 2), (3, 3), (2, 1), (100, 100)])
@pytest.mark.parametrize("record", [None, "1"])
async def test_batches_meet_without_gap_or_overlap(
    conn: psycopg.Connection, aconn: psycopg.AsyncConnection, size: int, most: int, record: str | None
) -> None:
    """Where most events are not wanted, and where more are than may be made at once."""
    conn.execute("insert into contacts values (1, 'L', '0')")
    for number in range(1, 8):
        conn.execute("update contacts set name = %s", [str(number)])
        conn.execute("insert into contacts values (%s, 'M', 'x')", [number + 1])
        conn.execute("delete from contacts where id <> 1")
    await route(aconn)
    config = add_config(conn)
    for dry_run in (True, False):
        gap = await period(aconn, config, since=None, until=None, record=record)
        assert gap is not None
        counts = [count async for count in batches(aconn, gap, size=size, most=most, dry_run=dry_run)]
        assert sum(counts) == 8
        assert max(counts) <= min(size, most)
    assert data(conn) == [str(number) for number in range(8)]


async def test_a_record_in_order_stays_in_order(conn: psycopg.Connection, aconn: psycopg.AsyncConnection) -> None:
    """Of a config with strict order what was missed goes before what is owed since, one at a time."""
    conn.execute("insert into contacts values (1, 'L', 'a')")
    conn.execute("update contacts set name = 'b'")
    await route(aconn)
    config = add_config(conn, strict_order="release")
    conn.execute("insert into outbox.config_state (config_id) values (%s)", [config])
    conn.execute("update contacts set name = 'c'")
    await route(aconn)
    assert await make(aconn, config) == 2
    keys = conn.execute("select distinct order_key from outbox.deliveries").fetchall()
    assert len(keys) == 1
    assert keys != [(None,)]


async def test_what_is_older_than_the_log_is_left_out(conn: psycopg.Connection, aconn: psycopg.AsyncConnection) -> None:
    """An event that is kept for another config may have been delivered to this one; the tries would tell."""
    add_config(conn)
    config = add_config(conn)
    conn.execute("insert into contacts values (1, 'L', 'x')")
    await try_all(aconn, Delivered())
    conn.execute("update outbox.events set created_at = '2001-01-01'")
    conn.execute("delete from outbox.attempts")
    gap = await period(aconn, config, since=None, until=None)
    assert gap is not None
    row = conn.execute("select min(since) from outbox.partitions() where parent = 'attempts'").fetchone()
    assert row == (gap.since,)
    assert await make(aconn, config) == 0


async def test_a_config_that_is_gone_is_told(conn: psycopg.Connection, aconn: psycopg.AsyncConnection) -> None:
    """One that never was, and a removed one, also when it is removed on the way."""
    assert await period(aconn, uuid4(), since=None, until=None) is None
    conn.execute("insert into contacts values (1, 'L', 'x'), (2, 'L', 'x')")
    await route(aconn)
    config = add_config(conn)
    gap = await period(aconn, config, since=None, until=None)
    assert gap is not None
    begun = batches(aconn, gap, size=1)
    assert await anext(begun) == 1
    await configs.remove(aconn, config)
    assert sum([count async for count in begun]) == 0
    assert await period(aconn, config, since=None, until=None) is None


async def test_makers_and_a_daemon_at_the_same_moment(
    conn: psycopg.Connection, aconn: psycopg.AsyncConnection, db: str
) -> None:
    """Each is made by one of them and tried once, although it is delivered and gone before the others look."""
    conn.execute("insert into contacts select i, 'L', 'x' from generate_series(1, 300) i")
    await route(aconn)
    config = add_config(conn)
    async with AsyncExitStack() as ends:
        links = [Link(db, "test", settings=None) for _ in range(3)]
        daemon = Link(db, "test")
        for link in (*links, daemon):
            ends.push_async_callback(link.drop)
        delivering = asyncio.create_task(keep_delivering(await daemon.connection()))
        made = await asyncio.gather(*[make(await link.connection(), config, size=20) for link in links])
        delivering.cancel()
        await asyncio.gather(delivering, return_exceptions=True)
    await try_all(aconn, Delivered())
    assert sum(made) == 300
    row = conn.execute("select count(*), count(distinct event_id), max(number) from outbox.attempts").fetchone()
    assert row == (300, 300, 1)


async def keep_delivering(conn: psycopg.AsyncConnection) -> None:
    while True:
        await try_all(conn, Delivered())
