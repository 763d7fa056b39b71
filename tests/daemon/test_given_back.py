"""What is given back is counted by why: each reason comes of what it is named for, and of nothing else."""

import asyncio
import time

import psycopg
import pytest

from outbox.core.model import ConfigId
from outbox.daemon import senders
from outbox.daemon.dispatcher import Dispatcher
from outbox.postgres import routing
from outbox.postgres.pool import connected
from outbox.settings import Proxy
from tests.daemons import LOOPBACK, add_config, add_contacts, dispatching, eventually, owed
from tests.receiver import Gate, Hang, Receiver, Refusing


def given_back(dispatcher: Dispatcher) -> dict[str, float]:
    """Return how many were given back by each reason there was."""
    counts = dispatcher.reading()["outbox_deliveries_given_back_total"]
    return {reason: count for reason, [count] in counts.items() if count}


async def test_what_a_proxy_keeps_from_being_sent_is_unsent(
    contacts: psycopg.Connection, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Again and again, as often as it falls due."""
    monkeypatch.setattr(senders, "UNSENT_SECONDS", 0.05)
    monkeypatch.setattr(senders, "UNSENT_PAUSE", 0.05)
    add_config(contacts, "http://127.0.0.1/")
    add_contacts(contacts, 1, 3)
    with Refusing() as refusing:
        way = Proxy("127.0.0.1", int(refusing.rpartition(":")[2]))
        async with dispatching(db, proxy=way, allow_networks=LOOPBACK) as dispatcher:
            running = asyncio.create_task(dispatcher.run())
            await eventually(lambda: given_back(dispatcher).get("unsent", 0) > 6)
            assert given_back(dispatcher).keys() == {"unsent"}
            dispatcher.stop()
            await running


async def take_in_hand(dispatcher: Dispatcher, conn: psycopg.AsyncConnection, count: int) -> None:
    """Route contacts and take so many deliveries in hand, as its fetcher would: the first is sent, the others wait."""
    leased = await routing.route(conn, low=0, rows=count, slots=count, room=count, rooms={}, lease=60.0)
    await dispatcher._fetcher._intake.admit(conn, leased, time.monotonic())  # noqa: SLF001


async def test_what_is_in_hand_of_a_config_that_is_paused_is_withdrawn(contacts: psycopg.Connection, db: str) -> None:
    """All of it that was not begun when the pause became known."""
    gate = Gate()
    with Receiver(default=gate) as receiver:
        config = add_config(contacts, receiver.url)
        add_contacts(contacts, 1, 3)
        async with (
            dispatching(db, max_in_flight_per_config=1, allow_networks=LOOPBACK) as dispatcher,
            connected(db, "test") as conn,
        ):
            await take_in_hand(dispatcher, conn, 3)
            await receiver.wait_for_async(1)
            contacts.execute(
                "update outbox.postback_configs set paused_at = now(), revision = 2 where id = %s", [config]
            )
            await dispatcher._fetcher._targets.reload(conn, [ConfigId(str(config))])  # noqa: SLF001 - as every second
            gate.open()
            await eventually(lambda: given_back(dispatcher) == {"withdrawn": 2})
        assert len(receiver.requests) == 1


async def test_what_an_end_finds_in_hand_is_stopping_or_cut_off(contacts: psycopg.Connection, db: str) -> None:
    """Of the POST that is cut off nobody knows what came of it; what waited was not sent. Both are due again."""
    with Receiver(default=Hang()) as receiver:
        add_config(contacts, receiver.url)
        add_contacts(contacts, 1, 3)
        async with (
            dispatching(db, max_in_flight_per_config=1, allow_networks=LOOPBACK, drain_timeout=0.0) as dispatcher,
            connected(db, "test") as conn,
        ):
            await take_in_hand(dispatcher, conn, 3)
            await receiver.wait_for_async(1)
            dispatcher.stop()
            await dispatcher.run()
            assert given_back(dispatcher) == {"stopping": 2, "cut_off": 1}
        assert len(receiver.requests) == 1
    assert sorted(owed(contacts)) == [("pending", 0, False), ("pending", 0, False), ("pending", 1, False)]


async def test_what_was_leased_when_the_database_was_lost_is_given_back_for_the_outage(
    contacts: psycopg.Connection, db: str
) -> None:
    """Its config could not be loaded any more."""
    add_config(contacts, "http://127.0.0.1:9/")
    add_contacts(contacts, 1, 3)
    async with dispatching(db) as dispatcher, connected(db, "test") as conn:
        leased = await routing.route(conn, low=0, rows=3, slots=3, room=3, rooms={}, lease=60.0)
        contacts.execute("select pg_terminate_backend(%s)", [conn.info.backend_pid])
        with pytest.raises(psycopg.OperationalError):
            await dispatcher._fetcher._intake.admit(conn, leased, time.monotonic())  # noqa: SLF001
        assert given_back(dispatcher) == {"outage": 3}
