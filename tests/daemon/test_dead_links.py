"""A link to the database can be dead without an error, behind a proxy that lives: it is given up."""

import asyncio
import signal
import socket
from collections import Counter

import psycopg
import pytest

from tests.daemons import (
    add_config,
    add_contacts,
    daemon_process,
    doorbell_is_up,
    eventually,
    owed,
    running,
)
from tests.database_proxy import DatabaseProxy
from tests.receiver import Gate, Receiver


@pytest.mark.parametrize("moment", ["idle", "in flight"])
async def test_links_that_say_nothing_any_more_are_given_up(
    contacts: psycopg.Connection, db: str, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Keepalives reach the proxy only. A settle whose answer is lost is repeated: nothing is sent twice."""
    monkeypatch.setattr("outbox.daemon.dispatcher.ANSWER_SECONDS", 0.5)
    gate = Gate()
    async with DatabaseProxy(db) as proxy:
        with Receiver(default=gate) as receiver:
            add_config(contacts, receiver.url)
            async with running(proxy.dsn, poll_interval=0.1, request_timeout=2.0):
                await eventually(lambda: doorbell_is_up(contacts))
                add_contacts(contacts, 1, 20)
                await receiver.wait_for_async(20)
                if moment == "idle":
                    gate.open()
                    await eventually(lambda: not owed(contacts))
                assert proxy.mute() >= 3
                gate.open()
                add_contacts(contacts, 21, 20)
                await receiver.wait_for_async(40)
                await eventually(lambda: not owed(contacts))
            arrived = Counter(each.data["id"] for each in receiver.requests)
    assert arrived == dict.fromkeys(range(1, 41), 1)


async def test_the_end_is_heard_while_the_start_waits_for_an_answer(db: str) -> None:
    """The server took the connection, and says nothing more."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        mute.settimeout(30)
        dsn = psycopg.conninfo.make_conninfo(
            db, host="127.0.0.1", port=mute.getsockname()[1], connect_timeout=3600, sslmode="disable"
        )
        with daemon_process(dsn) as daemon:
            asking, _ = await asyncio.to_thread(mute.accept)
            with asking:
                daemon.process.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(daemon.process.wait, 30) == 0
