"""Route, claim, settle and release keep every promise of the queue, each in one statement."""

import datetime as dt
import json
import re
from collections import Counter

import psycopg
import pytest

from outbox.core.bypass import TO_THE_END
from outbox.core.model import NO_CONFIG, Attempt, ConfigId, Dead, Delivered, Delivery, Outcome, Retry
from outbox.postgres import governed, queue, routing
from outbox.postgres.pool import Link
from tests.ids import config_id


@pytest.fixture
def contacts(conn: psycopg.Connection) -> psycopg.Connection:
    """An attached table of contacts."""
    conn.execute("create table contacts (id int primary key, location_id text, name text)")
    conn.execute("select outbox.attach('contacts', 'contact')")
    return conn


def add_config(conn: psycopg.Connection, **fields: object) -> ConfigId:
    fields = {"location_id": "L", "resource": "contact", "url": "http://127.0.0.1/", **fields}
    names, marks = ", ".join(fields), ", ".join(["%s"] * len(fields))
    query = f"insert into outbox.postback_configs ({names}) values ({marks}) returning id"  # noqa: S608 - our own names
    row = conn.execute(query.encode(), list(fields.values())).fetchone()
    assert row is not None
    return ConfigId(str(row[0]))


async def route(conn: psycopg.AsyncConnection, slots: int = 0, room: int = 10) -> tuple[int, list[Delivery]]:
    routed = await routing.route(conn, low=0, rows=1000, slots=slots, room=room, rooms={}, lease=60)
    return routed.rows, routed.deliveries


async def claim(conn: psycopg.AsyncConnection, slots: int = 100, room: int = 10) -> list[Delivery]:
    return (await queue.claim(conn, after=NO_CONFIG, slots=slots, room=room, rooms={}, lease=60)).deliveries


async def settle(conn: psycopg.AsyncConnection, delivery: Delivery, outcome: Outcome) -> int:
    attempt = Attempt(delivery, outcome, 200, b"ok\0", 5, dt.datetime.now(dt.UTC))
    return len((await queue.settle(conn, [attempt])).lost)


def owed(conn: psycopg.Connection) -> list[tuple[str, int]]:
    return conn.execute("select state, attempts from outbox.deliveries order by event_id, config_id").fetchall()


async def test_route_makes_one_event_and_a_delivery_for_each_config_that_wants_it(
    contacts: psycopg.Connection, dconn: psycopg.AsyncConnection
) -> None:
    """Location, type, activity and merchant account decide; an event that nobody wants is kept as well."""
    wanted = {add_config(contacts), add_config(contacts), add_config(contacts, location_id=None)}
    add_config(contacts, location_id="M")
    add_config(contacts, on_create=False)
    add_config(contacts, is_active=False)
    add_config(contacts, resource="other")
    add_config(contacts, product_transaction_id="p")
    contacts.execute("insert into contacts values (1, 'L', 'a'), (2, 'nowhere', 'b')")
    routed, leased = await route(dconn, slots=10)
    assert routed == 2
    assert {delivery.config_id for delivery in leased if delivery.data and '"id":1' in delivery.data} == wanted
    assert contacts.execute("select count(*) from outbox.events").fetchone() == (2,)
    assert contacts.execute("select count(*) from outbox.outbox").fetchone() == (0,)
    assert owed(contacts) == [("pending", 1)] * 4


async def overtake(
    conn: psycopg.AsyncConnection,
    flood: list[ConfigId],
    *,
    low: int = 0,
    high: int = TO_THE_END,
    scan: int = 1000,
    rows: int = 100,
) -> routing.Routed:
    return await routing.overtake(
        conn, low=low, high=high, scan=scan, flood=flood, rows=rows, slots=100, room=10, rooms={}, lease=60
    )  # fmt: skip


def records(found: queue.Claimed) -> list[tuple[ConfigId, str]]:
    return [(each.config_id, str(json.loads(each.data or "{}")["id"])) for each in found.deliveries]


def left(conn: psycopg.Connection) -> list[str]:
    return [record for (record,) in conn.execute("select resource_id from outbox.outbox order by seq").fetchall()]


async def test_what_others_want_overtakes_a_flood(contacts: psycopg.Connection, dconn: psycopg.AsyncConnection) -> None:
    """Also what a config of the flood wants that is for all locations; nothing that only it wants, or nobody."""
    flood, other = add_config(contacts), add_config(contacts, location_id="M")
    everywhere = add_config(contacts, location_id=None, on_delete=False)
    contacts.execute("insert into contacts select i, 'L', 'x' from generate_series(1, 5) i")
    contacts.execute("insert into contacts values (6, 'M', 'x'), (7, 'nowhere', 'x'), (8, null, 'x')")
    contacts.execute("delete from contacts where id = 6")
    found = await overtake(dconn, [flood, everywhere])
    assert sorted(records(found)) == sorted([(other, "6"), (everywhere, "6"), (other, "6")])
    assert left(contacts) == ["1", "2", "3", "4", "5", "7", "8"]
    assert (found.rows, found.created) == (2, 3)
    again = await overtake(dconn, [flood, everywhere])
    assert (again.rows, again.deliveries) == (0, [])


async def test_a_config_of_a_flood_gets_nothing_of_its_own_location_before_its_time(
    contacts: psycopg.Connection, dconn: psycopg.AsyncConnection
) -> None:
    """Another config of that location would else have the last change of a record sent before the first."""
    flood = add_config(contacts)
    add_config(contacts, on_create=False)
    contacts.execute("insert into contacts values (1, 'L', 'x')")
    contacts.execute("delete from contacts")
    assert (await overtake(dconn, [flood])).rows == 0
    assert left(contacts) == ["1", "1"]


async def test_what_cannot_be_sent_at_once_overtakes_nothing(
    contacts: psycopg.Connection, dconn: psycopg.AsyncConnection
) -> None:
    """It would only be read twice: paused, switched off or deleted, or part of the flood itself."""
    flood = [add_config(contacts), add_config(contacts, location_id=None)]
    paused, deleted = add_config(contacts), add_config(contacts)
    contacts.execute("update outbox.postback_configs set paused_at = now() where id = %s", [paused])
    contacts.execute("update outbox.postback_configs set deleted_at = now() where id = %s", [deleted])
    add_config(contacts, is_active=False)
    contacts.execute("insert into contacts values (1, 'L', 'x'), (2, 'M', 'x')")
    assert (await overtake(dconn, flood)).rows == 0
    assert left(contacts) == ["1", "2"]


async def test_what_a_config_with_a_rate_limit_wants_overtakes_a_flood(
    contacts: psycopg.Connection, dconn: psycopg.AsyncConnection
) -> None:
    """It is not leased: the claim that knows its limit finds it."""
    flood, _ = add_config(contacts), add_config(contacts, location_id="M", rate_limit=1)
    contacts.execute("insert into contacts values (1, 'L', 'x'), (2, 'M', 'x')")
    found = await overtake(dconn, [flood])
    assert (found.rows, found.created, found.deliveries, found.left) == (1, 1, [], {})
    assert left(contacts) == ["1"]


async def test_a_route_tells_of_which_configs_it_left_something(
    contacts: psycopg.Connection, dconn: psycopg.AsyncConnection
) -> None:
    """For want of room or of slots; what a config may not get now is not among it."""
    first, other = add_config(contacts), add_config(contacts, location_id="M")
    add_config(contacts, rate_limit=1)
    contacts.execute("insert into contacts values (1, 'L', 'x'), (2, 'L', 'x'), (3, 'L', 'x'), (4, 'M', 'x')")
    found = await routing.route(dconn, low=0, rows=9, slots=3, room=2, rooms={}, lease=60)
    assert records(found) == [(first, "1"), (other, "4"), (first, "2")]
    assert found.left == {first: 1}
    contacts.execute("insert into contacts values (5, 'L', 'x'), (6, 'M', 'x')")
    found = await routing.route(dconn, low=0, rows=9, slots=0, room=2, rooms={}, lease=60)
    assert (found.deliveries, found.left) == ([], {first: 1, other: 1})


async def test_nothing_that_a_config_with_strict_order_wants_is_overtaken(
    contacts: psycopg.Connection, dconn: psycopg.AsyncConnection
) -> None:
    """A change of the same record may stand before it in the flood, when the record has moved since."""
    flood, _ = add_config(contacts), add_config(contacts, location_id="M")
    strict = add_config(contacts, location_id=None, strict_order="hold")
    contacts.execute("insert into contacts values (1, 'L', 'x'), (2, 'M', 'x')")
    found = await overtake(dconn, [flood])
    assert (found.rows, found.in_order) == (0, True)
    contacts.execute("update outbox.postback_configs set deleted_at = now() where id = %s", [strict])
    found = await overtake(dconn, [flood])
    assert (found.rows, found.in_order) == (1, False)


async def test_a_look_behind_a_flood_goes_on_where_the_last_one_came_to(
    contacts: psycopg.Connection, dconn: psycopg.AsyncConnection
) -> None:
    """As far as it looked; or, where it found as many as it may take, as far as it took."""
    flood, other = add_config(contacts), add_config(contacts, location_id="M")
    contacts.execute("insert into contacts select i, (array['L', 'M'])[1 + (i + 1) % 2] from generate_series(1, 9) i")
    first = await overtake(dconn, [flood], scan=6, rows=2)
    assert records(first) == [(other, "2"), (other, "4")]
    second = await overtake(dconn, [flood], scan=2, rows=2, low=first.top or 0)
    assert records(second) == [(other, "6")]
    third = await overtake(dconn, [flood], scan=6, rows=2, low=second.top or 0)
    assert records(third) == [(other, "8")]
    fourth = await overtake(dconn, [flood], low=third.top or 0)
    assert (fourth.rows, fourth.top) == (0, None)
    assert left(contacts) == ["1", "3", "5", "7", "9"]


async def test_a_look_behind_a_flood_takes_nothing_above_where_it_is_to_end(
    contacts: psycopg.Connection, dconn: psycopg.AsyncConnection
) -> None:
    """What is there was looked at already, and is the flood's or somebody's whose place it keeps."""
    flood, other = add_config(contacts), add_config(contacts, location_id="M")
    contacts.execute("insert into contacts select i, (array['L', 'M'])[1 + (i + 1) % 2] from generate_series(1, 9) i")
    found = await overtake(dconn, [flood], high=await routing.last(dconn) - 4)
    assert records(found) == [(other, "2"), (other, "4")]
    assert found.to_the_end


async def test_the_last_number_is_that_of_whoever_has_taken_one(
    contacts: psycopg.Connection, dconn: psycopg.AsyncConnection, db: str
) -> None:
    """Whether he commits or not."""
    before = await routing.last(dconn)
    contacts.execute("insert into contacts values (1, 'L')")
    with psycopg.connect(db) as slow:
        slow.execute("insert into contacts values (2, 'L'), (3, 'L')")
        assert await routing.last(dconn) == before + 3
        slow.rollback()
    assert await routing.last(dconn) == before + 3


async def test_what_is_below_the_mark_is_known_by_its_lowest(
    contacts: psycopg.Connection, dconn: psycopg.AsyncConnection, db: str
) -> None:
    """What is not committed is not there yet."""
    before = await routing.last(dconn)
    assert await routing.lowest(dconn, up_to=before + 3) is None
    with psycopg.connect(db) as late:
        late.execute("insert into contacts values (1, 'L')")
        contacts.execute("insert into contacts values (2, 'L'), (3, 'L')")
        assert await routing.lowest(dconn, up_to=before + 1) is None
        assert await routing.lowest(dconn, up_to=before + 3) == before + 2
    assert await routing.lowest(dconn, up_to=before + 3) == before + 1


async def test_a_route_tells_what_another_daemon_is_routing(
    contacts: psycopg.Connection, dconn: psycopg.AsyncConnection, db: str
) -> None:
    """The lowest of it, up to where the route came: that may be there again when the other daemon dies. If asked."""
    add_config(contacts)
    contacts.execute("insert into contacts select i, 'X' from generate_series(1, 6) as i")
    [seqs] = contacts.execute("select array_agg(seq order by seq) from outbox.outbox").fetchone() or ([],)

    async def look(rows: int, *, tell_left: bool = True) -> tuple[int | None, int | None]:
        routed = await routing.route(
            dconn, low=0, rows=rows, slots=0, room=10, rooms={}, lease=60, tell_left=tell_left
        )  # fmt: skip
        return routed.top, routed.left_to_others

    with psycopg.connect(db) as other:
        other.execute("delete from outbox.outbox where seq = any(%s)", [[seqs[2], seqs[4]]])
        assert await look(2) == (seqs[1], None)
        assert await look(1) == (seqs[3], seqs[2])
        assert await look(1) == (seqs[5], seqs[2])
        assert await look(1) == (None, seqs[2])
        assert await look(1, tell_left=False) == (None, None)
    assert await look(1) == (None, None)


async def test_ids_sort_in_the_order_of_capture(contacts: psycopg.Connection, dconn: psycopg.AsyncConnection) -> None:
    """The order of the ids is the order in which the changes were captured."""
    contacts.execute("insert into contacts select i, 'L', 'x' from generate_series(1, 300) i")
    await route(dconn)
    rows = contacts.execute("select resource_id::int from outbox.events order by id").fetchall()
    assert [row[0] for row in rows] == list(range(1, 301))


async def test_route_leases_no_more_than_there_are_slots_and_room(
    contacts: psycopg.Connection, dconn: psycopg.AsyncConnection
) -> None:
    """What is not leased is due at once, and a claim gets the rest."""
    add_config(contacts)
    add_config(contacts)
    contacts.execute("insert into contacts select i, 'L', 'x' from generate_series(1, 5) i")
    _, leased = await route(dconn, slots=3, room=2)
    assert len(leased) == 3
    assert len(await claim(dconn)) == 7


async def test_claim_takes_at_most_its_room_of_each_config_and_nothing_twice(
    contacts: psycopg.Connection, dconn: psycopg.AsyncConnection
) -> None:
    """A config that owes much does not keep another's deliveries waiting."""
    big = add_config(contacts)
    contacts.execute("insert into contacts select i, 'L', 'x' from generate_series(1, 50) i")
    await route(dconn)
    small = add_config(contacts)
    contacts.execute("insert into contacts values (51, 'L', 'x'), (52, 'L', 'x')")
    await route(dconn)
    first = await claim(dconn, room=3)
    assert Counter(delivery.config_id for delivery in first) == {big: 3, small: 2}
    second = await claim(dconn, room=100)
    assert len(second) == 49
    assert not {(d.event_id, d.config_id) for d in first} & {(d.event_id, d.config_id) for d in second}


@pytest.mark.parametrize(("column", "value"), [("is_active", False), ("paused_at", "now"), ("deleted_at", "now")])
async def test_claim_leaves_what_is_held(
    contacts: psycopg.Connection, dconn: psycopg.AsyncConnection, column: str, value: object
) -> None:
    """What an inactive, paused or deleted config owes is not sent."""
    config = add_config(contacts)
    contacts.execute("insert into contacts values (1, 'L', 'x')")
    await route(dconn)
    contacts.execute(f"update outbox.postback_configs set {column} = %s where id = %s".encode(), [value, config])  # noqa: S608 - our own names
    assert await claim(dconn) == []


@pytest.mark.parametrize("outcome", [Delivered(), Retry(300, "status 500"), Dead("status 500")])
async def test_a_late_settle_changes_nothing(
    contacts: psycopg.Connection, dconn: psycopg.AsyncConnection, outcome: Outcome
) -> None:
    """Who lost the lease settles nothing, on acknowledge, retry and death alike; the try is logged all the same."""
    add_config(contacts)
    contacts.execute("insert into contacts values (1, 'L', 'x')")
    _, [late] = await route(dconn, slots=1)
    contacts.execute("update outbox.deliveries set due_at = now()")
    [current] = await claim(dconn)
    before = contacts.execute("select * from outbox.deliveries").fetchall()
    assert await settle(dconn, late, outcome) == 1
    assert contacts.execute("select * from outbox.deliveries").fetchall() == before
    assert await settle(dconn, current, outcome) == 0
    assert owed(contacts) == {"Delivered": [], "Retry": [("pending", 2)], "Dead": [("dead", 2)]}[type(outcome).__name__]
    assert contacts.execute("select count(*) from outbox.attempts").fetchone() == (2,)


async def test_release_gives_back_untried(contacts: psycopg.Connection, dconn: psycopg.AsyncConnection) -> None:
    """A released delivery is due at once, with the same number for its next try."""
    add_config(contacts)
    contacts.execute("insert into contacts values (1, 'L', 'x')")
    _, [leased] = await route(dconn, slots=1)
    assert await queue.release(dconn, [leased]) == 1
    assert await queue.release(dconn, [leased]) == 0
    assert await claim(dconn) == [leased]


async def test_every_config_has_its_turn(contacts: psycopg.Connection, dconn: psycopg.AsyncConnection) -> None:
    """Claims that begin after the config served last reach all of them, whatever the planner knows of the tables."""
    wanted = {add_config(contacts) for _ in range(40)}
    contacts.execute("insert into contacts select i, 'L', 'x' from generate_series(1, 20) i")
    await route(dconn)
    served = Counter[ConfigId]()
    after = NO_CONFIG
    for _ in range(16):
        claimed = await queue.claim(dconn, after=after, slots=10, room=4, rooms={}, lease=60)
        ids = [delivery.config_id for delivery in claimed.deliveries]
        assert ids == sorted(ids)
        served.update(ids)
        after = NO_CONFIG if len(ids) < 10 else ids[-1]
    assert served.keys() == wanted


async def test_a_claim_finds_the_same_whoever_was_served_before(
    contacts: psycopg.Connection, dconn: psycopg.AsyncConnection
) -> None:
    """Configs that were just served are steps of the walk, those between them are found by the index, none is left."""
    configs = sorted(add_config(contacts) for _ in range(9))
    contacts.execute("insert into contacts select i, 'L', 'x' from generate_series(1, 3) i")
    await route(dconn)
    contacts.execute("delete from outbox.deliveries where config_id = any (%s::uuid[])", [configs[3:5]])
    for served in ([], configs, configs[::2], configs[:1], configs[4:6], configs[-1:], [config_id(2**128 - 2)]):
        for after in (NO_CONFIG, configs[2], configs[3]):
            await dconn.execute("begin")
            found = await queue.claim(
                dconn, after=after, slots=99, room=2, rooms=dict.fromkeys(served, 1), lease=60, since={}
            )
            await dconn.execute("rollback")
            assert [each.config_id for each in found.deliveries] == [
                config
                for config in configs
                for _ in range(1 if config in served else 2)
                if config > after and config not in configs[3:5]
            ]


async def test_a_claim_looks_at_a_served_config_from_where_it_came(
    contacts: psycopg.Connection, dconn: psycopg.AsyncConnection
) -> None:
    """What is due at the same moment as the last that was claimed is still found."""
    config = add_config(contacts)
    contacts.execute("insert into contacts select i, 'L', 'x' from generate_series(1, 6) i")
    await route(dconn)
    contacts.execute(
        "with numbered as (select event_id, row_number() over (order by event_id) as n from outbox.deliveries) "
        "update outbox.deliveries as d set due_at = now() - interval '1 hour' + n.n / 3 * interval '1 minute' "
        "from numbered as n where d.event_id = n.event_id"
    )
    first = await queue.claim(dconn, after=NO_CONFIG, slots=99, room=3, rooms={}, lease=60)
    assert first.reached.keys() == {config}
    assert await queue.release(dconn, first.deliveries[:1], after=-3600) == 1
    second = await queue.claim(
        dconn, after=NO_CONFIG, slots=99, room=3, rooms={config: 9}, lease=60, since=first.reached
    )
    assert len(second.deliveries) == 3
    assert len((await queue.claim(dconn, after=NO_CONFIG, slots=99, room=3, rooms={}, lease=60)).deliveries) == 1


async def test_what_a_try_brought_is_kept_to_the_letter(
    contacts: psycopg.Connection, dconn: psycopg.AsyncConnection
) -> None:
    """Whatever a subscriber answers. Only what is no text in PostgreSQL is replaced, and an empty answer is none."""
    add_config(contacts)
    answers = [b'{"a": ["\\"x\\\\", NULL]}', b"NULL", b"\\", b'"', b"a,b}{ \t\r\n'", "ö😀".encode(), b"\xff\0", b""]
    contacts.execute("insert into contacts select i, 'L', 'x' from generate_series(1, %s) i", [len(answers)])
    _, leased = await route(dconn, slots=len(answers))
    at = dt.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=dt.timezone(dt.timedelta(hours=5, minutes=45)))
    retry = Retry(300, 'status 500: \ud800 "\\')
    attempts = [Attempt(each, retry, 500, answer, 5, at) for each, answer in zip(leased, answers, strict=True)]
    assert not (await queue.settle(dconn, attempts)).lost
    kept = contacts.execute(
        "select answer, error, at, event_created_at from outbox.attempts order by event_id"
    ).fetchall()
    assert [answer for answer, _, _, _ in kept] == [
        '{"a": ["\\"x\\\\", NULL]}', "NULL", "\\", '"', "a,b}{ \t\r\n'", "ö😀", "\ufffd\ufffd", None,
    ]  # fmt: skip
    assert {(error, at) for _, error, at, _ in kept} == {('status 500: ? "\\', at)}
    assert [created for _, _, _, created in kept] == [each.event_created_at for each in leased]


async def test_the_time_of_a_lease_is_in_utc_whatever_zone_the_server_keeps(
    contacts: psycopg.Connection, dconn: psycopg.AsyncConnection
) -> None:
    """Times of tries are reckoned from it, which Python does wrong in the hour that summer time ends with."""
    add_config(contacts)
    contacts.execute("insert into contacts values (1, 'L', 'x'), (2, 'L', 'x')")
    await dconn.execute("set timezone = 'Europe/Berlin'")
    routed = await routing.route(dconn, low=0, rows=9, slots=1, room=1, rooms={}, lease=60)
    claimed = await queue.claim(dconn, after=NO_CONFIG, slots=9, room=9, rooms={}, lease=60)
    nothing = await governed.claim_governed(dconn, after=NO_CONFIG, slots=9, room=9, rooms={}, lease=60)
    assert (len(routed.deliveries), len(claimed.deliveries)) == (1, 1)
    assert [each.now and each.now.tzinfo for each in (routed, claimed, nothing)] == [dt.UTC] * 3


async def test_no_statement_reads_the_whole_debt_for_its_few_rows(contacts: psycopg.Connection, db: str) -> None:
    """Also where the planner believes the table empty, as a vacuum leaves it whenever all was delivered."""
    config = add_config(contacts)
    fill = "insert into outbox.deliveries (event_id, config_id, event_created_at) select gen_random_uuid(), %s, now() "
    contacts.execute((fill + "from generate_series(1, 5000)").encode(), [config])
    contacts.execute("delete from outbox.deliveries")
    contacts.execute("vacuum analyze outbox.deliveries")
    contacts.execute((fill + "from generate_series(1, 5000)").encode(), [config])
    believed = contacts.execute("select reltuples from pg_class where oid = 'outbox.deliveries'::regclass").fetchone()
    assert believed == (0,)
    link = Link(db, "test")
    fresh = await link.connection()
    for query, values in (
        (queue._SETTLE, {}),  # noqa: SLF001 - no other way to its plan
        (queue._RELEASE, {"after": 0, "begun": False}),  # noqa: SLF001
        (queue._CLAIM, {"after": NO_CONFIG, "slots": 9, "room": 9, "lease": 60}),  # noqa: SLF001
    ):
        asked: dict[str, object] = {name: [] for name in re.findall(r"%\((\w+)\)s", query.decode())}
        rows = await (await fresh.execute(b"explain (costs off) " + query, asked | values)).fetchall()
        plan = "\n".join(line for (line,) in rows)
        assert "Join Filter" not in plan, plan
        assert "Tid Scan on deliveries" in plan, plan
    await link.drop()
