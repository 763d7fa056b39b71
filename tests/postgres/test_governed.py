"""The claim of governed configs keeps their order, their pace and their circuit, and common ones are not touched."""

import datetime as dt
import re
from collections.abc import Collection
from typing import Any

import psycopg
import pytest

from outbox.core.circuit import Change, Run
from outbox.core.model import NO_CONFIG, Attempt, ConfigId, Dead, Delivered, Delivery, Outcome, Retry
from outbox.postgres import circuits, governed, queue, routing
from outbox.postgres.pool import Link
from outbox.postgres.replay import replay
from outbox.postgres.selection import Filter, State
from tests.daemons import add_config, attach_contacts

URL = "http://127.0.0.1/"


@pytest.fixture
def contacts(conn: psycopg.Connection) -> psycopg.Connection:
    attach_contacts(conn)
    return conn


async def route(conn: psycopg.AsyncConnection, *, rows: int = 1000, slots: int = 100) -> list[Delivery]:
    return (await routing.route(conn, low=0, rows=rows, slots=slots, room=100, rooms={}, lease=60)).deliveries


async def claim(
    conn: psycopg.AsyncConnection, *, slots: int = 100, room: int = 100, hidden: tuple[int, Collection[int]] = (0, ())
) -> list[Delivery]:
    await governed.prepare(conn)
    found = await governed.claim_governed(
        conn, after=NO_CONFIG, slots=slots, room=room, rooms={}, lease=60, hidden=hidden
    )
    return found.deliveries


async def settle(conn: psycopg.AsyncConnection, delivery: Delivery, outcome: Outcome) -> bool:
    settled = await queue.settle(conn, [Attempt(delivery, outcome, 200, b"", 5, dt.datetime.now(dt.UTC))])
    assert not settled.lost
    return settled.freed


def change(conn: psycopg.Connection, *names: str, record: int = 1) -> None:
    """Make and rename a record, a transaction for each."""
    for name in names:
        conn.execute(
            "insert into contacts (id, name) values (%s, %s) on conflict (id) do update set name = excluded.name",
            [record, name],
        )


async def first_claimed(contacts: psycopg.Connection, conn: psycopg.AsyncConnection) -> Delivery:
    """Make a record for a config with strict order, and claim its delivery."""
    add_config(contacts, URL, strict_order="release")
    change(contacts, "a")
    await route(conn)
    [first] = await claim(conn)
    return first


def names(deliveries: list[Delivery]) -> list[str]:
    return sorted((delivery.data or "").split('"name":"')[1].removesuffix('"}') for delivery in deliveries)


async def test_route_and_the_common_claim_leave_governed_configs_alone(
    contacts: psycopg.Connection, dconn: psycopg.AsyncConnection
) -> None:
    """What they are owed waits, due, for the claim that knows their rules; the others' goes out at once."""
    for fields in ({"strict_order": "hold"}, {"rate_limit": 5}, {"circuit_opened_at": "now"}):
        add_config(contacts, URL, **fields)
    common = str(add_config(contacts, URL))
    change(contacts, "a")
    assert {each.config_id for each in await route(dconn)} == {common}
    claimed = await queue.claim(dconn, after=NO_CONFIG, slots=9, room=9, rooms={}, lease=60)
    assert claimed.deliveries == []
    assert len(await claim(dconn)) == 3


@pytest.mark.parametrize("field", ["is_active", "paused_at"])
async def test_what_is_held_is_not_claimed(
    contacts: psycopg.Connection, dconn: psycopg.AsyncConnection, field: str
) -> None:
    """A governed config that is inactive or paused sends nothing."""
    add_config(contacts, URL, strict_order="release")
    change(contacts, "a")
    await route(dconn)
    await governed.prepare(dconn)
    value = False if field == "is_active" else "now"
    contacts.execute(f"update outbox.postback_configs set {field} = %s".encode(), [value])  # noqa: S608 - our own names
    assert await claim(dconn) == []


async def test_the_changes_of_a_record_go_one_after_the_other(
    contacts: psycopg.Connection, dconn: psycopg.AsyncConnection
) -> None:
    """A later change waits for the end of the earlier one; other records do not wait; each settle frees the next."""
    add_config(contacts, URL, strict_order="release")
    change(contacts, "a", "b", "c")
    change(contacts, "x", record=2)
    await route(dconn)
    first = await claim(dconn)
    assert names(first) == ["a", "x"]
    assert await claim(dconn) == []
    one = next(each for each in first if each.data and '"id":1' in each.data)
    assert not await settle(dconn, one, Retry(300, "status 500"))
    contacts.execute("update outbox.deliveries set due_at = now() where event_id = %s", [one.event_id])
    [again] = await claim(dconn)
    assert (names([again]), again.attempt) == (["a"], 2)
    assert await settle(dconn, again, Delivered())
    [second] = await claim(dconn)
    assert (names([second]), second.attempt, second.attempts_uncounted) == (["b"], 1, 0)
    await settle(dconn, second, Delivered())
    [third] = await claim(dconn)
    assert names([third]) == ["c"]
    assert not await settle(dconn, third, Delivered())


async def test_a_settle_tells_of_a_next_change_that_is_due_already(
    contacts: psycopg.Connection, dconn: psycopg.AsyncConnection
) -> None:
    """No claim has seen it, or it was parked for less time than the try took: somebody has to look."""
    first = await first_claimed(contacts, dconn)
    change(contacts, "b")
    await route(dconn)
    assert await settle(dconn, first, Delivered())


@pytest.mark.parametrize(
    ("fields", "room", "expected"),
    [
        ({"strict_order": "hold"}, 3, "all"),
        ({"strict_order": "hold"}, 2, "cut short"),
        ({"rate_limit": 2}, 9, "cut short"),
        ({"rate_limit": 3}, 9, "all"),
        ({"circuit_opened_at": "now"}, 9, "cut short"),
    ],
)
async def test_a_claim_tells_whether_there_may_be_more_of_a_config(
    contacts: psycopg.Connection, dconn: psycopg.AsyncConnection, fields: dict[str, Any], room: int, expected: str
) -> None:
    """Where it got all that it was allowed: only then is there anything to look for again."""
    add_config(contacts, URL, **fields)
    for record in (1, 2):
        change(contacts, "a", record=record)
    await route(dconn)
    await governed.prepare(dconn)
    found = await governed.claim_governed(dconn, after=NO_CONFIG, slots=9, room=room, rooms={}, lease=60)
    assert found.cut_short is (expected == "cut short")


@pytest.mark.parametrize(("mode", "expected"), [("release", ["b"]), ("hold", [])])
async def test_a_dead_change_releases_or_holds(
    contacts: psycopg.Connection, dconn: psycopg.AsyncConnection, mode: str, expected: list[str]
) -> None:
    """As the config says; where it holds, a replay of the dead one sets the record going again."""
    add_config(contacts, URL, strict_order=mode)
    change(contacts, "a", "b")
    await route(dconn)
    [dead] = await claim(dconn)
    await settle(dconn, dead, Dead("status 500"))
    assert names(await claim(dconn)) == expected
    if mode == "hold":
        assert await replay(dconn, Filter(states=[State.DEAD])) == 1
        [revived] = await claim(dconn)
        assert names([revived]) == ["a"]
        await settle(dconn, revived, Delivered())
        assert names(await claim(dconn)) == ["b"]


async def test_a_replayed_delivery_goes_before_what_is_owed_of_its_record(
    contacts: psycopg.Connection, dconn: psycopg.AsyncConnection
) -> None:
    """What was delivered and is replayed has its place in the order as the first time."""
    first = await first_claimed(contacts, dconn)
    await settle(dconn, first, Delivered())
    assert await replay(dconn, Filter(states=[State.DELIVERED])) == 1
    change(contacts, "b")
    await route(dconn)
    assert names(await claim(dconn)) == ["a"]


async def test_nothing_goes_before_what_another_daemon_is_routing(
    contacts: psycopg.Connection, dconn: psycopg.AsyncConnection, db: str
) -> None:
    """An earlier change that is in an uncommitted route of another daemon is neither owed nor gone: it holds."""
    add_config(contacts, URL, strict_order="release")
    change(contacts, "a", "b")
    link = Link(db, "other")
    other = await link.connection()
    async with other.transaction():
        await route(other, rows=1)
        await route(dconn)
        assert contacts.execute("select count(*) from outbox.deliveries").fetchone() == (1,)
        assert await claim(dconn) == []
    assert names(await claim(dconn)) == ["a"]
    await link.drop()


async def test_nothing_goes_before_what_was_committed_late(
    contacts: psycopg.Connection, dconn: psycopg.AsyncConnection, db: str
) -> None:
    """It is below where the claim looks, but not while he who captured it is under way."""
    add_config(contacts, URL, strict_order="release")
    with psycopg.connect(db) as late:
        change(late, "early", record=1)
        row = late.execute("select pg_current_xact_id()::text::bigint, max(seq) from outbox.outbox").fetchone()
        assert row is not None
        hidden = (row[1], {row[0]})
        change(contacts, "a", record=2)
        await route(dconn)
        assert names(await claim(dconn, hidden=hidden)) == ["a"]
        change(contacts, "b", record=3)
        await route(dconn)
        change(contacts, "c", record=4)
        late.commit()
        assert await claim(dconn, hidden=hidden) == []
    await route(dconn)
    assert set(names(await claim(dconn))) == {"early", "b", "c"}


async def test_what_is_blocked_is_not_read_again_at_each_claim(
    contacts: psycopg.Connection, dconn: psycopg.AsyncConnection
) -> None:
    """A long line behind one record is put off, and still goes out in its order, each when its turn comes."""
    add_config(contacts, URL, strict_order="release")
    change(contacts, *(f"{n:02}" for n in range(20)))
    await route(dconn)
    [head] = await claim(dconn)
    due = "select count(*) from outbox.deliveries where due_at <= now()"
    assert contacts.execute(due).fetchone() == (0,)
    sent = []
    while True:
        sent += names([head])
        await settle(dconn, head, Delivered())
        following = await claim(dconn)
        if not following:
            break
        [head] = following
    assert sent == [f"{n:02}" for n in range(20)]


async def test_a_dead_daemons_delivery_still_holds_its_record(
    contacts: psycopg.Connection, dconn: psycopg.AsyncConnection
) -> None:
    """Its outcome is unknown: it is repeated, at no cost to its budget, before anything that follows it."""
    add_config(contacts, URL, strict_order="release")
    change(contacts, "a", "b")
    await route(dconn)
    await claim(dconn)
    contacts.execute("update outbox.deliveries set due_at = now()")
    [again] = await claim(dconn)
    assert (names([again]), again.attempt, again.attempts_uncounted) == (["a"], 2, 1)


async def test_a_rate_limit_holds_over_all_daemons(
    contacts: psycopg.Connection, dconn: psycopg.AsyncConnection, db: str
) -> None:
    """There is one bucket: what a daemon took, no other can take; it fills with time and holds a second's worth."""
    add_config(contacts, URL, rate_limit=3)
    contacts.execute("insert into contacts (id) select i from generate_series(1, 50) as i")
    await route(dconn)
    await governed.prepare(dconn)
    # In the future, so that nothing is refilled while the test runs.
    stop_the_clock = "update outbox.config_state set refilled_at = now() + interval '50 seconds', tokens = 3 + 3 * 50"
    contacts.execute(stop_the_clock)
    link = Link(db, "other")
    other = await link.connection()
    assert len(await claim(dconn, room=2)) == 2
    contacts.execute(
        "update outbox.config_state set refilled_at = now() + interval '50 seconds', tokens = tokens + 150"
    )
    assert len(await claim(other)) == 1
    contacts.execute(
        "update outbox.config_state set refilled_at = now() + interval '50 seconds', tokens = tokens + 150"
    )
    held_back = await governed.claim_governed(dconn, after=NO_CONFIG, slots=9, room=9, rooms={}, lease=60)
    assert held_back.deliveries == []
    assert held_back.refilled_in is not None
    contacts.execute("update outbox.config_state set refilled_at = now() - interval '1 hour', tokens = 0")
    assert len(await claim(dconn)) == 3
    await link.drop()


async def test_the_walk_over_many_configs_goes_on_where_it_ended(
    contacts: psycopg.Connection, dconn: psycopg.AsyncConnection
) -> None:
    """A claim serves some configs, the next one those behind them, until all were served."""
    configs = {str(add_config(contacts, URL, rate_limit=5)) for _ in range(10)}
    change(contacts, "a")
    await route(dconn)
    await governed.prepare(dconn)
    after: ConfigId | None = NO_CONFIG
    served: list[ConfigId] = []
    sizes = []
    while after is not None:
        found = await governed.claim_governed(dconn, after=after, slots=99, room=9, rooms={}, lease=60, configs=4)
        served += [each.config_id for each in found.deliveries]
        sizes.append(len(found.deliveries))
        after = found.walked_to
    assert (sizes, set(served), len(served)) == ([4, 4, 2], configs, 10)


async def test_an_open_circuit_lets_a_probe_through_now_and_then(
    contacts: psycopg.Connection, dconn: psycopg.AsyncConnection
) -> None:
    """One delivery each time, and each wait for the next is longer; nothing else is tried or counted."""
    config = ConfigId(str(add_config(contacts, URL)))
    contacts.execute("insert into contacts (id) select i from generate_series(1, 50) as i")
    await route(dconn, slots=0)
    await circuits.note(dconn, {config: Run(failures=40, troubles=40, reason="status 503")}, silence=None)
    assert await circuits.make(dconn, config, Change.OPENED, "status 503")
    assert not await circuits.make(dconn, config, Change.OPENED, "status 503")
    assert await claim(dconn) == []
    waits = []
    for _ in range(8):
        contacts.execute("update outbox.config_state set probe_at = now()")
        assert len(await claim(dconn)) == 1
        assert await claim(dconn) == []
        row = contacts.execute("select round(extract(epoch from probe_at - now())) from outbox.config_state").fetchone()
        waits.append(int((row or [0])[0]))
    assert waits == [5, 10, 20, 40, 80, 160, 300, 300]
    assert contacts.execute("select count(*) from outbox.deliveries where attempts = 0").fetchone() == (42,)


async def test_each_change_is_an_event_once(contacts: psycopg.Connection, dconn: psycopg.AsyncConnection) -> None:
    """However many daemons see the reason, one makes the change, and the outbox has one row for it."""
    config = ConfigId(str(add_config(contacts, URL)))
    for change_ in (Change.EXHAUSTED, Change.OPENED, Change.CLOSED, Change.RECOVERED, Change.DISABLED):
        assert await circuits.make(dconn, config, change_, "status 503")
        assert not await circuits.make(dconn, config, change_, "status 503")
    rows = contacts.execute(
        "select type, resource, resource_id, location_id, data ->> 'change', data ->> 'is_active' from outbox.outbox"
    ).fetchall()
    assert rows == [
        ("UPDATE", "postbackconfig", str(config), "L", change_, active)
        for change_, active in [
            ("exhausted", "true"), ("opened", "true"), ("closed", "true"), ("recovered", "true"), ("disabled", "false"),
        ]
    ]  # fmt: skip
    stored = contacts.execute("select is_active, disabled_reason from outbox.postback_configs").fetchone()
    assert stored == (False, "status 503")


async def test_who_is_told_of_configs_is_not_told_of(
    contacts: psycopg.Connection, dconn: psycopg.AsyncConnection
) -> None:
    """Its circuit opens like any other's, without an event that could fail in its turn."""
    config = ConfigId(str(add_config(contacts, URL, resource="postbackconfig")))
    assert await circuits.make(dconn, config, Change.OPENED, "status 429")
    assert contacts.execute("select from outbox.outbox").fetchone() is None


async def test_failures_are_counted_until_a_success(
    contacts: psycopg.Connection, dconn: psycopg.AsyncConnection
) -> None:
    """Over batches and daemons; a success forgets them, and a config that never failed gets no row."""
    sick, healthy = (ConfigId(str(add_config(contacts, URL))) for _ in range(2))
    for expected in (2, 4):
        found = await circuits.note(
            dconn, {sick: Run(failures=2, troubles=1), healthy: Run(succeeded=True)}, silence=None
        )
        assert (found[sick].failures, found[sick].troubles) == (expected, expected // 2)
        assert (found[healthy].failures, found[healthy].failing_seconds) == (0, 0.0)
    assert await circuits.failing(dconn) == {sick}
    contacts.execute("update outbox.postback_configs set is_active = false")
    assert await circuits.failing(dconn) == set()
    contacts.execute("update outbox.postback_configs set is_active = true")
    after = await circuits.note(dconn, {sick: Run(succeeded=True, failures=1)}, silence=None)
    assert (after[sick].failures, after[sick].troubles) == (1, 0)
    await circuits.note(dconn, {sick: Run(succeeded=True)}, silence=None)
    assert await circuits.failing(dconn) == set()
    assert contacts.execute("select config_id::text, failures from outbox.config_state").fetchall() == [(sick, 0)]


@pytest.mark.parametrize(("silent_for", "failing_for"), [("47 hours", 4), ("49 hours", 0)])
async def test_after_a_long_silence_failures_begin_anew(
    silent_for: str, failing_for: int, contacts: psycopg.Connection, dconn: psycopg.AsyncConnection
) -> None:
    """One POST that failed last week, and none since, is not a week of failures."""
    config = ConfigId(str(add_config(contacts, URL)))
    failed = {config: Run(failures=1, reason="status 503")}
    await circuits.note(dconn, failed, silence=2 * 86_400)
    aged = "update outbox.config_state set failing_since = now() - interval '4 days', failed_at = now() - %s::interval"
    contacts.execute(aged.encode(), [silent_for])
    for failures in (2, 3):
        condition = (await circuits.note(dconn, failed, silence=2 * 86_400))[config]
        assert (condition.failures, round(condition.failing_seconds / 86_400)) == (failures, failing_for)


async def test_a_clock_that_was_put_back_holds_nobody(
    contacts: psycopg.Connection, dconn: psycopg.AsyncConnection
) -> None:
    """What was written in what is now the future is out of date: the bucket is full, and the probe is due."""
    add_config(contacts, URL, rate_limit=3)
    add_config(contacts, URL, circuit_opened_at="now")
    contacts.execute("insert into contacts (id) select i from generate_series(1, 50) as i")
    await route(dconn)
    await governed.prepare(dconn)
    contacts.execute("update outbox.config_state set tokens = 0, refilled_at = now() + interval '9 days'")
    contacts.execute("update outbox.config_state set probe_at = now() + interval '9 days'")
    assert len(await claim(dconn)) == 3 + 1
    assert await claim(dconn) == []


async def test_a_circuit_whose_probe_is_not_due_is_left_alone(
    contacts: psycopg.Connection, dconn: psycopg.AsyncConnection
) -> None:
    """A claim locks nothing of it: with many open circuits each claim would else write a row for each."""
    add_config(contacts, URL, circuit_opened_at="now")
    contacts.execute("insert into contacts (id) values (1)")
    await route(dconn)
    await governed.prepare(dconn)
    contacts.execute("update outbox.config_state set probe_at = now() + interval '9 seconds'")
    assert await claim(dconn) == []
    assert contacts.execute("select xmax::text from outbox.config_state").fetchone() == ("0",)


async def test_what_is_blocked_by_a_retry_is_looked_at_again_soon(
    contacts: psycopg.Connection, dconn: psycopg.AsyncConnection
) -> None:
    """However late the retry is: the order may be switched off meanwhile, and then nothing else would free it."""
    config = add_config(contacts, URL, strict_order="release")
    change(contacts, "a", "b")
    await route(dconn)
    [first] = await claim(dconn)
    await settle(dconn, first, Retry(86_400, "status 500"))
    assert await claim(dconn) == []
    row = contacts.execute(
        "select due_at <= now() + %s * interval '1 second' from outbox.deliveries where attempts = 0",
        [governed.PARKED_SECONDS],
    ).fetchone()
    assert row == (True,)
    contacts.execute("update outbox.postback_configs set strict_order = 'off', rate_limit = 9 where id = %s", [config])
    contacts.execute("update outbox.deliveries set due_at = now() where attempts = 0")
    assert names(await claim(dconn)) == ["b"]


async def test_what_waits_long_is_looked_at_less_often(
    contacts: psycopg.Connection, dconn: psycopg.AsyncConnection
) -> None:
    """Or a long line behind a record that stands would be written anew each minute; who is next is not put off more."""
    add_config(contacts, URL, strict_order="release")
    change(contacts, "a", "b", "c", "d")
    await route(dconn)
    await claim(dconn)
    contacts.execute("update outbox.deliveries set due_at = now(), event_created_at = now() - interval '5 minutes'")
    contacts.execute("update outbox.deliveries set due_at = now() + interval '1 hour' where leased")
    assert await claim(dconn) == []
    waits = contacts.execute(
        "select width_bucket(extract(epoch from due_at - now()), array[10, 200, 301]) from outbox.deliveries "
        "where not leased order by event_id"
    ).fetchall()
    assert waits == [(0,), (2,), (2,)]


async def test_the_next_change_is_found_by_the_index_of_the_order(
    contacts: psycopg.Connection, dconn: psycopg.AsyncConnection
) -> None:
    """Also by a planner that believes that all is one record's: else each settle reads all that is owed after it."""
    config = add_config(contacts, URL, strict_order="release")
    contacts.execute(
        "insert into outbox.deliveries (event_id, config_id, event_created_at, order_key) "
        "select (lpad(to_hex(i), 12, '0') || '80000000000000000000')::uuid, %s, now(), 42 "
        "from generate_series(1, 20000) as i",
        [config],
    )
    contacts.execute("analyze outbox.deliveries")
    plans = ""
    for query, arrays in ((queue._SETTLE, True), (governed._CLAIM_GOVERNED, False)):  # noqa: SLF001 - no other way to its plan
        names_ = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", query.decode())))
        values: dict[str, object] = dict.fromkeys(names_, [] if arrays else 1)
        values |= {} if arrays else {"busy": [], "rooms": [], "passed": [], "after": NO_CONFIG}
        rows = await (await dconn.execute(b"explain (costs off) " + query, values)).fetchall()
        plans += "\n".join(line for (line,) in rows) + "\n"
    by_index = set(re.findall(r"using (deliveries_\w+) on deliveries (?:n|e)_", plans))
    assert by_index == {"deliveries_order"}
    assert set(re.findall(r"using (deliveries_\w+) on deliveries d_[2-9]", plans)) == {"deliveries_pkey"}
