"""History that is past its retention goes; what is owed keeps its event; nobody waits long."""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Iterator
from uuid import UUID, uuid4

import psycopg
import pytest

from outbox.postgres import retention
from outbox.postgres.housekeeping import ElsewhereError, turn
from outbox.postgres.replay import TURN, replay
from outbox.postgres.retention import Fate, Report
from outbox.postgres.selection import Filter, State
from tests.daemons import add_config, until_empty
from tests.receiver import Receiver

DAY = 86_400.0


@pytest.fixture
def conn(every_db: str) -> Iterator[psycopg.Connection]:
    """An autocommit connection to a new database, on each version."""
    with psycopg.connect(every_db, autocommit=True) as opened:
        yield opened


@pytest.fixture
async def aconn(every_db: str) -> AsyncIterator[psycopg.AsyncConnection]:
    """A housekeeper's connection."""
    async with await psycopg.AsyncConnection.connect(every_db, autocommit=True) as opened:
        yield opened


async def prune(conn: psycopg.AsyncConnection, *, dry_run: bool = False) -> Report:
    """Prune with the settings' defaults."""
    return await retention.prune(conn, retention=30 * DAY, retention_dead=90 * DAY, dry_run=dry_run)


def did_nothing(report: Report) -> bool:
    """Tell whether there was nothing to do."""
    return not (report.went or report.left or report.dead or any(report.default_rows.values()) or report.default_left)


def day(conn: psycopg.Connection, days_ago: int, *tables: str) -> dt.date:
    """Make the partitions of a UTC day of the past, as a daemon made them on that day."""
    row = conn.execute("select (now() at time zone 'UTC')::date - %s::int", [days_ago]).fetchone()
    assert row is not None
    date: dt.date = row[0]
    for table in tables or ("events", "attempts"):
        conn.execute(
            f"create table outbox.{table}_{date:%Y%m%d} partition of outbox.{table} "
            f"for values from ('{date} 00:00+00') to ('{date + dt.timedelta(1)} 00:00+00')".encode()
        )
    return date


def event(conn: psycopg.Connection, date: dt.date, record: str = "1", data: str = '{"id": "1"}') -> UUID:
    """Add an event of the noon of that day."""
    row = conn.execute(
        "insert into outbox.events (id, created_at, type, resource, resource_id, location_id, data) "
        "values (%s, %s::date + time '12:00' at time zone 'UTC', 'CREATE', 'contact', %s, 'L', %s) returning id",
        [uuid4(), date, record, data],
    ).fetchone()
    assert row is not None
    return UUID(str(row[0]))


def events(conn: psycopg.Connection, date: dt.date, count: int) -> None:
    """Add many events of that day."""
    conn.execute(
        "insert into outbox.events (id, created_at, type, resource, resource_id, location_id, data) "
        "select gen_random_uuid(), %s::date + time '12:00' at time zone 'UTC', 'CREATE', 'contact', i, 'L', '{}' "
        "from generate_series(1, %s) i",
        [date, count],
    )


def owe(conn: psycopg.Connection, event_id: UUID, config: UUID, *, died_days_ago: int | None = None) -> None:
    """Let the event be owed to the config."""
    conn.execute(
        "insert into outbox.deliveries (event_id, config_id, event_created_at, state, died_at) "
        "select id, %s, created_at, case when %s::int is null then 'pending' else 'dead' end, "
        "now() - make_interval(days => %s) from outbox.events where id = %s",
        [config, died_days_ago, died_days_ago, event_id],
    )


def attempt(conn: psycopg.Connection, date: dt.date, event_id: UUID, config: UUID, outcome: str = "delivered") -> None:
    """Add a try of that day."""
    conn.execute(
        "insert into outbox.attempts (event_id, config_id, number, at, event_created_at, duration_ms, outcome) "
        "values (%s, %s, 1, %s::date + time '12:00' at time zone 'UTC', "
        "coalesce((select created_at from outbox.events where id = %s), now()), 1, %s)",
        [event_id, config, date, event_id, outcome],
    )


def partitions(conn: psycopg.Connection) -> set[str]:
    rows = conn.execute("select relname::text from pg_class where relispartition and relkind = 'r'").fetchall()
    return {name for (name,) in rows}


def where(conn: psycopg.Connection, event_id: UUID) -> list[str]:
    """Return the partitions that have the event."""
    rows = conn.execute("select tableoid::regclass::text from outbox.events where id = %s", [event_id]).fetchall()
    return [name for (name,) in rows]


def fates(report: Report) -> dict[str, Fate]:
    return {each.partition: each.fate for each in report.partitions}


def all_rows(conn: psycopg.Connection) -> list[object]:
    found: list[object] = [sorted(partitions(conn))]
    for table in ("events", "attempts", "deliveries"):
        query = f"select tableoid::regclass::text, t::text from outbox.{table} t order by 1, 2"  # noqa: S608 - our own names
        found += conn.execute(query.encode()).fetchall()
    return found


async def test_partitions_past_retention_go_and_younger_ones_stay(
    conn: psycopg.Connection, aconn: psycopg.AsyncConnection
) -> None:
    """A day goes when its last moment is past the retention; its rows go with it, all others stay."""
    before = partitions(conn)
    for days_ago in (100, 32, 31, 30, 29, 1):
        date = day(conn, days_ago)
        attempt(conn, date, event(conn, date), uuid4())
    kept = {f"{t}_{day_of(conn, ago)}" for t in ("events", "attempts") for ago in (30, 29, 1)}
    report = await prune(aconn)
    assert partitions(conn) == before | kept
    gone = {f"{t}_{day_of(conn, ago)}": Fate.DROPPED for t in ("events", "attempts") for ago in (31, 32, 100)}
    assert fates(report) == gone
    assert conn.execute("select count(*) from outbox.events").fetchone() == (3,)
    assert conn.execute("select count(*) from outbox.attempts").fetchone() == (3,)
    assert did_nothing(await prune(aconn))


def day_of(conn: psycopg.Connection, days_ago: int) -> str:
    row = conn.execute("select to_char((now() at time zone 'UTC')::date - %s::int, 'YYYYMMDD')", [days_ago]).fetchone()
    assert row is not None
    return str(row[0])


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Pacific/Pago_Pago"])
async def test_days_are_of_utc_whatever_the_session_says(
    conn: psycopg.Connection, aconn: psycopg.AsyncConnection, zone: str
) -> None:
    """The housekeeper's time zone and date style change nothing: no day is dropped some hours too early or too late."""
    await aconn.execute("select set_config('TimeZone', %s, false)", [zone])
    dates = [day(conn, ago, "events") for ago in (32, 31, 30)]
    names = [f"events_{date:%Y%m%d}" for date in dates]
    await aconn.execute("set datestyle = 'German'")
    query = "select fate from outbox.prune_partition(%s, now() - interval '30 days', now() - interval '90 days')"
    assert await (await aconn.execute(query, [names[0]])).fetchone() == ("dropped",)
    assert await (await aconn.execute(query, [names[2]])).fetchone() == ("gone",)
    # The driver reads times in this one only.
    await aconn.execute("set datestyle = 'ISO'")
    assert fates(await prune(aconn)) == {names[1]: Fate.DROPPED}
    assert names[2] in partitions(conn)


async def test_owed_events_stay_and_are_delivered_with_the_same_bytes(
    every_db: str, conn: psycopg.Connection, aconn: psycopg.AsyncConnection
) -> None:
    """A pending delivery outlives its day: claim still finds its event, and what is sent is what was captured."""
    with Receiver() as receiver:
        config = add_config(conn, receiver.url)
        date = day(conn, 40)
        data = '{"b":  1, "a": "zoë\\u0041 \\/", "z": null}'
        owed, unowed = event(conn, date, "1", data), event(conn, date, "2")
        owe(conn, owed, config)
        attempt(conn, date, owed, config, "retry")
        report = await prune(aconn)
        assert [(each.fate, each.kept) for each in report.partitions] == [(Fate.DROPPED, 0), (Fate.DROPPED, 1)]
        assert where(conn, owed) == ["outbox.events_default"]
        assert where(conn, unowed) == []
        assert await until_empty(every_db) == 0
        [request] = receiver.requests
        assert dict(request.form)["data"] == data
        assert request.headers["webhook-id"] == str(owed)
        # Acknowledged, it is owed no more, and leaves the default partition: the daemon's housekeeping may be first.
        await prune(aconn)
        assert where(conn, owed) == []


async def test_many_owed_events_keep_a_partition_of_their_own(
    every_db: str, conn: psycopg.Connection, aconn: psycopg.AsyncConnection
) -> None:
    """More than can be moved at once are kept as a smaller partition of their day, which goes when they are few."""
    with Receiver() as receiver:
        config = add_config(conn, receiver.url)
        date = day(conn, 40, "events")
        name = f"events_{date:%Y%m%d}"
        events(conn, date, 5000)
        conn.execute(
            "insert into outbox.deliveries (event_id, config_id, event_created_at) "
            "select id, %s, created_at from outbox.events where resource_id::int <= 1500",
            [config],
        )
        conn.execute("analyze outbox.events")
        expected = catalog_of(conn, name)
        assert fates(await prune(aconn, dry_run=True)) == {name: Fate.THINNED}
        report = await prune(aconn)
        assert [(each.fate, each.kept, each.rows) for each in report.partitions] == [(Fate.THINNED, 1500, 5000)]
        assert conn.execute("select count(*) from outbox.events").fetchone() == (1500,)
        assert catalog_of(conn, name) == expected
        assert fates(await prune(aconn)) == {name: Fate.OWED}
        # Twice in a row: nothing of the first time is in the way of the second.
        conn.execute(
            "delete from outbox.deliveries where event_id in (select id from outbox.events order by id limit 450)"
        )
        conn.execute(
            "insert into outbox.events select gen_random_uuid(), created_at, type, resource, '0', 'L', null, data "
            "from outbox.events"
        )
        conn.execute(f"analyze outbox.{name}".encode())
        assert fates(await prune(aconn)) == {name: Fate.THINNED}
        assert conn.execute("select count(*) from outbox.events").fetchone() == (1050,)
        conn.execute(
            "delete from outbox.deliveries where event_id in (select id from outbox.events order by id limit 60)"
        )
        assert fates(await prune(aconn)) == {name: Fate.DROPPED}
        assert conn.execute("select count(*) from outbox.events_default").fetchone() == (990,)
        assert await until_empty(every_db) == 0
        assert len(receiver.requests) == 990


def catalog_of(conn: psycopg.Connection, name: str) -> list[tuple[object, ...]]:
    """Return bound, constraints and indexes' definitions of a partition, without their names."""
    return conn.execute(
        """
        select 'bound', pg_get_expr(relpartbound, oid) from pg_class where oid = %(table)s::regclass
        union all
        select conname::text, pg_get_constraintdef(oid) from pg_constraint
        where conrelid = %(table)s::regclass and contype = 'c'
        union all
        select 'index', regexp_replace(pg_get_indexdef(i.indexrelid), 'INDEX \\S+ ON', '') || inh.inhparent::regclass
        from pg_index i join pg_inherits inh on inh.inhrelid = i.indexrelid where i.indrelid = %(table)s::regclass
        order by 1, 2
        """,
        {"table": f"outbox.{name}"},
    ).fetchall()


async def test_dead_deliveries_go_when_their_own_retention_is_over(
    conn: psycopg.Connection, aconn: psycopg.AsyncConnection
) -> None:
    """Until then they keep their event and can be replayed; a pending delivery is never deleted, however old."""
    config = add_config(conn, "http://127.0.0.1:9/")
    deleted = add_config(conn, "http://127.0.0.1:9/", deleted_at=dt.datetime.now(dt.UTC))
    date = day(conn, 200, "events")
    recent, old, pending, of_deleted = (event(conn, date, str(i)) for i in range(4))
    owe(conn, recent, config, died_days_ago=89)
    owe(conn, old, config, died_days_ago=91)
    owe(conn, old, deleted, died_days_ago=91)
    owe(conn, of_deleted, deleted, died_days_ago=91)
    owe(conn, pending, config)
    planned = await prune(aconn, dry_run=True)
    report = await prune(aconn)
    for each in (planned, report):
        assert (each.dead, [(p.fate, p.kept) for p in each.partitions]) == (3, [(Fate.DROPPED, 2)])
    assert where(conn, recent) == where(conn, pending) == ["outbox.events_default"]
    assert where(conn, old) == where(conn, of_deleted) == []
    assert conn.execute("select event_id, state from outbox.deliveries order by state").fetchall() == [
        (recent, "dead"), (pending, "pending"),
    ]  # fmt: skip
    assert await replay(aconn, Filter(states=(State.DEAD,), config=config)) == 1


async def test_dead_ones_are_deleted_in_batches(
    conn: psycopg.Connection, aconn: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many they are, no transaction deletes more than a batch, and none is left."""
    monkeypatch.setattr(retention, "_ROWS", 7)
    for _ in range(3):
        conn.execute(
            "insert into outbox.deliveries (event_id, config_id, event_created_at, state, died_at) "
            "select gen_random_uuid(), %s, now(), 'dead', now() - interval '100 days' from generate_series(1, 16)",
            [add_config(conn, "http://127.0.0.1:9/")],
        )
    assert (await prune(aconn)).dead == 48
    assert conn.execute("select count(*) from outbox.deliveries").fetchone() == (0,)


async def test_rows_of_default_partitions_go_by_their_age(
    conn: psycopg.Connection, aconn: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are deleted block by block; those that are young or owed stay where they are."""
    monkeypatch.setattr(retention, "_BLOCKS", 3)
    config = add_config(conn, "http://127.0.0.1:9/")
    today = dt.datetime.now(dt.UTC).date()
    events(conn, today - dt.timedelta(40), 2000)
    events(conn, today - dt.timedelta(20), 10)
    owed = event(conn, today - dt.timedelta(40))
    owe(conn, owed, config)
    for age in (40, 40, 20):
        attempt(conn, today - dt.timedelta(age), uuid4(), config)
    expected = {"events_default": 2000, "attempts_default": 2}
    before = all_rows(conn)
    assert (await prune(aconn, dry_run=True)).default_rows == expected
    assert all_rows(conn) == before
    assert (await prune(aconn)).default_rows == expected
    assert conn.execute("select count(*) from outbox.events_default").fetchone() == (11,)
    assert conn.execute("select count(*) from outbox.attempts_default").fetchone() == (1,)
    assert where(conn, owed) == ["outbox.events_default"]


async def test_a_dry_run_changes_nothing_and_foretells(
    conn: psycopg.Connection, aconn: psycopg.AsyncConnection
) -> None:
    """It reports what the prune after it does."""
    config = add_config(conn, "http://127.0.0.1:9/")
    for ago in (31, 40):
        date = day(conn, ago)
        owe(conn, event(conn, date), config)
        event(conn, date)
        attempt(conn, date, event(conn, date), config)
    before = all_rows(conn)
    planned = await prune(aconn, dry_run=True)
    assert all_rows(conn) == before
    done = await prune(aconn)
    assert all_rows(conn) != before
    assert planned.partitions == done.partitions
    assert (planned.dead, planned.default_rows) == (done.dead, done.default_rows)
    assert all(each.bytes > 0 for each in done.partitions)


async def test_an_empty_schema_has_nothing_to_prune(aconn: psycopg.AsyncConnection) -> None:
    """No history, no work."""
    report = await retention.prune(aconn, retention=DAY, retention_dead=DAY)
    assert did_nothing(report)
    assert report.partitions == []


async def test_no_retention_reaches_the_last_day(conn: psycopg.Connection, aconn: psycopg.AsyncConnection) -> None:
    """Called with any time, the functions leave what is younger than a day: no argument drops today."""
    names = partitions(conn)
    today = dt.datetime.now(dt.UTC).date()
    for name in names:
        asked = {"name": name}
        query = "select fate from outbox.prune_partition(%(name)s, now() + interval '1 year', now())"
        assert await (await aconn.execute(query, asked)).fetchone() == ("gone",)
    kept = event(conn, today)
    await aconn.execute("select outbox.prune_default('events', now() + interval '1 year', now(), 0)")
    assert where(conn, kept) == [f"outbox.events_{today:%Y%m%d}"]
    assert partitions(conn) == names


async def test_only_one_housekeeper_is_at_work(
    every_db: str, conn: psycopg.Connection, aconn: psycopg.AsyncConnection
) -> None:
    """While one has its turn, another does nothing and waits for nothing; after it the other one has its turn."""
    date = day(conn, 40)
    async with await psycopg.AsyncConnection.connect(every_db, autocommit=True) as other:
        async with turn(other):
            with pytest.raises(ElsewhereError):
                await prune(aconn)
            assert f"events_{date:%Y%m%d}" in partitions(conn)
        assert len((await prune(aconn)).went) == 2


async def test_two_housekeepers_at_once_do_the_work_once(every_db: str, conn: psycopg.Connection) -> None:
    """Whatever the order of their steps, every day goes once, and what is owed is kept once."""
    config = add_config(conn, "http://127.0.0.1:9/")
    kept = []
    for ago in range(40, 60):
        kept.append(event(conn, day(conn, ago)))
        owe(conn, kept[-1], config)

    async def prune_all() -> list[str]:
        dropped: list[str] = []
        async with await psycopg.AsyncConnection.connect(every_db, autocommit=True) as own:
            while True:
                try:
                    report = await prune(own)
                except ElsewhereError:
                    await asyncio.sleep(0)
                    continue
                dropped += [each.partition for each in report.went]
                if not report.left:
                    return dropped

    await asyncio.gather(*(prune_all() for _ in range(3)))
    assert [where(conn, each) for each in kept] == [["outbox.events_default"]] * 20
    row = conn.execute("select count(*) from outbox.partitions() where until < now()").fetchone()
    assert row == (0,)


async def test_a_long_reader_is_left_alone_and_the_next_time_does_it(
    every_db: str, conn: psycopg.Connection, aconn: psycopg.AsyncConnection
) -> None:
    """A dump that reads the history keeps it; nothing waits in its queue afterwards, and nothing half is left."""
    config = add_config(conn, "http://127.0.0.1:9/")
    dates = [day(conn, ago) for ago in (40, 41)]
    owed = event(conn, dates[0])
    owe(conn, owed, config)
    before = all_rows(conn)
    with psycopg.connect(every_db) as dump:
        dump.execute("set transaction isolation level repeatable read")
        dump.execute("select count(*) from outbox.events")
        dump.execute("select count(*) from outbox.attempts")
        report = await prune(aconn)
        assert set(fates(report).values()) == {Fate.BUSY}
        assert len(report.left) == 4
        awaited = "select count(*) from pg_locks as l join pg_database as d on d.oid = l.database"
        ours = " where not l.granted and d.datname = current_database()"
        assert conn.execute((awaited + ours).encode()).fetchone() == (0,)
        assert all_rows(conn) == before
        # The log is written meanwhile, and read.
        attempt(conn, dt.datetime.now(dt.UTC).date(), owed, config)
    assert len((await prune(aconn)).went) == 4
    assert where(conn, owed) == ["outbox.events_default"]


async def test_one_partition_that_is_held_does_not_hold_up_the_others(
    every_db: str, conn: psycopg.Connection, aconn: psycopg.AsyncConnection
) -> None:
    """Who reads or vacuums one day keeps that day only, be it the oldest."""
    oldest, next_one = day(conn, 41), day(conn, 40)
    with psycopg.connect(every_db) as reader, psycopg.connect(every_db) as vacuum:
        reader.execute(f"select from outbox.attempts_{oldest:%Y%m%d}".encode())
        vacuum.execute(f"lock table outbox.events_{oldest:%Y%m%d} in share update exclusive mode".encode())
        assert fates(await prune(aconn)) == {
            f"attempts_{oldest:%Y%m%d}": Fate.HELD, f"events_{oldest:%Y%m%d}": Fate.HELD,
            f"attempts_{next_one:%Y%m%d}": Fate.DROPPED, f"events_{next_one:%Y%m%d}": Fate.DROPPED,
        }  # fmt: skip
    assert len((await prune(aconn)).went) == 2


async def test_a_late_route_into_the_day_is_not_lost(
    every_db: str, conn: psycopg.Connection, aconn: psycopg.AsyncConnection
) -> None:
    """A change of a day past retention that is routed just now: its day waits for it, and its event is kept."""
    config = add_config(conn, "http://127.0.0.1:9/")
    date = day(conn, 40, "events")
    with psycopg.connect(every_db) as router:
        late = event(router, date)
        owe(router, late, config)
        assert set(fates(await prune(aconn)).values()) == {Fate.HELD}
    assert set(fates(await prune(aconn)).values()) == {Fate.DROPPED}
    assert where(conn, late) == ["outbox.events_default"]
    # And one that comes later still goes where the day was moved to.
    later = event(conn, date)
    assert where(conn, later) == ["outbox.events_default"]


async def test_writers_go_on_during_a_prune(
    every_db: str, conn: psycopg.Connection, aconn: psycopg.AsyncConnection
) -> None:
    """Events and tries are written all the while; every day goes, and no write is lost."""
    for ago in range(40, 60):
        day(conn, ago)
    today = dt.datetime.now(dt.UTC).date()
    stop = asyncio.Event()

    async def write() -> int:
        written = 0
        async with await psycopg.AsyncConnection.connect(every_db, autocommit=True) as own:
            while not stop.is_set():
                await own.execute(
                    "with e as (insert into outbox.events (id, created_at, type, resource, resource_id, data) "
                    "values (gen_random_uuid(), now(), 'CREATE', 'contact', '1', '{}') returning id) "
                    "insert into outbox.attempts "
                    "(event_id, config_id, number, at, event_created_at, duration_ms, outcome) "
                    "select id, gen_random_uuid(), 1, now(), now(), 1, 'delivered' from e"
                )
                written += 1
        return written

    writers = [asyncio.create_task(write()) for _ in range(3)]
    went = 0
    while went < 40:
        went += len((await prune(aconn)).went)
    stop.set()
    written = sum(await asyncio.gather(*writers))
    found = conn.execute(
        "select (select count(*) from outbox.events), (select count(*) from outbox.attempts where at >= %s)",
        [today - dt.timedelta(1)],
    ).fetchone()
    assert found == (written, written)


async def test_a_partition_that_can_not_go_does_not_hold_up_the_others(
    conn: psycopg.Connection, aconn: psycopg.AsyncConnection
) -> None:
    """A view of the DBA's on one day: that day is told of, with the reason, and the others go."""
    old, older = day(conn, 40, "events"), day(conn, 41, "events")
    conn.execute(f"create view public.of_a_day as select * from outbox.events_{older:%Y%m%d}".encode())  # noqa: S608 - our own names
    report = await prune(aconn)
    assert fates(report) == {f"events_{older:%Y%m%d}": Fate.FAILED, f"events_{old:%Y%m%d}": Fate.DROPPED}
    assert "of_a_day" in str(report.left[0].error)


async def test_a_partition_of_another_length_goes_when_its_end_is_past(
    conn: psycopg.Connection, aconn: psycopg.AsyncConnection
) -> None:
    """Partitions are judged by their bounds: a year that a DBA made is kept until its end is past the retention."""
    conn.execute(
        "create table outbox.old_year partition of outbox.events for values from ('2001-01-01') to ('2002-01-01')"
    )
    conn.execute("create table outbox.first partition of outbox.events for values from (minvalue) to ('2001-01-01')")
    conn.execute(
        "create table outbox.long partition of outbox.events "
        "for values from ('2002-01-01') to (now() - interval '5 days')"
    )
    report = await prune(aconn)
    assert fates(report) == {"old_year": Fate.DROPPED}


async def test_the_functions_are_for_those_to_whom_they_are_granted(
    every_db: str, conn: psycopg.Connection, aconn: psycopg.AsyncConnection
) -> None:
    """A role that owns nothing prunes when it may execute the three functions, and not before."""
    name = str(psycopg.conninfo.conninfo_to_dict(every_db)["dbname"])
    role = f"daemon_of_{name}"
    day(conn, 40)
    conn.execute(f"create role {role}".encode())
    try:
        conn.execute(f"grant usage on schema outbox to {role}".encode())
        conn.execute(f"grant select, delete, update on outbox.deliveries, outbox.postback_configs to {role}".encode())
        await aconn.execute(f"set role {role}".encode())
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await prune(aconn)
        for function in ("partitions", "prune_partition", "prune_default"):
            conn.execute(f"grant execute on function outbox.{function} to {role}".encode())
        assert len((await prune(aconn)).went) == 2
    finally:
        await aconn.execute("reset role")
        conn.execute(f"drop owned by {role}".encode())
        conn.execute(f"drop role {role}".encode())


async def test_what_was_delivered_can_not_be_replayed_without_its_tries(
    conn: psycopg.Connection, aconn: psycopg.AsyncConnection
) -> None:
    """The log gives a replay its fence: with the tries gone the replay leaves it out, rather than begin at 1 again."""
    config = add_config(conn, "http://127.0.0.1:9/")
    young = day(conn, 20, "events")
    date = day(conn, 40, "attempts")
    kept = event(conn, young)
    attempt(conn, date, kept, config)
    chosen = Filter(states=(State.DELIVERED,), event=kept)
    assert await replay(aconn, chosen, dry_run=True) == 1
    await prune(aconn)
    assert await replay(aconn, chosen) == 0
    assert conn.execute("select count(*) from outbox.deliveries").fetchone() == (0,)


@pytest.mark.parametrize("in_default", [False, True], ids=["a day", "the default"])
async def test_what_a_replay_makes_owed_meanwhile_is_kept(
    conn: psycopg.Connection, aconn: psycopg.AsyncConnection, every_db: str, *, in_default: bool
) -> None:
    """It commits after retention has looked at what is owed, and before that asks for the last lock."""
    config = add_config(conn, "http://127.0.0.1:9/")
    date = day(conn, 40)
    if in_default:
        conn.execute(f"drop table outbox.events_{date:%Y%m%d}".encode())
    old = event(conn, date)
    with psycopg.connect(every_db) as replaying:
        replaying.execute(TURN)
        owe(replaying, old, config)
        report = await prune(aconn)
        assert (report.default_left, [each.fate for each in report.left]) == (
            ({"events_default"}, []) if in_default else (set(), [Fate.HELD])
        )
        replaying.commit()
    assert len(where(conn, old)) == 1
    await prune(aconn)
    assert where(conn, old) == ["outbox.events_default"]


def test_a_partition_of_the_dbas_own_keeps_no_other_from_being_made(conn: psycopg.Connection) -> None:
    """Its days are his, and all others are made."""
    conn.execute(
        "do $$ begin execute 'drop table ' || (select string_agg('outbox.' || name, ',') "
        "from outbox.partitions()); end $$"
    )
    conn.execute("set timezone = 'UTC'")
    conn.execute(
        "do $$ begin execute format('create table outbox.events_mine partition of outbox.events "
        "for values from (%L) to (%L)', current_date + 2, current_date + 4); end $$"
    )
    assert conn.execute("select outbox.make_partitions()").fetchone() == (6 + 8,)
    assert conn.execute("select outbox.make_partitions()").fetchone() == (0,)
