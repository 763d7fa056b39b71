"""What a daemon does shows in its metrics: real daemons, real receivers, read by scraping."""

import asyncio
import contextlib
import subprocess
import sys
import urllib.error
from collections.abc import Callable

import psycopg
import pytest

from outbox.core.tally import GivenBack, Statement
from outbox.daemon import housekeeping
from outbox.demo.supervisor import free_port
from outbox.postgres.migrations import migrate
from tests.daemons import (
    add_config,
    add_contacts,
    attach_contacts,
    daemon_process,
    eventually_true,
    owed,
    running,
)
from tests.receiver import Gate, Hang, Receiver, Refusing, Status
from tests.scrapes import Samples, scrape
from tests.servers import StartServer


@pytest.fixture
def contacts(conn: psycopg.Connection) -> psycopg.Connection:
    """A connection to a database whose contacts are attached."""
    attach_contacts(conn)
    return conn


async def scraped(port: int, holds: Callable[[Samples], bool]) -> Samples:
    """Scrape until it holds, and return that scrape."""
    found: Samples = {}

    def once() -> bool:
        found.clear()
        with contextlib.suppress(urllib.error.URLError):  # it may not listen yet
            found.update(scrape(port))
        return bool(found) and holds(found)

    await asyncio.to_thread(eventually_true, once)
    return found


async def test_deliveries_are_counted_and_timed(contacts: psycopg.Connection, db: str) -> None:
    """Three changes, two configs: routed, created, leased, tried and timed are counted once each, by whatever claim."""
    port = free_port()
    with Receiver() as receiver:
        add_config(contacts, receiver.url_for("/a"))
        add_config(contacts, receiver.url_for("/b"), strict_order="hold")
        async with running(db, listen=("127.0.0.1", port)):
            add_contacts(contacts, 1, 3)
            delivered = ("outbox_attempts_total", "delivered", "2xx")
            found = await scraped(port, lambda now: now[delivered] == 6 and now["outbox_unsettled",] == 0)
    assert found["outbox_events_routed_total",] == 3
    assert found["outbox_deliveries_created_total",] == 6
    assert found["outbox_deliveries_leased_total", "route"] + found["outbox_deliveries_leased_total", "claim"] == 6
    for name in ("outbox_attempt_duration_seconds", "outbox_commit_to_delivery_seconds"):
        assert found[f"{name}_count",] == found[f"{name}_bucket", "+Inf"] == 6
        assert found[f"{name}_sum",] > 0
    assert sum(value for labels, value in found.items() if labels[0] == "outbox_attempts_total") == 6
    assert found["outbox_outage",] == found["outbox_outages_total",] == found["outbox_leases_lost_total",] == 0
    assert found["outbox_workers",] == 1
    assert found["outbox_concurrency",] == 200
    assert found["process_resident_memory_bytes",] > 1e7


async def test_each_statement_is_timed_by_its_name(contacts: psycopg.Connection, db: str) -> None:
    """A batch that others pass by, one of them in order, and a change that is committed late."""
    port, count = free_port(), "outbox_statement_duration_seconds_count"
    with Receiver() as receiver, psycopg.connect(db) as late:
        receiver.answer("/batch", Status(200, delay=0.05))
        add_config(contacts, receiver.url_for("/batch"))
        add_config(contacts, receiver.url_for("/in-order"), location_id="M", strict_order="hold")
        late.execute("insert into contacts values (0, 'N')")
        async with running(db, listen=("127.0.0.1", port), drain_timeout=0.0):
            add_contacts(contacts, 1, 3000)
            contacts.execute("insert into contacts values (3001, 'M')")
            await scraped(port, lambda now: now[count, "overtake"] > 0)
            late.commit()
            found = await scraped(port, lambda now: all(now[count, each] > 0 for each in Statement))
    for each in Statement:
        assert found["outbox_statement_duration_seconds_sum", each] > 0
        assert found["outbox_statement_duration_seconds_bucket", "+Inf", each] == found[count, each]


async def test_failures_are_told_apart(contacts: psycopg.Connection, db: str) -> None:
    """A 500 that is retried, a 404 that kills, a timeout that limits its config, a refused connection."""
    port = free_port()
    with Receiver() as receiver, Refusing() as refusing_url:
        receiver.answer("/500", Status(500))
        receiver.answer("/404", Status(404))
        receiver.answer("/hang", Hang())
        add_config(contacts, receiver.url_for("/500"), number_of_attempts=2)
        add_config(contacts, receiver.url_for("/404"))
        add_config(contacts, receiver.url_for("/hang"))
        add_config(contacts, refusing_url)
        async with running(db, listen=("127.0.0.1", port), request_timeout=0.5):
            add_contacts(contacts, 1, 1)
            found = await scraped(port, lambda now: now["outbox_attempts_total", "dead", "timeout"] == 1)
    assert found["outbox_attempts_total", "retry", "5xx"] == 1
    assert found["outbox_attempts_total", "dead", "4xx"] == 1
    assert found["outbox_attempts_total", "dead", "connect"] == 1
    assert found["outbox_limited_configs",] == found["outbox_timed_out_configs",] == 1
    assert found["outbox_commit_to_delivery_seconds_count",] == 0


async def test_what_is_in_hand_shows(contacts: psycopg.Connection, db: str) -> None:
    """In flight is what the receiver has, waiting is what was claimed beside it; both end, and a lost lease is said."""
    port, gate = free_port(), Gate()
    with Receiver(default=gate) as receiver:
        add_config(contacts, receiver.url)
        async with running(
            db, listen=("127.0.0.1", port), max_in_flight_per_config=2, concurrency=4, request_timeout=30.0
        ):
            add_contacts(contacts, 1, 2)
            await scraped(port, lambda now: now["outbox_in_flight", "unknown"] == 2)
            # As another daemon would have it: claimed again, because the lease had run out.
            contacts.execute("update outbox.deliveries set attempts = attempts + 1 where leased")
            gate.open()
            found = await scraped(port, lambda now: now["outbox_leases_lost_total",] == 2)
            await scraped(port, lambda now: now["outbox_in_flight", "unknown"] == now["outbox_unsettled",] == 0)
    assert found["outbox_attempts_total", "delivered", "2xx"] == 2


async def test_a_settle_that_waits_shows(contacts: psycopg.Connection, db: str) -> None:
    """What is answered and not written down is unsettled, and the delay tells since when."""
    port = free_port()
    with Receiver() as receiver, psycopg.connect(db) as blocker:
        add_config(contacts, receiver.url)
        blocker.execute("lock table outbox.attempts in access exclusive mode")
        async with running(db, listen=("127.0.0.1", port)):
            add_contacts(contacts, 1, 5)
            await scraped(port, lambda now: now["outbox_unsettled",] == 5 and now["outbox_settle_delay_seconds",] > 0.1)
            blocker.rollback()
            await scraped(port, lambda now: now["outbox_unsettled",] == now["outbox_settle_delay_seconds",] == 0)


async def test_what_is_given_back_is_counted_by_why(contacts: psycopg.Connection, db: str) -> None:
    """A delivery that can not be sent for want of a key is leased and given back untried. All reasons are there."""
    port = free_port()
    add_config(contacts, "http://127.0.0.1:9/", basic_auth_username="gAAAAAunreadable")
    async with running(db, listen=("127.0.0.1", port)):
        add_contacts(contacts, 1, 1)
        found = await scraped(port, lambda now: now["outbox_deliveries_given_back_total", "unreadable"] == 1)
    reasons = {labels[1]: value for labels, value in found.items() if labels[0] == "outbox_deliveries_given_back_total"}
    assert reasons == {each: each == "unreadable" for each in GivenBack}
    assert sum(value for labels, value in found.items() if labels[0] == "outbox_attempts_total") == 0
    assert owed(contacts) == [("pending", 0, False)]


async def test_a_schema_of_another_version_shows(
    conn: psycopg.Connection, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody migrates while the daemon runs: it is 1 until the schema is the daemon's again."""
    monkeypatch.setattr(housekeeping, "_EVERY", 0.1)
    port = free_port()
    async with running(db, listen=("127.0.0.1", port)):
        await scraped(port, lambda now: now["outbox_schema_differs",] == 0)
        conn.execute("insert into outbox.migrations (version, name, checksum) values (99, 'x', repeat('0', 64))")
        try:
            await scraped(port, lambda now: now["outbox_schema_differs",] == 1)
        finally:
            conn.execute("delete from outbox.migrations where version = 99")
        await scraped(port, lambda now: now["outbox_schema_differs",] == 0)


def test_one_scrape_tells_of_all_workers(conn: psycopg.Connection, db: str) -> None:
    """Counts of two workers are summed; each has its own memory, by its number."""
    attach_contacts(conn)
    port = free_port()
    with Receiver() as receiver:
        add_config(conn, receiver.url)
        with daemon_process(db, "--workers", "2", listen=f"127.0.0.1:{port}") as daemon:
            daemon.wait_for_event("daemon.started", count=2)
            eventually_true(lambda: scrape(port).get(("outbox_workers",)) == 2)
            for first in range(1, 2001, 100):
                add_contacts(conn, first, 100)
            receiver.wait_for(2000)
            eventually_true(lambda: scrape(port)["outbox_attempts_total", "delivered", "2xx"] == 2000)
            found = scrape(port)
            assert daemon.stop() == 0
    assert found["outbox_events_routed_total",] == 2000
    assert found["outbox_concurrency",] == 400
    for number in ("1", "2"):
        assert found["process_resident_memory_bytes", number] > 1e7
        assert found["process_open_fds", number] > 3


async def test_the_page_answers_while_the_database_is_away(own_server: StartServer) -> None:
    """The counters and the last figures stay, an outage is 1 and counted, the age of the figures grows."""
    server = own_server()
    await migrate(server.dsn)
    port = free_port()
    with Receiver() as receiver:
        with psycopg.connect(server.dsn, autocommit=True) as conn:
            attach_contacts(conn)
            add_config(conn, receiver.url)
            add_contacts(conn, 1, 7)
        async with running(server.dsn, listen=("127.0.0.1", port)):
            await scraped(
                port,
                lambda now: now["outbox_attempts_total", "delivered", "2xx"] == 7 and now.get(("outbox_configs",)) == 1,
            )
            await asyncio.to_thread(server.stop_server, "immediate")
            first = await scraped(port, lambda now: now["outbox_outage",] == 1)
            assert first["outbox_outages_total",] == 1
            assert first["outbox_attempts_total", "delivered", "2xx"] == 7
            assert first["outbox_configs",] == 1
            await scraped(port, lambda now: now["outbox_figures_age_seconds",] > first["outbox_figures_age_seconds",])
            await asyncio.to_thread(server.start_server)
            await scraped(port, lambda now: now["outbox_outage",] == 0)


def test_a_daemon_that_serves_the_api_has_the_page_too(db: str) -> None:
    """`run --serve` tells of dispatching and of the database at the API's address, without a sign-in."""
    port = free_port()
    with daemon_process(db, "--serve", listen=f"127.0.0.1:{port}") as daemon:
        daemon.wait_for_event("daemon.started")
        eventually_true(lambda: ("outbox_pending",) in scrape(port))
        found = scrape(port)
        assert daemon.stop() == 0
    assert found["outbox_in_flight", "quick"] == found["outbox_pending",] == 0


def test_serve_tells_of_the_database_only(db: str) -> None:
    """`outbox serve` has the figures and its own memory, and no counters of what it does not do."""
    port = free_port()
    command = [sys.executable, "-m", "outbox", "serve", "--dsn", db, "--listen", f"127.0.0.1:{port}"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as serving:
        found: Samples = {}

        def has_figures() -> bool:
            with contextlib.suppress(urllib.error.URLError):  # it may not listen yet
                found.update(scrape(port))
            return ("outbox_pending",) in found

        try:
            eventually_true(has_figures)
        finally:
            serving.terminate()
    assert serving.returncode == 0
    assert found["process_open_fds",] > 0
    assert ("outbox_in_flight", "quick") not in found
