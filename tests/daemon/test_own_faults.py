"""What fails on our side costs no subscriber a try: no descriptors, no proxy. It is told, and made good later."""

import contextlib
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from structlog.testing import capture_logs

from outbox.daemon import senders
from outbox.settings import Proxy
from tests.daemons import (
    add_config,
    add_contacts,
    daemon_process,
    doorbell_is_up,
    eventually,
    eventually_true,
    owed,
    running,
)
from tests.proxies import ForwardProxy, status
from tests.receiver import Receiver, Refusing


@contextlib.contextmanager
def no_descriptor_more(pid: int) -> Iterator[None]:
    """Leave a process the file descriptors that it has, and not one more."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    highest = max(int(each.name) for each in Path(f"/proc/{pid}/fd").iterdir())
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (highest + 1, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def gaps(pid: int) -> int:
    """Return how many numbers below the highest descriptor are free: so many may still be opened."""
    numbers = {int(each.name) for each in Path(f"/proc/{pid}/fd").iterdir()}
    return max(numbers) + 1 - len(numbers)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_too_few_descriptors_cost_no_try(contacts: psycopg.Connection, db: str, host: str) -> None:
    """A connection that can not be opened, and a name that can not be looked up, for want of a file descriptor."""
    with Receiver() as receiver, daemon_process(db) as daemon:
        pid = daemon.process.pid
        daemon.wait_for_event("daemon.started")
        eventually_true(lambda: doorbell_is_up(contacts))
        add_config(contacts, receiver.url.replace("127.0.0.1", host), number_of_attempts=1)
        free = gaps(pid)
        with no_descriptor_more(pid):
            add_contacts(contacts, 1, 10 + free)
            [first, *_] = daemon.wait_for_event("deliveries.unsent")
            assert "Too many open files" in first["error"] or "too little left" in first["error"]
            assert first["level"] == "warning"
            eventually_true(lambda: ("pending", 0, False) in owed(contacts))
        eventually_true(lambda: not owed(contacts), within=60)
        assert {each["status"] for each in daemon.events("delivery.attempted")} == {200}
        assert daemon.stop() == 0
    assert len({each.headers["webhook-id"] for each in receiver.requests}) == 10 + free
    assert contacts.execute("select outcome, count(*) from outbox.attempts group by 1").fetchall() == [
        ("delivered", 10 + free)
    ]


async def test_a_proxy_that_is_away_costs_no_try(
    contacts: psycopg.Connection, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deliveries with one try each are held while the proxy refuses and while it fails, and sent when it works."""
    monkeypatch.setattr(senders, "UNSENT_SECONDS", 0.2)
    monkeypatch.setattr(senders, "UNSENT_PAUSE", 0.05)
    with Receiver() as receiver, Refusing() as refusing:
        port = int(refusing.rpartition(":")[2])
        add_config(contacts, receiver.url, number_of_attempts=1)
        add_contacts(contacts, 1, 20)
        for proxy in (None, ForwardProxy(answering=status(407)), ForwardProxy(answering=status(500))):
            with contextlib.nullcontext() if proxy is None else proxy, capture_logs() as lines:
                way = Proxy("127.0.0.1", port if proxy is None else proxy.port)
                async with running(db, proxy=way):
                    await eventually(lambda: any(line["event"] == "deliveries.unsent" for line in lines))
                assert not any(line["event"] == "delivery.attempted" for line in lines)
        assert owed(contacts) == [("pending", 0, False)] * 20
        assert receiver.requests == []
        with ForwardProxy() as proxy:
            async with running(db, proxy=Proxy("127.0.0.1", proxy.port)):
                await receiver.wait_for_async(20)
                await eventually(lambda: not owed(contacts))
        assert len(receiver.requests) == 20


async def test_what_can_not_be_sent_does_not_keep_the_database_busy(
    contacts: psycopg.Connection, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand due deliveries and no proxy: each slot rests after a failure, so few are claimed and given back."""
    monkeypatch.setattr(senders, "UNSENT_PAUSE", 0.2)
    monkeypatch.setattr(senders, "UNSENT_LOG_SECONDS", 0.0)
    with Refusing() as refusing, capture_logs() as lines:
        add_config(contacts, "http://127.0.0.1/", number_of_attempts=1)
        add_contacts(contacts, 1, 1000)
        way = Proxy("127.0.0.1", int(refusing.rpartition(":")[2]))
        began = time.monotonic()
        async with running(db, proxy=way, concurrency=10, max_in_flight_per_config=10):
            await eventually(lambda: sum(line["event"] == "deliveries.unsent" for line in lines) > 30)
        assert time.monotonic() - began > 3 * 0.2


async def test_a_forbidden_destination_is_told_to_the_operator(contacts: psycopg.Connection, db: str) -> None:
    """The try counts and is logged; the address that a name led to is in the daemon's log and nowhere else."""
    add_config(contacts, "http://localhost:8000/", number_of_attempts=1)
    add_contacts(contacts, 1, 1)
    with capture_logs() as lines:
        async with running(db, allow_networks=()):
            await eventually(lambda: [row[0] for row in owed(contacts)] == ["dead"])
    [line] = [line for line in lines if line["event"] == "destination.forbidden"]
    assert line["address"] in {"127.0.0.1", "::1"}
    [error] = [str(line["error"]) for line in lines if line["event"] == "delivery.attempted"]
    assert error == "forbidden: the host's address is a loopback address, and no allowed network has it"
    [stored] = contacts.execute("select last_error from outbox.deliveries").fetchall()
    assert stored == (error,)


async def test_a_part_that_fails_by_a_bug_is_told_and_the_rest_goes_on(
    contacts: psycopg.Connection, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for it before the end, and it might be away for weeks."""

    async def listen(*_: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr("outbox.daemon.run.listen", listen)
    with Receiver() as receiver, capture_logs() as logs:
        add_config(contacts, receiver.url)
        async with running(db, poll_interval=0.1):
            await eventually(lambda: any(each["event"] == "task.failed" for each in logs))
            add_contacts(contacts, 1, 1)
            await receiver.wait_for_async(1)
    [told] = [each for each in logs if each["event"] == "task.failed"]
    assert (told["task"], str(told["exc_info"])) == ("listen", "a bug")
