"""A daemon may die at any instant: every event arrives all the same, and nothing twice but what was in flight."""

import random
from collections import Counter

import psycopg

from tests.daemons import (
    add_config,
    add_contacts,
    attach_contacts,
    daemon_process,
    eventually_true,
    make_due,
    owed,
)
from tests.receiver import Receiver, Status

IN_FLIGHT = 10
EVENTS = 600
KILLS = 5


def test_kill_9_at_random_moments(conn: psycopg.Connection, db: str) -> None:
    """Killed again and again under load, the daemon loses no event, and repeats only what it had in flight."""
    attach_contacts(conn)
    dice = random.Random(7)  # noqa: S311 - a test that can be repeated
    with Receiver(default=Status(200, delay=0.01)) as receiver:
        # Never retried: a try of unknown outcome must be repeated all the same.
        add_config(conn, receiver.url, number_of_attempts=1)
        written = 0
        for _ in range(KILLS):
            with daemon_process(db, concurrency=str(IN_FLIGHT)) as daemon:
                daemon.wait_for_event("daemon.started")
                target = len(receiver.requests) + dice.randrange(1, 80)
                while len(receiver.requests) < target:
                    add_contacts(conn, written, 10)
                    written += 10
                    arrived = len(receiver.requests)
                    eventually_true(lambda arrived=arrived: len(receiver.requests) > arrived)  # type: ignore[misc]
                daemon.process.kill()
                daemon.process.wait()
            # What the dead daemon had leased falls due when its lease runs out: now.
            make_due(conn)
        add_contacts(conn, written, EVENTS)
        written += EVENTS
        with daemon_process(db) as daemon:
            eventually_true(lambda: not owed(conn) and _unrouted(conn) == 0)
            assert daemon.stop() == 0
        seen = Counter(each.data["id"] for each in receiver.requests)
        assert len(seen) == written
        again = sum(count - 1 for count in seen.values())
        assert again <= KILLS * IN_FLIGHT
        ids = {(each.data["id"], each.headers["webhook-id"]) for each in receiver.requests}
        assert len(ids) == written


def _unrouted(conn: psycopg.Connection) -> int:
    row = conn.execute("select count(*) from outbox.outbox").fetchone()
    return int(row[0]) if row else 0


def test_a_leased_delivery_comes_back_by_itself(conn: psycopg.Connection, db: str) -> None:
    """Nobody has to clean up after a dead daemon: its lease runs out, and another one takes over."""
    attach_contacts(conn)
    with Receiver(default=Status(200, delay=5)) as receiver:
        receiver.answer("/", Status(200, delay=60), Status(200))
        add_config(conn, receiver.url + "/")
        with daemon_process(db, request_timeout="1") as daemon:
            daemon.wait_for_event("daemon.started")
            add_contacts(conn, 1, 1)
            receiver.wait_for(1)
            daemon.process.kill()
            daemon.process.wait()
        assert owed(conn) == [("pending", 1, True)]
        with daemon_process(db, request_timeout="1") as daemon:
            receiver.wait_for(2, timeout=60)
            eventually_true(lambda: not owed(conn))
            assert daemon.stop() == 0
