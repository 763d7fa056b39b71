"""A committed change reaches its subscribers as the contract says, whatever they answer."""

import asyncio
import json
import time

import psycopg
import pytest

from outbox.core.model import FailureKind
from outbox.postgres import routing
from outbox.postgres.pool import connected
from outbox.secrets import SecretBox
from tests.daemons import (
    LOOPBACK,
    add_config,
    add_contacts,
    dispatching,
    eventually,
    make_due,
    owed,
    running,
    until_empty,
)
from tests.receiver import (
    Behaviour,
    BrokenHttp,
    CloseIdleAfter,
    CloseWithoutAnswer,
    DripBody,
    DripHeaders,
    EndlessBody,
    GzipBomb,
    Hang,
    Receiver,
    Redirect,
    Refusing,
    Reset,
    Status,
)

KEYS = ("0" * 43 + "=", "1" * 43 + "=")
HARD = "quotes \" and ' & = + % é 😀 \\u0000 </script> \t tab"


async def test_what_becomes_visible_late_is_not_passed_over(contacts: psycopg.Connection, db: str) -> None:
    """A delivery whose transaction took long is due before those of its config that were claimed already."""
    with Receiver() as receiver:
        config = add_config(contacts, receiver.url)
        async with running(db, max_in_flight_per_config=1):
            add_contacts(contacts, 1, 200)
            await receiver.wait_for_async(20)
            contacts.execute(
                "insert into outbox.deliveries (event_id, config_id, event_created_at, due_at) "
                "select gen_random_uuid(), %s, now(), now() - interval '1 hour'",
                [config],
            )
            await eventually(lambda: [state for state, _, _ in owed(contacts)] == ["dead"])


async def test_a_change_is_captured_sent_and_settled(contacts: psycopg.Connection, db: str) -> None:
    """Create, update and delete arrive as four form fields in their order; nothing is owed afterwards."""
    with Receiver() as receiver:
        add_config(contacts, receiver.url_for("/in?a=%20b&c"))
        async with running(db):
            contacts.execute("insert into contacts (id, name) values (1, %s)", [HARD])
            contacts.execute("update contacts set name = 'x'")
            contacts.execute("update contacts set name = 'x'")
            contacts.execute("delete from contacts")
            await receiver.wait_for_async(3)
            await eventually(lambda: not owed(contacts))
        assert len(receiver.requests) == 3
        first = next(each for each in receiver.requests if dict(each.form)["type"] == "CREATE")
        assert first.path == "/in?a=%20b&c"
        assert [name for name, _ in first.form] == ["type", "resource", "number_of_attempts", "data"]
        data = contacts.execute("select data::text from outbox.events where type = 'CREATE'").fetchone()
        assert dict(first.form) == {
            "type": "CREATE", "resource": "contact", "number_of_attempts": "1", "data": (data or [""])[0],
        }  # fmt: skip
        assert json.loads(dict(first.form)["data"]) == {"id": 1, "location_id": "L", "name": HARD}
        assert {each.headers["webhook-id"] for each in receiver.requests} == {
            str(row[0]) for row in contacts.execute("select id from outbox.events")
        }
        assert (
            contacts.execute("select outcome, status, number from outbox.attempts").fetchall()
            == [("delivered", 200, 1)] * 3
        )


async def test_a_rolled_back_transaction_sends_nothing(contacts: psycopg.Connection, db: str) -> None:
    """Captured if and only if committed."""
    with Receiver() as receiver:
        add_config(contacts, receiver.url)
        async with running(db):
            with contacts.transaction(force_rollback=True):
                contacts.execute("insert into contacts values (1)")
            contacts.execute("insert into contacts values (2)")
            await receiver.wait_for_async(1)
        assert [each.data["id"] for each in receiver.requests] == [2]


async def test_a_megabyte_arrives_as_it_was(contacts: psycopg.Connection, db: str) -> None:
    """Large records are sent whole."""
    with Receiver() as receiver:
        add_config(contacts, receiver.url)
        text = "é&=+" * 250_000
        contacts.execute("insert into contacts (id, name) select i, %s from generate_series(1, 3) i", [text])
        assert await until_empty(db) == 0
        assert {each.data["id"]: each.data["name"] == text for each in receiver.requests} == dict.fromkeys(
            range(1, 4), True
        )


@pytest.mark.parametrize(
    ("behaviour", "status", "error"),
    [
        (Status(404, b"no such thing"), 404, "status 404"),
        (Status(422), 422, "status 422"),
        (Status(500), 500, "status 500"),
        (Redirect("/elsewhere"), 301, "status 301"),
        (Hang(), None, FailureKind.TIMEOUT),
        (DripHeaders(), None, FailureKind.TIMEOUT),
        (DripBody(), 200, FailureKind.TIMEOUT),
        (Reset(), None, FailureKind.BROKEN),
        (CloseWithoutAnswer(), None, FailureKind.BROKEN),
        (BrokenHttp(), None, FailureKind.BROKEN),
        (EndlessBody(), 200, FailureKind.OVERSIZED),
    ],
    ids=lambda value: f"{type(value).__name__}{getattr(value, 'code', '')}" if callable(value) else str(value),
)
async def test_a_failed_try_is_repeated_until_there_are_none_left(
    contacts: psycopg.Connection, db: str, behaviour: Behaviour, status: int | None, error: str
) -> None:
    """Each failure uses up one try; the next is due after the interval; after the last the delivery is dead."""
    with Receiver(default=behaviour) as receiver:
        add_config(contacts, receiver.url, number_of_attempts=2, attempt_interval=300)
        contacts.execute("insert into contacts values (1)")
        assert await until_empty(db, request_timeout=0.5) == 0
        assert owed(contacts) == [("pending", 1, False)]
        wait = contacts.execute(
            "select d.due_at - a.at - make_interval(secs => a.duration_ms / 1000.0) = interval '300 s' "
            "from outbox.deliveries d join outbox.attempts a using (event_id, config_id)"
        )
        assert wait.fetchall() == [(True,)]
        make_due(contacts)
        assert await until_empty(db, request_timeout=0.5) == 1
        assert owed(contacts) == [("dead", 2, False)]
        log = contacts.execute("select number, outcome, status, error from outbox.attempts order by number").fetchall()
        assert [row[:3] for row in log] == [(1, "retry", status), (2, "dead", status)]
        assert all(row[3].startswith(error) for row in log)
        tries = [dict(each.form)["number_of_attempts"] for each in receiver.requests]
        assert tries == ["1", "2"]
        assert len({each.headers["webhook-id"] for each in receiver.requests}) == 1


async def test_a_subscriber_that_fails_twice_and_then_accepts(contacts: psycopg.Connection, db: str) -> None:
    """The same bytes under the same id; only the number of the try changes."""
    with Receiver() as receiver:
        receiver.answer("/", Status(500), Status(503), Status(202))
        add_config(contacts, receiver.url + "/", number_of_attempts=3)
        contacts.execute("insert into contacts values (1)")
        for _ in range(3):
            await until_empty(db)
            make_due(contacts)
        forms = [dict(each.form) for each in receiver.requests]
        assert [form["number_of_attempts"] for form in forms] == ["1", "2", "3"]
        assert len({form["data"] for form in forms}) == 1
        assert len({each.headers["webhook-id"] for each in receiver.requests}) == 1
        assert owed(contacts) == []


async def test_the_writers_trace_is_a_header_on_every_try(contacts: psycopg.Connection, db: str) -> None:
    """By every way to a try: routed, claimed, and claimed by a config with strict order. Without one, no header."""
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    with Receiver() as receiver:
        receiver.answer("/plain", Status(500), Status(200))
        add_config(contacts, receiver.url_for("/plain"), number_of_attempts=2)
        add_config(contacts, receiver.url_for("/ordered"), strict_order="hold")
        add_config(contacts, receiver.url_for("/untraced"), location_id="M")
        with contacts.transaction():
            contacts.execute("select set_config('outbox.traceparent', %s, true)", [trace])
            contacts.execute("insert into contacts values (1)")
        contacts.execute("insert into contacts values (2, 'M')")
        await until_empty(db)
        make_due(contacts)
        await until_empty(db)
        sent = sorted((each.path, each.headers.get("traceparent")) for each in receiver.requests)
        assert sent == [("/ordered", trace), ("/plain", trace), ("/plain", trace), ("/untraced", None)]


async def test_a_bomb_is_no_more_than_its_bytes(contacts: psycopg.Connection, db: str) -> None:
    """A compressed answer is never unpacked: its status counts."""
    with Receiver(default=GzipBomb()) as receiver:
        add_config(contacts, receiver.url)
        contacts.execute("insert into contacts values (1)")
        assert await until_empty(db) == 0
        assert owed(contacts) == []


async def test_who_can_not_be_reached_costs_a_try(contacts: psycopg.Connection, db: str) -> None:
    """No such host, nobody listens, a forbidden address, an unknown certificate: each is dead, with its reason."""
    with Refusing() as refusing, Receiver() as forbidden, Receiver(tls=True) as tls:
        for url in ("http://nowhere.invalid/", refusing, tls.url, forbidden.url.replace("127.0.0.1", "[::1]")):
            add_config(contacts, url)
        contacts.execute("insert into contacts values (1)")
        assert await until_empty(db) == 4
        errors = [row[0] for row in contacts.execute("select last_error from outbox.deliveries order by 1")]
        assert [error.partition(":")[0] for error in errors] == ["connect", "forbidden", "resolve", "tls"]
        assert forbidden.connections == 0


async def test_a_stale_connection_costs_no_try(contacts: psycopg.Connection, db: str) -> None:
    """A kept-alive connection that the subscriber had closed is our fault: repeated at once, and not counted."""
    with Receiver(default=CloseIdleAfter(on_reuse=True)) as receiver:
        add_config(contacts, receiver.url, number_of_attempts=1)
        async with running(db, max_in_flight_per_config=1):
            for number in range(1, 6):
                contacts.execute("insert into contacts values (%s)", [number])
                await receiver.wait_for_async(number)
                await eventually(lambda: not owed(contacts))
        assert {dict(each.form)["number_of_attempts"] for each in receiver.requests} == {"1"}


async def test_basic_credentials_are_sent_and_an_unreadable_one_uses_up_no_try(
    contacts: psycopg.Connection, db: str
) -> None:
    """With an old key in the list they are read; with none that fits the delivery is kept, untried."""
    with Receiver() as receiver:
        box = SecretBox(KEYS[1:])
        add_config(contacts, receiver.url, basic_auth_username=box.seal("zoë"), basic_auth_password=box.seal("p:w"))
        contacts.execute("insert into contacts values (1)")
        assert await until_empty(db, secret_key=KEYS[:1]) == 0
        assert owed(contacts) == [("pending", 0, False)]
        assert receiver.requests == []
        make_due(contacts)
        await until_empty(db, secret_key=KEYS)
        assert [each.headers["Authorization"] for each in receiver.requests] == ["Basic em/DqzpwOnc="]


async def test_an_event_whose_retention_is_over_is_dead(contacts: psycopg.Connection, db: str) -> None:
    """There is nothing left to send, and the log says so."""
    with Receiver() as receiver:
        config = add_config(contacts, receiver.url, is_active=True)
        contacts.execute("update outbox.postback_configs set paused_at = now()")
        contacts.execute("insert into contacts values (1)")
        await until_empty(db)
        contacts.execute("delete from outbox.events")
        contacts.execute("update outbox.postback_configs set paused_at = null, revision = 2 where id = %s", [config])
        assert await until_empty(db) == 1
        assert contacts.execute("select state, last_error from outbox.deliveries").fetchall() == [
            ("dead", "the event is no longer kept: its retention is over")
        ]
        assert receiver.requests == []


async def test_a_paused_or_inactive_config_is_held_and_goes_on(contacts: psycopg.Connection, db: str) -> None:
    """Paused: it collects and sends nothing until resumed. Inactive: it matches nothing new, and keeps its debt."""
    with Receiver() as receiver:
        paused = add_config(contacts, receiver.url_for("/paused"))
        inactive = add_config(contacts, receiver.url_for("/inactive"))
        change = "update outbox.postback_configs set {} where id = %s"
        contacts.execute(change.format("paused_at = now(), revision = 2").encode(), [paused])
        contacts.execute(change.format("paused_at = now(), revision = 2").encode(), [inactive])
        contacts.execute("insert into contacts values (1)")
        await until_empty(db)
        contacts.execute(change.format("paused_at = null, is_active = false, revision = 3").encode(), [inactive])
        contacts.execute("insert into contacts values (2)")
        async with running(db):
            await eventually(lambda: contacts.execute("select count(*) from outbox.outbox").fetchone() == (0,))
            assert receiver.requests == []
            contacts.execute(change.format("paused_at = null, revision = 3").encode(), [paused])
            contacts.execute(change.format("is_active = true, revision = 4").encode(), [inactive])
            await receiver.wait_for_async(3)
            await eventually(lambda: not owed(contacts))
        assert sorted((each.path, each.data["id"]) for each in receiver.requests) == [
            ("/inactive", 1), ("/paused", 1), ("/paused", 2),
        ]  # fmt: skip


async def test_what_was_claimed_before_a_pause_is_given_back(contacts: psycopg.Connection, db: str) -> None:
    """A pause is obeyed within a second or two for deliveries that the daemon has in hand already."""
    with Receiver(default=Status(200, delay=0.2)) as receiver:
        config = add_config(contacts, receiver.url)
        contacts.execute("insert into contacts select i from generate_series(1, 100) i")
        async with running(db, max_in_flight_per_config=1):
            await receiver.wait_for_async(1)
            contacts.execute(
                "update outbox.postback_configs set paused_at = now(), revision = 2 where id = %s", [config]
            )
            await eventually(lambda: not any(leased for _, _, leased in owed(contacts)))
            seen = len(receiver.requests)
            assert seen < 100
            assert len(owed(contacts)) == 100 - seen


async def test_a_slot_is_used_again_however_soon_the_settle_is_answered(contacts: psycopg.Connection, db: str) -> None:
    """Before the loop has told anybody of the task's end: nothing else would start a POST until the next poll."""
    with Receiver() as receiver:
        add_config(contacts, receiver.url)
        add_contacts(contacts, 1, 3)
        async with dispatching(db, concurrency=1, allow_networks=LOOPBACK) as dispatcher, connected(db, "test") as conn:
            loop = asyncio.get_running_loop()
            settler, intake = dispatcher._settler, dispatcher._fetcher._intake  # noqa: SLF001 - the moment between two turns
            settler.add = lambda _: loop.call_soon(dispatcher._note_settled, 1)  # type: ignore[assignment]  # noqa: SLF001
            routed = await routing.route(conn, low=0, rows=10, slots=3, room=10, rooms={}, lease=60.0)
            await intake.admit(conn, routed, time.monotonic())
            await receiver.wait_for_async(3)
