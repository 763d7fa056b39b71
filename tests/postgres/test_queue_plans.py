"""What a claim, a settle and a route read where 50,000 are owed, on each PostgreSQL: by their plans, not their time."""

import datetime as dt
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any, Self

import psycopg
import pytest
from psycopg.rows import Row

from outbox.core.bypass import TO_THE_END
from outbox.core.model import NO_CONFIG, Attempt, ConfigId, Delivered, Delivery
from outbox.postgres import queue, routing
from outbox.postgres.pool import Link

OWED, CONFIGS, SLOTS = 50_000, 500, 100
A_FEW = 5
"""Rows that a statement may read of one table for each row that it is to handle."""

# Of these, half are due, and half wait for a retry: the index of what is due has both.
_CONFIGS = """
insert into outbox.postback_configs (location_id, resource, url)
select 'L' || n, 'contact', 'http://127.0.0.1:9/' from generate_series(0, %s - 1) n
"""
_OWED = """
with made as materialized (
    select gen_random_uuid() as id, n, c.id as config_id
    from generate_series(1, %(owed)s) as n
    join (select id, row_number() over (order by id) as place from outbox.postback_configs) as c
        on c.place = 1 + n %% %(configs)s
), kept as (
    insert into outbox.events (id, created_at, type, resource, resource_id, data)
    select m.id, now(), 'CREATE', 'contact', m.n::text, '{}' from made as m
)
insert into outbox.deliveries (event_id, config_id, event_created_at, due_at)
select m.id, m.config_id, now(), now() + m.n / %(configs)s %% 2 * interval '1 day'
from made as m
"""
_CAPTURED = """
insert into outbox.outbox (type, resource, resource_id, location_id, data)
select 'CREATE', 'contact', n::text, 'L' || n %% %s, '{}' from generate_series(1, %s) n
"""


@pytest.fixture
def owing(every_db: str) -> Iterator[psycopg.Connection]:
    """A database with many configs, of which each owes."""
    with psycopg.connect(every_db, autocommit=True) as conn:
        conn.execute("select outbox.make_partitions()")
        conn.execute(_CONFIGS, [CONFIGS])
        conn.execute(_OWED.encode(), {"owed": OWED, "configs": CONFIGS})
        conn.execute("vacuum analyze")
        yield conn


class Read:
    """What a statement read, as PostgreSQL counted it."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = json.dumps(plan, indent=1)
        self.indexes: set[str] = set()
        self.whole: set[str] = set()
        """Tables that were read from their beginning to their end."""
        self.rows = Counter[str]()
        """Rows of each table, with those that were thrown away."""
        self.pages = Counter[str]()
        """Pages that were read by way of each index, and of it."""
        self._add(plan)

    def _add(self, node: dict[str, Any]) -> None:
        if index := node.get("Index Name"):
            self.indexes.add(index)
            self.pages[index] += node["Shared Hit Blocks"] + node["Shared Read Blocks"]
        if table := node.get("Relation Name"):
            self.whole |= {table} if node["Node Type"] == "Seq Scan" else set()
            thrown_away = sum(value for key, value in node.items() if key.startswith("Rows Removed by"))
            self.rows[table] += round((node["Actual Rows"] + thrown_away) * node["Actual Loops"])
        for each in node.get("Plans", ()):
            self._add(each)


class Daemons:
    """A connection set up as the daemon's are, which keeps what it was asked last."""

    def __init__(self, conn: psycopg.AsyncConnection) -> None:
        self.conn = conn
        self.asked: tuple[str, dict[str, object]] = ("", {})
        daemons = self

        class Recording(psycopg.AsyncCursor[Row]):
            async def execute(self, query: Any, params: Any = None, **options: Any) -> Self:  # noqa: ANN401 - as psycopg's
                daemons.asked = (query.decode(), params) if params else daemons.asked
                return await super().execute(query, params, **options)

        conn.cursor_factory = Recording

    async def read_again(self) -> Read:
        """Run the last statement once more, by the plan that serves all values, as the daemon's does; undo it."""
        query, values = self.asked
        names = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", query)))
        for number, name in enumerate(names, start=1):
            query = query.replace(f"%({name})s", f"${number}")
        marks = ", ".join(["%s"] * len(names))
        explain = f"explain (analyze, buffers, timing off, summary off, format json) execute asked ({marks})"
        text = psycopg.AsyncClientCursor(self.conn).mogrify(explain.encode(), [values[name] for name in names])
        await self.conn.execute("begin")
        await self.conn.execute(b"prepare asked as " + query.encode())
        row = await (await self.conn.execute(text.encode())).fetchone()
        await self.conn.execute("rollback; deallocate asked")
        assert row is not None
        return Read(row[0][0]["Plan"])


@pytest.fixture
async def daemons(every_db: str, owing: psycopg.Connection) -> AsyncIterator[Daemons]:
    """The connection of a daemon to a database that owes."""
    assert owing.info.dbname in every_db
    link = Link(every_db, "test")
    yield Daemons(await link.connection())
    await link.drop()


async def claim(conn: psycopg.AsyncConnection) -> list[Delivery]:
    return (await queue.claim(conn, after=NO_CONFIG, slots=SLOTS, room=10, rooms={}, lease=60)).deliveries


async def test_a_claim_reads_what_is_due_by_its_partial_index_and_little_more_than_it_takes(daemons: Daemons) -> None:
    """Of 50,000 that are owed it reads, for each that it takes, no more than a few."""
    await daemons.conn.execute("begin")
    claimed = await claim(daemons.conn)
    await daemons.conn.execute("rollback")
    assert len(claimed) == SLOTS
    read = await daemons.read_again()
    assert {name for name in read.indexes if name.startswith("deliveries")} == {"deliveries_due"}, read.plan
    assert not read.whole, read.plan
    assert read.rows["deliveries"] <= A_FEW * SLOTS, read.plan
    assert read.rows["postback_configs"] <= A_FEW * SLOTS, read.plan


async def test_a_claim_reads_little_of_what_was_delivered_while_somebody_holds_a_snapshot(
    daemons: Daemons, owing: psycopg.Connection, every_db: str
) -> None:
    """It is all in the index then. Without the marks each claim would read through it from the beginning."""
    owing.execute("truncate outbox.deliveries")
    owing.execute("update outbox.postback_configs set is_active = location_id = 'L0'")
    owing.execute(_CAPTURED.encode(), [1, 6_000])
    with psycopg.connect(every_db) as holder:
        holder.execute("set transaction isolation level repeatable read")
        holder.execute("select from outbox.deliveries")
        for _ in range(60):  # each at a moment of its own
            await routing.route(daemons.conn, low=0, rows=100, slots=0, room=1, rooms={}, lease=60)
        reached: dict[ConfigId, dt.datetime] = {}
        for _ in range(50):
            rooms = dict.fromkeys(reached, SLOTS)
            found = await queue.claim(
                daemons.conn, after=NO_CONFIG, slots=SLOTS, room=SLOTS, rooms=rooms, lease=60, since=reached
            )
            reached |= found.reached
            tries = [Attempt(each, Delivered(), 200, b"", 5, dt.datetime.now(dt.UTC)) for each in found.deliveries]
            assert (await queue.settle(daemons.conn, tries)).lost == []
        pages = []
        for marks in ({}, reached):
            await daemons.conn.execute("begin")
            found = await queue.claim(
                daemons.conn, after=NO_CONFIG, slots=SLOTS, room=SLOTS, rooms=dict.fromkeys(marks, SLOTS), lease=60,
                since=marks,
            )  # fmt: skip
            await daemons.conn.execute("rollback")
            assert len(found.deliveries) == SLOTS
            pages.append((await daemons.read_again()).pages["deliveries_due"])
    assert pages[1] * A_FEW < pages[0], pages


async def test_a_settle_finds_each_delivery_by_its_key(daemons: Daemons) -> None:
    """And reads no other of 50,000."""
    claimed = await claim(daemons.conn)
    tries = [Attempt(each, Delivered(), 200, b"ok", 5, dt.datetime.now(dt.UTC)) for each in claimed]
    await daemons.conn.execute("begin")
    assert (await queue.settle(daemons.conn, tries)).lost == []
    await daemons.conn.execute("rollback")
    read = await daemons.read_again()
    assert "deliveries_pkey" in read.indexes, read.plan
    assert not read.whole, read.plan
    assert read.rows["deliveries"] <= A_FEW * SLOTS, read.plan


@pytest.mark.parametrize("tell_left", [False, True])
async def test_a_route_reads_the_configs_that_match_and_nothing_that_is_owed(
    daemons: Daemons, owing: psycopg.Connection, *, tell_left: bool
) -> None:
    """With 500 configs it looks at those of the event's location."""
    owing.execute(_CAPTURED.encode(), [CONFIGS, 5 * SLOTS])
    await daemons.conn.execute("begin")
    routed = await routing.route(
        daemons.conn, low=0, rows=SLOTS, slots=SLOTS, room=10, rooms={}, lease=60, tell_left=tell_left
    )
    await daemons.conn.execute("rollback")
    assert routed.rows == SLOTS == len(routed.deliveries)
    read = await daemons.read_again()
    assert read.indexes & {"postback_configs_match", "postback_configs_location"}, read.plan
    assert not read.whole, read.plan
    assert read.rows["outbox"] <= A_FEW * SLOTS, read.plan
    assert read.rows["postback_configs"] <= A_FEW * SLOTS, read.plan
    assert read.rows["deliveries"] <= A_FEW, read.plan


@pytest.mark.parametrize("tell_left", [False, True])
async def test_a_route_above_the_mark_reads_little_of_what_is_under_way(
    daemons: Daemons, owing: psycopg.Connection, every_db: str, *, tell_left: bool
) -> None:
    """20,000 changes that are not committed are in the index, and so is what was routed while a snapshot is held."""
    with psycopg.connect(every_db) as large:
        large.execute(_CAPTURED.encode(), [1, 20_000])
        owing.execute(_CAPTURED.encode(), [1, 3])
        pages = []
        for low in (0, await routing.last(daemons.conn) - 3):
            await daemons.conn.execute("begin")
            routed = await routing.route(
                daemons.conn, low=low, rows=SLOTS, slots=SLOTS, room=10, rooms={}, lease=60, tell_left=tell_left
            )
            await daemons.conn.execute("rollback")
            assert routed.rows == 3
            pages.append((await daemons.read_again()).pages["outbox_pkey"])
        assert pages[1] * A_FEW < pages[0], pages
        assert await routing.lowest(daemons.conn, up_to=20_000) is None
        read = await daemons.read_again()
        assert read.indexes == {"outbox_pkey"}, read.plan
        assert not read.whole, read.plan


async def test_a_look_behind_a_flood_reads_each_of_its_rows_once_and_the_configs_of_its_kinds(
    daemons: Daemons, owing: psycopg.Connection
) -> None:
    """Of 20,000 rows for one location it reads as many as it was asked to look at, and takes those of another."""
    owing.execute("insert into outbox.outbox (type, resource, resource_id, location_id, data) "
                  "select 'CREATE', 'contact', n::text, 'L0', '{}' from generate_series(1, 20000) n")  # fmt: skip
    owing.execute(_CAPTURED.encode(), [3, 3])
    owing.execute("analyze outbox.outbox")
    row = owing.execute("select id::text from outbox.postback_configs where location_id = 'L0'").fetchone()
    assert row is not None
    await daemons.conn.execute("begin")
    found = await routing.overtake(
        daemons.conn,
        low=0,
        high=TO_THE_END,
        scan=1000,
        flood=[row[0]],
        rows=SLOTS,
        slots=SLOTS,
        room=10,
        rooms={},
        lease=60,
    )
    assert (found.rows, found.deliveries) == (0, [])
    found = await routing.overtake(
        daemons.conn, low=found.top or 0, high=TO_THE_END, scan=20_000, flood=[row[0]], rows=SLOTS, slots=SLOTS,
        room=10, rooms={}, lease=60,
    )  # fmt: skip
    await daemons.conn.execute("rollback")
    assert found.rows == len(found.deliveries) == 2
    read = await daemons.read_again()
    assert "outbox_pkey" in read.indexes, read.plan
    assert not read.whole, read.plan
    assert read.rows["outbox"] <= 20_000 + A_FEW * SLOTS, read.plan
    assert read.rows["postback_configs"] <= A_FEW * SLOTS, read.plan
