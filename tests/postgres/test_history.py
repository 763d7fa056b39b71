"""What became of each delivery is found by any filter, once, newest first, and without reading the history."""

from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from outbox.api.server import QUERY_SETTINGS
from outbox.core.model import Dead, Delivered, Outcome, Retry
from outbox.postgres import history
from outbox.postgres.figures import config_health, figures
from outbox.postgres.history import DeliveryKey
from outbox.postgres.replay import replay
from outbox.postgres.selection import Filter, Order, Position, State, counting, selection
from tests.tried import add_config, attach_contacts, claim, route, try_all


@pytest.fixture(autouse=True)
def _contacts(conn: psycopg.Connection) -> None:
    attach_contacts(conn)


async def test_each_state_is_listed_newest_first_with_its_record(
    conn: psycopg.Connection, aconn: psycopg.AsyncConnection
) -> None:
    """A delivery is in one state: delivered, dead, waiting for its next try, in hand, or not tried yet."""
    add_config(conn)
    outcomes: list[Outcome] = [Delivered(), Dead("status 500"), Retry(300, "status 503")]
    for number, outcome in enumerate(outcomes, start=1):
        conn.execute("insert into contacts values (%s, 'L', 'x')", [number])
        await try_all(aconn, outcome)
    conn.execute("insert into contacts values (4, 'L', 'x')")
    await route(aconn)
    await claim(aconn)
    conn.execute("insert into contacts values (5, 'L', 'x')")
    await route(aconn)
    found = await history.deliveries(aconn, Filter(), limit=10)
    assert [(each.resource_id, each.state, each.in_progress, each.attempts, each.last_error) for each in found] == [
        ("5", State.PENDING, False, 0, None),
        ("4", State.PENDING, True, 1, None),
        ("3", State.PENDING, False, 1, "status 503"),
        ("2", State.DEAD, False, 1, "status 500"),
        ("1", State.DELIVERED, False, 1, None),
    ]
    assert [each.due_at is not None for each in found] == [True, True, True, False, False]
    for state, count in ((State.PENDING, 3), (State.DEAD, 1), (State.DELIVERED, 1)):
        assert len(await history.deliveries(aconn, Filter(states=[state]), limit=10)) == count


async def test_filters_narrow_and_combine(conn: psycopg.Connection, aconn: psycopg.AsyncConnection) -> None:
    """Config, event, record with its resource, and time: all that are given must hold."""
    first, second = add_config(conn), add_config(conn)
    conn.execute("insert into contacts values (1, 'L', 'x'), (2, 'L', 'x')")
    await try_all(aconn, Delivered())
    conn.execute("update contacts set name = 'y' where id = 1")
    await try_all(aconn, Dead("status 500"))
    conn.execute("update contacts set name = 'z' where id = 1")
    await route(aconn)

    async def count(chosen: Filter) -> int:
        found = await history.deliveries(aconn, chosen, limit=100)
        assert len({each.key for each in found}) == len(found)
        return len(found)

    everything = await history.deliveries(aconn, Filter(), limit=100)
    assert len(everything) == 8
    assert await count(Filter(config=first)) == 4
    assert await count(Filter(config=uuid4())) == 0
    assert await count(Filter(record="1")) == 6
    assert await count(Filter(record="1", config=second)) == 3
    assert await count(Filter(record="1", config=second, states=[State.DELIVERED])) == 1
    assert await count(Filter(record="1", resource="contact")) == 6
    assert await count(Filter(record="1", resource="transaction")) == 0
    assert await count(Filter(event=everything[0].event_id)) == 2
    assert await count(Filter(event=everything[-1].event_id, config=first)) == 1
    for each in everything:
        assert await count(Filter(since=each.state_at)) == sum(other.state_at >= each.state_at for other in everything)
        assert await count(Filter(until=each.state_at)) == sum(other.state_at < each.state_at for other in everything)


async def test_pages_meet_without_gap_or_overlap(conn: psycopg.Connection, aconn: psycopg.AsyncConnection) -> None:
    """A list goes on after any of its rows, also where many have one time, in every state."""
    add_config(conn)
    add_config(conn)
    outcomes: list[Outcome] = [Delivered(), Dead("no"), Retry(300, "no")]
    for number, outcome in enumerate(outcomes):
        conn.execute(
            "insert into contacts select i, 'L', 'x' from generate_series(%s::int, %s::int) i",
            [number * 5, number * 5 + 4],
        )
        await try_all(aconn, outcome)
    for chosen in (Filter(), Filter(states=[State.DELIVERED]), Filter(states=[State.DEAD]), Filter(record="3")):
        everything = await history.deliveries(aconn, chosen, limit=100)
        paged = page = await history.deliveries(aconn, chosen, limit=4)
        while page:
            page = await history.deliveries(aconn, chosen, limit=4, after=page[-1].position())
            paged = paged + page
        assert paged == everything
        assert len(everything) in {30, 10, 2}


async def test_a_replayed_delivery_is_listed_once(conn: psycopg.Connection, aconn: psycopg.AsyncConnection) -> None:
    """Owed again it is pending and not delivered; acknowledged twice it is one delivery with all of its tries."""
    config = add_config(conn)
    conn.execute("insert into contacts values (1, 'L', 'x')")
    [delivery] = await try_all(aconn, Delivered())
    key = DeliveryKey(delivery.event_id, config)
    await replay(aconn, Filter(event=delivery.event_id))
    assert [each.state for each in await history.deliveries(aconn, Filter(), limit=10)] == [State.PENDING]
    await try_all(aconn, Delivered())
    [found] = await history.deliveries(aconn, Filter(), limit=10)
    assert (found.state, found.attempts) == (State.DELIVERED, 2)
    detail = await history.delivery(aconn, key)
    assert detail is not None
    assert detail.summary == found
    assert [each.number for each in detail.tries] == [1, 2]


async def test_one_delivery_is_shown_with_its_bytes_and_tries(
    conn: psycopg.Connection, aconn: psycopg.AsyncConnection
) -> None:
    """Data is the frozen text; each try has its outcome; what never was is None."""
    config = add_config(conn)
    conn.execute("insert into contacts values (1, 'L', 'Zoë')")
    [delivery] = await try_all(aconn, Retry(0, "status 500"), b"sorry")
    conn.execute("update outbox.deliveries set due_at = now()")
    await try_all(aconn, Dead("status 404"))
    detail = await history.delivery(aconn, DeliveryKey(delivery.event_id, config))
    assert detail is not None
    assert detail.data == delivery.data == '{"id":1,"location_id":"L","name":"Zoë"}'
    assert [(each.number, each.outcome, each.error, each.answer) for each in detail.tries] == [
        (1, "retry", "status 500", "sorry"),
        (2, "dead", "status 404", "ok"),
    ]
    [listed] = await history.deliveries(aconn, Filter(), limit=10)
    assert detail.summary == listed
    assert await history.delivery(aconn, DeliveryKey(delivery.event_id, uuid4())) is None
    conn.execute("delete from outbox.deliveries")
    withdrawn = await history.delivery(aconn, DeliveryKey(delivery.event_id, config))
    assert withdrawn is not None
    assert withdrawn.summary.state == State.WITHDRAWN


async def test_figures_count_the_debt_and_leave_out_what_is_held_and_deleted(
    conn: psycopg.Connection, aconn: psycopg.AsyncConnection
) -> None:
    """Due is what only waits for a daemon: not what waits for its next try, is paused, or a deleted config's."""
    empty = await figures(aconn)
    assert (empty.configs, empty.unrouted, empty.pending, empty.due, empty.dead, empty.oldest_due_s) == (0,) * 6
    active, paused, deleted = add_config(conn), add_config(conn, "P"), add_config(conn, "D")
    conn.execute("insert into contacts values (1, 'L', 'x'), (2, 'P', 'x'), (3, 'D', 'x')")
    await try_all(aconn, Dead("no"))
    conn.execute("insert into contacts values (4, 'L', 'x'), (5, 'P', 'x'), (6, 'D', 'x')")
    await try_all(aconn, Retry(300, "no"))
    conn.execute("insert into contacts values (7, 'L', 'x'), (8, 'P', 'x'), (9, 'D', 'x')")
    await route(aconn)
    conn.execute("insert into contacts values (10, 'L', 'x')")
    conn.execute("update outbox.deliveries set due_at = now() - interval '1 hour' where attempts = 0")
    conn.execute("update outbox.postback_configs set paused_at = now() where id = %s", [paused])
    conn.execute("update outbox.postback_configs set deleted_at = now() where id = %s", [deleted])
    found = await figures(aconn)
    assert replace(found, oldest_due_s=0, schema_version=0) == replace(
        empty, configs=2, unrouted=1, pending=4, due=1, held=2, dead=2, schema_version=0
    )
    assert found.oldest_due_s >= 3600
    by_id = {each.id: each for each in await config_health(aconn)}
    assert set(by_id) == {active, paused}
    assert [(each.pending, each.due, each.dead) for each in (by_id[active], by_id[paused])] == [(2, 1, 1), (2, 0, 1)]


async def test_an_open_circuit_has_nothing_due(conn: psycopg.Connection, aconn: psycopg.AsyncConnection) -> None:
    """It waits for its probe and not for a daemon: a dead endpoint must not look like a daemon that falls behind."""
    add_config(conn)
    conn.execute("insert into contacts values (1, 'L', 'x')")
    await route(aconn)
    conn.execute("update outbox.deliveries set due_at = now() - interval '1 hour'")
    conn.execute("update outbox.postback_configs set circuit_opened_at = now()")
    found = await figures(aconn)
    assert (found.pending, found.due, found.held, found.oldest_due_s, found.open_circuits) == (1, 0, 0, 0, 1)
    [health] = await config_health(aconn)
    assert (health.pending, health.due, health.oldest_due_s) == (1, 0, 0)


async def test_health_has_the_last_success_and_failure_of_each_config(
    conn: psycopg.Connection, aconn: psycopg.AsyncConnection
) -> None:
    """The last of each, not the first; none is None; the address is shown without its secrets."""
    busy, silent = add_config(conn), add_config(conn, "M")
    outcomes: list[Outcome] = [Dead("old"), Delivered(), Retry(300, "new"), Delivered()]
    for number, outcome in enumerate(outcomes):
        conn.execute("insert into contacts values (%s, 'L', 'x')", [number])
        await try_all(aconn, outcome)
    by_id = {each.id: each for each in await config_health(aconn)}
    tried = [row[0] for row in conn.execute("select at from outbox.attempts order by at").fetchall()]
    health = by_id[busy]
    assert (health.last_success_at, health.last_failure_at, health.last_failure) == (tried[3], tried[2], "new")
    assert (by_id[silent].last_success_at, by_id[silent].last_failure_at) == (None, None)
    assert health.url == "http://127.0.0.1:9/hook"


async def test_a_delivery_whose_event_is_no_longer_kept_is_still_shown(
    conn: psycopg.Connection, aconn: psycopg.AsyncConnection
) -> None:
    """Its tries and its state are there, its record and data are not."""
    config = add_config(conn)
    conn.execute("insert into contacts values (1, 'L', 'x')")
    [delivery] = await try_all(aconn, Dead("no"))
    conn.execute("delete from outbox.events")
    [listed] = await history.deliveries(aconn, Filter(), limit=10)
    assert (listed.state, listed.resource) == (State.DEAD, None)
    detail = await history.delivery(aconn, DeliveryKey(delivery.event_id, config))
    assert detail is not None
    assert (detail.data, len(detail.tries)) == (None, 1)


@pytest.mark.parametrize("settings", [{}, QUERY_SETTINGS], ids=["by a command", "by the API"])
async def test_a_page_reads_little_of_50000_rows(every_db: str, settings: dict[str, str]) -> None:
    """However it is asked, on each version: by an index, and a twentieth of the history at most."""
    with psycopg.connect(every_db, autocommit=True) as conn:
        attach_contacts(conn)
        config, *_ = [add_config(conn) for _ in range(10)]
        conn.execute("insert into contacts select i, 'L', 'x' from generate_series(1, 5000) i")
        async with await psycopg.AsyncConnection.connect(every_db, autocommit=True) as daemon:
            await route(daemon)
        # All are captured in one moment, as a bulk insert is, and tried one after the other. 100 died, 100 are owed.
        conn.execute("update outbox.deliveries set due_at = now() + interval '1 day'")
        conn.execute(
            "insert into outbox.attempts"
            " (event_id, config_id, number, at, event_created_at, duration_ms, outcome, status)"
            " select event_id, config_id, 1, event_created_at + interval '1 ms'"
            " * row_number() over (order by event_id),"
            " event_created_at, 5, 'delivered', 200 from outbox.deliveries"
        )
        conn.execute(
            "with kept as (select event_id, config_id from outbox.deliveries order by event_id limit 200)"
            " delete from outbox.deliveries where (event_id, config_id) not in (table kept)"
        )
        conn.execute(
            "update outbox.deliveries set state = 'dead', died_at = now()"
            " where (event_id, config_id) in (select event_id, config_id from outbox.deliveries limit 100)"
        )
        conn.execute("vacuum analyze outbox.events, outbox.attempts, outbox.deliveries, outbox.postback_configs")
        row = conn.execute("select min(id::text)::uuid, min(created_at) from outbox.events").fetchone()
        assert row is not None
        event, captured = row
        for name, value in settings.items():
            conn.execute("select set_config(%s, %s, false)", [name, value])
        middle = Position(captured + timedelta(seconds=25), event, config)
        for chosen in (
            Filter(),
            Filter(locations=["L"]),
            Filter(locations=["M"]),
            Filter(resource="tag"),
            Filter(config=config),
            Filter(config=uuid4()),
            Filter(states=[State.DEAD]),
            Filter(config=config, since=captured + timedelta(seconds=2), states=[State.DELIVERED]),
            Filter(since=captured + timedelta(seconds=10), until=captured + timedelta(seconds=20)),
            Filter(event=event),
            Filter(record="7"),
            Filter(record=["7", "8", "9"]),
            Filter(record="7", resource="contact", config=config, states=[State.DELIVERED, State.DEAD]),
        ):
            queries = [counting(chosen, most=100)] + [
                selection(chosen, limit=5, order=order, oldest_first=oldest_first, after=after)
                # A range of one time is walked in the order of that time: the API refuses the other.
                for order in (Order if chosen.since is None else [Order.FILED])
                for oldest_first in (False, True)
                for after in (None, middle)
            ]
            for query, parameters in queries:
                read, plan = rows_read(conn, query, parameters)
                assert read < 2500, (chosen, read, plan)


async def test_what_left_a_range_hides_nothing_that_is_in_it(
    conn: psycopg.Connection, aconn: psycopg.AsyncConnection
) -> None:
    """A newer event was delivered within the range and again behind it: the page has the older event of another."""
    add_config(conn)
    conn.execute("insert into contacts values (1, 'L', 'x')")
    [older] = await try_all(aconn, Delivered())
    add_config(conn, "M")
    conn.execute("insert into contacts values (2, 'M', 'x')")
    [newer] = await try_all(aconn, Delivered())
    until = await history.now(aconn)
    await replay(aconn, Filter(event=newer.event_id))
    await try_all(aconn, Delivered())
    chosen = Filter(since=older.event_created_at, until=until)
    found = await history.deliveries(aconn, chosen, limit=1, order=Order.CAPTURED)
    assert [each.event_id for each in found] == [older.event_id]


async def test_what_a_config_was_for_is_found(conn: psycopg.Connection, aconn: psycopg.AsyncConnection) -> None:
    """A search by resource begins with the configs that are for it, and does not forget those that were."""
    config, other = add_config(conn), add_config(conn)
    conn.execute("insert into contacts values (1, 'L', 'x')")
    await try_all(aconn, Delivered())
    conn.execute("update outbox.postback_configs set resource = 'tag' where id = %s", [config])
    found = await history.deliveries(aconn, Filter(resource="contact"), limit=10)
    assert {each.config_id for each in found} == {config, other}
    assert await history.deliveries(aconn, Filter(resource="tag"), limit=10) == []
    assert await history.count(aconn, Filter(resource="contact"), most=10) == (2, False)
    assert await history.count(aconn, Filter(resource="contact"), most=2) == (2, True)


def rows_read(conn: psycopg.Connection, query: sql.Composed, parameters: dict[str, object]) -> tuple[float, str]:
    """Return how many rows of the logs a query reads, and its plan."""
    row = conn.execute(sql.SQL("explain (analyze, format json) ") + query, parameters).fetchone()
    assert row is not None

    def read(node: dict[str, Any]) -> float:
        below = sum(read(each) for each in node.get("Plans", ()))
        if not node.get("Relation Name", "").startswith(("attempts", "events", "deliveries")):
            return below
        passed = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
        return below + float(passed) * float(node["Actual Loops"])

    return read(row[0][0]["Plan"]), str(row[0])[:3000]


def test_a_record_that_has_had_very_many_events_gets_one_more_as_easily(every_db: str) -> None:
    """A counter or a balance that changes all day: its next event reads no more than another's first."""
    with psycopg.connect(every_db, autocommit=True) as conn:
        add = (
            "insert into outbox.events (id, created_at, type, resource, resource_id, data) "
            "select gen_random_uuid(), now(), 'UPDATE', 'balance', %s, '{}' from generate_series(1, %s)"
        )
        conn.execute(add.encode(), ["hot", 60_000])
        pages = []
        for record in ("hot", "cold"):
            row = conn.execute(b"explain (analyze, buffers, format json) " + add.encode(), [record, 1]).fetchone()
            assert row is not None
            pages.append(row[0][0]["Plan"]["Shared Hit Blocks"] + row[0][0]["Plan"]["Shared Read Blocks"])
        assert pages[0] <= pages[1] + 80, pages
