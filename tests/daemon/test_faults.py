"""What breaks loses nothing: leases, fences, the database away, slow neighbours, several daemons."""

import asyncio
import time
from collections import Counter

import psycopg
import pytest
from structlog.testing import capture_logs

from outbox.daemon.settler import LATE
from tests.daemons import (
    LOOPBACK,
    add_config,
    add_contacts,
    attach_contacts,
    dispatching,
    doorbell_is_up,
    eventually,
    make_due,
    owed,
    running,
    until_empty,
)
from tests.receiver import Gate, Hang, Receiver, Status
from tests.servers import StartServer


async def test_two_daemons_send_nothing_twice(contacts: psycopg.Connection, db: str) -> None:
    """5,000 events, two daemons that take turns: each delivery is tried once."""
    with Receiver() as receiver:
        add_config(contacts, receiver.url)
        async with running(db), running(db):
            for start in range(0, 5000, 500):
                add_contacts(contacts, start, 500)
            await eventually(lambda: len(receiver.requests) >= 5000 and not owed(contacts), within=60)
        seen = Counter(each.headers["webhook-id"] for each in receiver.requests)
        assert len(seen) == 5000
        assert set(seen.values()) == {1}


async def test_one_that_hangs_does_not_keep_all_the_room_for_large_records(
    contacts: psycopg.Connection, db: str
) -> None:
    """So many bytes are in hand at most; one config has a part of them, and the others are served meanwhile."""
    with Receiver(default=Hang()) as receiver:
        receiver.answer("/healthy", Status(204))
        add_config(contacts, receiver.url_for("/hangs"), on_update=False)
        add_config(contacts, receiver.url_for("/healthy"), on_create=False)
        contacts.execute("insert into contacts (id, name) select i, repeat('x', 1000000) from generate_series(1, 60) i")

        def paths() -> Counter[str]:
            return Counter(each.path for each in receiver.requests)

        async with running(db, request_timeout=60.0, drain_timeout=0.1):
            await eventually(lambda: paths()["/hangs"] > 2)
            contacts.execute("update contacts set name = repeat('y', 1000000) where id = 1")
            await eventually(lambda: paths()["/healthy"] == 1)


async def test_a_hundred_thousand_rows_in_one_update_all_arrive(contacts: psycopg.Connection, db: str) -> None:
    """One statement of the application, 100,000 changes: all arrive, and keep nobody else waiting."""
    with Receiver() as receiver:
        add_config(contacts, receiver.url_for("/many"), on_create=False)
        add_config(contacts, receiver.url_for("/other"), location_id="M")
        with contacts.transaction():
            contacts.execute("set local outbox.suppress = 'on'")
            contacts.execute("insert into contacts select i from generate_series(1, 100000) i")
        async with running(db):
            contacts.execute("update contacts set name = 'changed'")
            contacts.execute("insert into contacts values (0, 'M')")
            await receiver.wait_for_async(1, path="/other")
            assert len(receiver.requests) < 100_001
            await eventually(lambda: len(receiver.requests) == 100_001 and not owed(contacts), within=180)
        assert len({each.headers["webhook-id"] for each in receiver.requests}) == 100_001


@pytest.mark.parametrize("late", [Status(200), Status(500)], ids=["acknowledge", "retry"])
async def test_a_lease_that_runs_out_during_the_post(contacts: psycopg.Connection, db: str, late: Status) -> None:
    """The delivery is tried again by another daemon; the late answer changes nothing, and both tries are logged."""
    gate = Gate(late)
    with Receiver(default=Status(503)) as receiver:
        receiver.answer("/", gate, Status(503))
        add_config(contacts, receiver.url + "/", number_of_attempts=5)
        contacts.execute("insert into contacts values (1)")
        async with running(db, request_timeout=30.0):
            await eventually(lambda: gate.waiting == 1)
            make_due(contacts)
            async with running(db):
                await eventually(lambda: owed(contacts) == [("pending", 2, False)])
            before = contacts.execute("select * from outbox.deliveries").fetchall()
            gate.open()
            await eventually(lambda: contacts.execute("select count(*) from outbox.attempts").fetchone() == (2,))
        assert contacts.execute("select * from outbox.deliveries").fetchall() == before
        tries = [dict(each.form)["number_of_attempts"] for each in receiver.requests]
        assert tries == ["1", "2"]
        assert contacts.execute("select attempts_uncounted from outbox.deliveries").fetchone() == (1,)


async def test_a_daemon_that_dies_uses_up_no_try(contacts: psycopg.Connection, db: str) -> None:
    """The outcome of its try is unknown, so it is repeated: one that is never retried gets its one try all the same."""
    with Receiver(default=Status(500)) as receiver:
        receiver.answer("/", Hang(), Status(500))
        add_config(contacts, receiver.url + "/", number_of_attempts=2)
        contacts.execute("insert into contacts values (1)")
        async with running(db, drain_timeout=0.0) as stop:
            await receiver.wait_for_async(1)
            # As a crash leaves it: leased, and nobody will settle it.
            make_due(contacts)
            contacts.execute("update outbox.postback_configs set paused_at = now(), revision = 2")
            stop.set()
        contacts.execute(
            "update outbox.deliveries set attempts = 1, attempts_uncounted = 0, leased = true, due_at = now()"
        )
        contacts.execute("update outbox.postback_configs set paused_at = null, revision = 3")
        assert await until_empty(db) == 0
        assert owed(contacts) == [("pending", 2, False)]
        make_due(contacts)
        assert await until_empty(db) == 1
        assert owed(contacts) == [("dead", 3, False)]


async def test_every_connection_terminated_under_load(contacts: psycopg.Connection, db: str) -> None:
    """The daemon opens new connections and carries on; what was answered is not forgotten, so nothing is sent twice."""
    with Receiver() as receiver:
        add_config(contacts, receiver.url)
        async with running(db):
            await eventually(lambda: doorbell_is_up(contacts))  # it has started: until then it would end
            for start in range(0, 2000, 100):
                add_contacts(contacts, start, 100)
                contacts.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity "
                    "where application_name like 'outbox %' and datname = current_database()"
                )
                await asyncio.sleep(0)
            await eventually(lambda: len(receiver.requests) >= 2000 and not owed(contacts), within=90)
        assert len({each.headers["webhook-id"] for each in receiver.requests}) == 2000


async def test_postgres_restarted_under_load(own_server: StartServer) -> None:
    """Answers that come while the database is away are settled when it is back; nothing is lost, nothing sent twice."""
    server = own_server()
    with Receiver() as receiver:
        gate = Gate()
        receiver.answer("/", gate)
        with psycopg.connect(server.dsn, autocommit=True) as conn:
            from outbox.postgres.migrations import migrate  # noqa: PLC0415

            await migrate(server.dsn)
            attach_contacts(conn)
            add_config(conn, receiver.url + "/")
            conn.execute("insert into contacts select i from generate_series(1, 300) i")
        async with running(server.dsn):
            await eventually(lambda: gate.waiting >= 10)
            await asyncio.to_thread(server.stop_server, "immediate")
            gate.open()
            await eventually(lambda: gate.waiting == 0)
            await asyncio.to_thread(server.start_server)
            with psycopg.connect(server.dsn, autocommit=True) as conn:
                await eventually(lambda: len(receiver.requests) >= 300 and not owed(conn), within=60)
        seen = Counter(each.headers["webhook-id"] for each in receiver.requests)
        assert len(seen) == 300
        assert set(seen.values()) == {1}


async def test_a_subscriber_that_hangs_keeps_nobody_waiting(contacts: psycopg.Connection, db: str) -> None:
    """Twenty that hang and owe much, one that is healthy: the healthy one gets all of its own meanwhile."""
    with Receiver() as receiver:
        for number in range(20):
            receiver.answer(f"/hang{number}", Hang())
            add_config(contacts, receiver.url_for(f"/hang{number}"), location_id="H")
        add_config(contacts, receiver.url_for("/healthy"))
        contacts.execute("insert into contacts select i, 'H' from generate_series(1, 200) i")
        async with running(db, request_timeout=60.0, drain_timeout=0.0, concurrency=50, max_in_flight_per_config=10):
            await eventually(lambda: receiver.in_flight >= 20)
            for start in range(1000, 1500, 100):
                add_contacts(contacts, start, 100)
            await receiver.wait_for_async(500, path="/healthy")
            assert receiver.max_in_flight <= 50
            assert max(receiver.max_in_flight_at(f"/hang{number}") for number in range(20)) <= 10
        used = "select count(*) from outbox.deliveries where attempts > attempts_uncounted"
        assert contacts.execute(used).fetchone() == (0,)


async def test_drain_finishes_what_is_in_flight(contacts: psycopg.Connection, db: str) -> None:
    """A stop claims nothing more, lets the POST in flight finish, and gives back untried what waited."""
    gate = Gate()
    with Receiver(default=gate) as receiver:
        add_config(contacts, receiver.url)
        add_contacts(contacts, 1, 50)
        async with running(db, max_in_flight_per_config=5) as stop:
            await eventually(lambda: gate.waiting == 5)
            with capture_logs() as lines:
                stop.set()
                await eventually(lambda: [line["event"] for line in lines] == ["daemon.stopping"])
            gate.open()
        assert owed(contacts) == [("pending", 0, False)] * 45
        assert len(receiver.requests) == 5


async def test_drain_gives_back_what_does_not_finish(contacts: psycopg.Connection, db: str) -> None:
    """After the drain timeout a POST in flight is given back. Its outcome is unknown; the next has another number."""
    with Receiver(default=Hang()) as receiver:
        add_config(contacts, receiver.url)
        contacts.execute("insert into contacts values (1)")
        async with running(db, request_timeout=60.0, drain_timeout=0.1) as stop:
            await receiver.wait_for_async(1)
            stop.set()
        assert owed(contacts) == [("pending", 1, False)]
        assert contacts.execute("select attempts_uncounted from outbox.deliveries").fetchall() == [(1,)]
        receiver.answer("/", Status(204))
        await until_empty(db)
        assert [dict(each.form)["number_of_attempts"] for each in receiver.requests] == ["1", "2"]


async def test_a_lost_doorbell_costs_a_poll_interval_and_no_event(contacts: psycopg.Connection, db: str) -> None:
    """Without any notification the daemon finds what was captured by polling."""
    with Receiver() as receiver:
        add_config(contacts, receiver.url)
        async with running(db):
            contacts.execute("set outbox.doorbell = 'off'")
            contacts.execute("insert into contacts values (1)")
            await receiver.wait_for_async(1)


async def test_the_doorbell_wakes_a_daemon_that_hardly_polls(contacts: psycopg.Connection, db: str) -> None:
    """With an hour between polls the events arrive all the same, one after another."""
    with Receiver() as receiver:
        add_config(contacts, receiver.url)
        async with running(db, poll_interval=3600.0):
            for number in range(1, 21):
                await eventually(lambda: doorbell_is_up(contacts))
                contacts.execute("insert into contacts values (%s)", [number])
                await receiver.wait_for_async(number)


async def test_a_removed_config_is_owed_nothing(contacts: psycopg.Connection, db: str) -> None:
    """What was pending for a deleted config is never sent, and the daemon's housekeeping forgets it."""
    with Receiver() as receiver:
        add_config(contacts, receiver.url)
        contacts.execute("update outbox.postback_configs set paused_at = now()")
        add_contacts(contacts, 1, 50)
        await until_empty(db)
        assert len(owed(contacts)) == 50
        contacts.execute("update outbox.postback_configs set paused_at = null, deleted_at = now(), revision = 2")
        async with running(db):
            await eventually(lambda: owed(contacts) == [])
        assert receiver.requests == []


async def test_a_transaction_that_commits_late_is_not_passed_over(contacts: psycopg.Connection, db: str) -> None:
    """Ids commit out of order: a row below all that was routed is found as well."""
    with Receiver() as receiver, psycopg.connect(db) as late:
        add_config(contacts, receiver.url)
        late.execute("insert into contacts values (0)")
        async with running(db):
            add_contacts(contacts, 1, 100)
            await receiver.wait_for_async(100)
            late.commit()
            await receiver.wait_for_async(101)


async def test_a_post_that_hangs_does_not_keep_the_doorbell_down(contacts: psycopg.Connection, db: str) -> None:
    """While one subscriber's POST hangs, another's event is sent at once, however rarely the daemon polls."""
    with Receiver() as receiver:
        receiver.answer("/hangs", Hang())
        add_config(contacts, receiver.url_for("/hangs"), location_id="H")
        add_config(contacts, receiver.url_for("/healthy"))
        contacts.execute("insert into contacts values (0, 'H')")
        async with running(db, poll_interval=3600.0, request_timeout=60.0, drain_timeout=0.0):
            await receiver.wait_for_async(1, path="/hangs")
            for number in range(1, 6):
                await eventually(lambda: doorbell_is_up(contacts))
                add_contacts(contacts, number, 1)
                await receiver.wait_for_async(number, path="/healthy")


async def test_a_settle_that_is_kept_waiting_comes_before_the_next_claim(contacts: psycopg.Connection, db: str) -> None:
    """What was answered is not claimed again by its own daemon, although its lease has run out meanwhile."""
    with Receiver() as receiver, psycopg.connect(db) as blocker:
        add_config(contacts, receiver.url)
        blocker.execute("lock table outbox.attempts in access exclusive mode")
        async with running(db):
            add_contacts(contacts, 1, 20)
            await receiver.wait_for_async(20)
            waited = time.monotonic() + LATE + 1
            await eventually(lambda: time.monotonic() > waited)
            make_due(contacts)
            waited = time.monotonic() + 1
            await eventually(lambda: time.monotonic() > waited)
            blocker.rollback()
            await eventually(lambda: not owed(contacts))
        assert len(receiver.requests) == 20


async def test_a_statement_that_is_given_up_is_no_outage(contacts: psycopg.Connection, db: str) -> None:
    """A server that answers that it waited too long for a lock is there: it is told once, with the error's code."""
    impatient = psycopg.conninfo.make_conninfo(db, options="-c lock_timeout=20ms")
    with Receiver() as receiver, psycopg.connect(db) as blocker, capture_logs() as logs:
        add_config(contacts, receiver.url)

        def told(event: str) -> list[str]:
            return [each.get("sqlstate", "") for each in logs if each["event"] == event]

        async with running(impatient, poll_interval=0.05):
            blocker.execute("lock table outbox.outbox in access exclusive mode")
            await eventually(lambda: told("statement.failed") == ["55P03"])
            blocker.rollback()
            add_contacts(contacts, 1, 5)
            await receiver.wait_for_async(5)
            await eventually(lambda: not owed(contacts))
        assert told("database.lost") == told("database.returned") == []


async def test_a_stop_does_not_wait_for_a_statement_that_is_blocked(contacts: psycopg.Connection, db: str) -> None:
    """A migration or a dump that locks our tables does not keep the daemon from ending."""
    with psycopg.connect(db) as blocker:
        async with running(db, poll_interval=0.05) as stop:
            blocker.execute("lock table outbox.outbox in access exclusive mode")
            await eventually(
                lambda: (
                    contacts.execute(
                        "select count(*) from pg_stat_activity where wait_event_type = 'Lock' "
                        "and application_name = 'outbox fetch' and datname = current_database()"
                    ).fetchone()
                    == (1,)
                )
            )
            stop.set()


async def test_what_was_in_hand_of_a_machine_that_was_suspended_is_given_back(
    contacts: psycopg.Connection, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The monotonic clock stands meanwhile, and the leases run out: what others have sent is not sent again."""
    gate, now = Gate(), time.time
    with Receiver() as receiver:
        add_config(contacts, receiver.url_for("/a"))
        async with dispatching(db, concurrency=2, allow_networks=LOOPBACK, request_timeout=30.0) as dispatcher:
            running_ = asyncio.create_task(dispatcher.run())
            add_contacts(contacts, 1, 100)  # it is known to be quick then, and more of it is taken in hand
            await receiver.wait_for_async(100)
            receiver.answer("/a", gate)
            add_contacts(contacts, 101, 20)
            await receiver.wait_for_async(101)
            await eventually(lambda: dispatcher.reading()["outbox_waiting"][""][0] > 0)
            waiting = dispatcher.reading()["outbox_waiting"][""][0]
            begun = len(receiver.requests)
            monkeypatch.setattr(time, "time", lambda: now() + 3600.0)
            gate.open()
            await eventually(
                lambda: dispatcher.reading()["outbox_deliveries_given_back_total"]["expired"][0] >= waiting
            )
            assert len(receiver.requests) == begun
            monkeypatch.undo()
            await receiver.wait_for_async(120)
            await eventually(lambda: not owed(contacts))
            dispatcher.stop()
            await running_
        assert len(receiver.requests) == 120
