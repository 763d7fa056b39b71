"""A config in trouble costs little, is told of once, and goes on when it is well again."""

import datetime as dt
import json
from uuid import uuid4

import psycopg
import pytest

from outbox.core.circuit import DISABLES_AFTER, OPENS_AFTER
from outbox.core.model import Attempt, ConfigId, Delivered, Delivery, Retry
from outbox.daemon.circuits import Circuits
from outbox.postgres.pool import connected
from tests.daemons import add_config, add_contacts, eventually, make_due, owed, running, until_empty
from tests.receiver import Receiver, Status

MANY = 2000


def told(receiver: Receiver) -> list[str]:
    """Return the changes that the receiver of postbackconfig events was told."""
    return [each.data["change"] for each in receiver.requests if each.path == "/watch"]


def probe_now(conn: psycopg.Connection) -> None:
    conn.execute("update outbox.config_state set probe_at = now()")


async def test_a_circuit_opens_on_a_run_of_failures_and_closes_on_the_first_success(
    contacts: psycopg.Connection, db: str
) -> None:
    """Most deliveries are never tried while it is open, and keep their whole budget; all arrive in the end."""
    with Receiver() as receiver:
        receiver.answer("/sick", Status(503, delay=0.01))  # else many are tried while a settle is slow
        config = add_config(contacts, receiver.url_for("/sick"), number_of_attempts=5)
        add_config(contacts, receiver.url_for("/watch"), resource="postbackconfig")
        add_contacts(contacts, 1, MANY)
        async with running(db, max_in_flight_per_config=5):
            await eventually(lambda: told(receiver) == ["opened"])
            tried = [each for each in owed(contacts) if each[1] > 0]
            assert len(tried) < MANY // 2
            receiver.answer("/sick", Status(204))
            probe_now(contacts)
            await eventually(lambda: told(receiver) == ["opened", "closed"])
            make_due(contacts)
            await eventually(lambda: not owed(contacts))
        row = contacts.execute("select circuit_opened_at from outbox.postback_configs where id = %s", [config])
        assert row.fetchone() == (None,)
        arrived = {each.data["id"] for each in receiver.requests if each.path == "/sick"}
        assert arrived == set(range(1, MANY + 1))


async def test_postbacks_that_are_refused_one_by_one_open_no_circuit(contacts: psycopg.Connection, db: str) -> None:
    """A subscriber that answers 422 is alive: the others of its postbacks are not put off."""
    with Receiver(default=Status(422)) as receiver:
        add_config(contacts, receiver.url)
        add_contacts(contacts, 1, 3 * OPENS_AFTER)
        assert await until_empty(db) == 3 * OPENS_AFTER
        assert len(receiver.requests) == 3 * OPENS_AFTER


async def test_the_first_death_is_told_once(contacts: psycopg.Connection, db: str) -> None:
    """Not each delivery that dies is an event, but that the config has come to it."""
    with Receiver() as receiver:
        receiver.answer("/sick", Status(404))
        add_config(contacts, receiver.url_for("/sick"))
        add_config(contacts, receiver.url_for("/watch"), resource="postbackconfig")
        add_contacts(contacts, 1, 20)
        await until_empty(db)
        add_contacts(contacts, 21, 20)
        await until_empty(db)
        await until_empty(db)
        assert told(receiver) == ["exhausted"]
        # It is well again, and was sick for longer than a moment.
        contacts.execute(
            "update outbox.postback_configs set exhausted_at = now() - interval '1 hour' where exhausted_at is not null"
        )
        receiver.answer("/sick", Status(204))
        add_contacts(contacts, 41, 1)
        await until_empty(db)
        await until_empty(db)
        assert told(receiver) == ["exhausted", "recovered"]


async def test_what_does_nothing_but_fail_for_days_is_switched_off_with_its_reason(
    contacts: psycopg.Connection, db: str
) -> None:
    """What it is owed is kept, and goes out when somebody switches it on again."""
    with Receiver() as receiver:
        receiver.answer("/sick", Status(410))
        config = add_config(contacts, receiver.url_for("/sick"), number_of_attempts=5)
        add_config(contacts, receiver.url_for("/watch"), resource="postbackconfig")
        add_contacts(contacts, 1, DISABLES_AFTER)
        await until_empty(db)
        contacts.execute("update outbox.config_state set failing_since = now() - interval '6 days'")
        add_contacts(contacts, 99, 1)
        await until_empty(db)
        await until_empty(db)
        assert told(receiver) == ["disabled"]
        stored = contacts.execute(
            "select is_active, disabled_reason from outbox.postback_configs where id = %s", [config]
        ).fetchone()
        assert stored == (False, "status 410")
        assert len(owed(contacts)) == DISABLES_AFTER + 1
        receiver.answer("/sick", Status(204))
        contacts.execute(
            "update outbox.postback_configs set is_active = true, disabled_at = null, disabled_reason = null"
        )
        make_due(contacts)
        await until_empty(db)
        assert owed(contacts) == []


async def test_an_event_of_a_config_says_what_changed_and_holds_no_secret(
    contacts: psycopg.Connection, db: str
) -> None:
    """Whose it is, what changed and why; neither its URL, which may hold a key, nor its credentials."""
    with Receiver() as receiver:
        receiver.answer("/sick", Status(404))
        config = add_config(contacts, receiver.url_for("/sick?key=1"))
        add_config(contacts, receiver.url_for("/watch"), resource="postbackconfig")
        add_contacts(contacts, 1, 1)
        await until_empty(db)
        await until_empty(db)
        [event] = [each for each in receiver.requests if each.path == "/watch"]
        record = json.loads(dict(event.form)["data"])
        assert isinstance(record.pop("change_ts"), int)
        assert record == {
            "id": str(config), "location_id": "L", "resource": "contact", "change": "exhausted",
            "reason": "status 404", "is_active": True,
        }  # fmt: skip


async def test_a_rate_limit_is_held_and_nothing_is_lost_by_it(contacts: psycopg.Connection, db: str) -> None:
    """All arrive, in portions; `--until-empty` waits for what only waits for its config's pace."""
    with Receiver() as receiver:
        add_config(contacts, receiver.url, rate_limit=20)
        add_contacts(contacts, 1, 50)
        await until_empty(db)
        assert len(receiver.requests) == 50


async def test_what_a_try_says_is_counted_once_the_database_can_take_it(contacts: psycopg.Connection, db: str) -> None:
    """The outcome is settled already, and nothing else may come that would close the circuit of a healthy endpoint."""
    with Receiver() as receiver:
        receiver.answer("/sick", Status(503))
        sick = add_config(contacts, receiver.url_for("/sick"), number_of_attempts=5)
        add_config(contacts, receiver.url_for("/watch"), resource="postbackconfig")
        add_contacts(contacts, 1, OPENS_AFTER)
        async with running(db):
            await eventually(lambda: told(receiver) == ["opened"])
            contacts.execute(
                "create function disk_full() returns trigger language plpgsql as "
                "$$ begin raise exception 'full' using errcode = 'disk_full'; end $$"
            )
            contacts.execute(
                "create trigger full_disk before update on outbox.config_state for each row "
                "when (new.failures = 0 and old.failures > 0) execute function disk_full()"
            )
            try:
                receiver.answer("/sick", Status(204))
                probe_now(contacts)
                delivered = "select from outbox.attempts where outcome = 'delivered' and config_id = %s"
                make_due(contacts)
                await eventually(lambda: contacts.execute(delivered, [sick]).fetchone() is not None)
                contacts.execute("update outbox.config_state set probe_at = now() + interval '1 hour'")
            finally:
                contacts.execute("drop trigger full_disk on outbox.config_state")
                contacts.execute("drop function disk_full")
            await eventually(lambda: told(receiver) == ["opened", "closed"])


async def test_what_is_made_up_for_is_judged_by_how_the_config_stands_then(
    contacts: psycopg.Connection, db: str
) -> None:
    """A config was to be switched off, which PostgreSQL refused, and is well again meanwhile: it stays on."""
    config = ConfigId(str(add_config(contacts, "http://127.0.0.1:9/")))
    delivery = Delivery(str(uuid4()), config, 1, 0, dt.datetime.now(dt.UTC), 1, "CREATE", "contact", "{}")
    failed = Attempt(delivery, Retry(300, "500"), 500, b"", 1, dt.datetime.now(dt.UTC))
    circuits = Circuits(disable_after=1.0)
    async with connected(db, "test") as conn:
        await circuits.note(conn, [failed])
        contacts.execute("update outbox.config_state set failures = 100, failing_since = now() - interval '9 days'")
        contacts.execute("begin")
        contacts.execute("select from outbox.postback_configs for update")
        await conn.execute("set lock_timeout = '10ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            await circuits.note(conn, [failed])
        contacts.execute("rollback")
        assert circuits.is_behind
        await circuits.note(conn, [failed._replace(outcome=Delivered(), status=200)])
    assert contacts.execute("select is_active from outbox.postback_configs").fetchone() == (True,)
    assert contacts.execute("select failures from outbox.config_state").fetchone() == (0,)
