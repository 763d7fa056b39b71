"""Deliveries that were tried: made by the capture trigger and the queue's own statements, as a daemon makes them."""

import os
import subprocess
import sys
from collections.abc import Collection
from uuid import UUID

import psycopg

from outbox.core.model import NO_CONFIG, Attempt, Delivery, Outcome
from outbox.postgres import queue, routing


def attach_contacts(conn: psycopg.Connection) -> None:
    """Make a table of contacts and attach it."""
    conn.execute("create table contacts (id int primary key, location_id text, name text)")
    conn.execute("select outbox.attach('contacts', 'contact')")


def add_config(conn: psycopg.Connection, location: str = "L") -> UUID:
    """Subscribe to the location's contacts, with three tries."""
    row = conn.execute(
        "insert into outbox.postback_configs (location_id, resource, url, number_of_attempts)"
        " values (%s, 'contact', 'http://user:word@127.0.0.1:9/hook?token=secret', 3) returning id",
        [location],
    ).fetchone()
    assert row is not None
    return UUID(str(row[0]))


async def route(conn: psycopg.AsyncConnection) -> int:
    """Make deliveries of what was captured."""
    return (await routing.route(conn, low=0, rows=10_000, slots=0, room=0, rooms={}, lease=60)).rows


async def claim(conn: psycopg.AsyncConnection) -> list[Delivery]:
    """Lease all that is due, in the order of capture."""
    claimed = await queue.claim(conn, after=NO_CONFIG, slots=10_000, room=10_000, rooms={}, lease=60)
    return sorted(claimed.deliveries, key=lambda delivery: delivery.event_id)


async def settle(
    conn: psycopg.AsyncConnection, deliveries: Collection[Delivery], outcome: Outcome, answer: bytes = b"ok"
) -> None:
    """Record one try of each, which began now."""
    row = await (await conn.execute("select now()")).fetchone()
    assert row is not None
    await queue.settle(conn, [Attempt(each, outcome, 200, answer, 5, row[0]) for each in deliveries])


async def try_all(conn: psycopg.AsyncConnection, outcome: Outcome, answer: bytes = b"ok") -> list[Delivery]:
    """Route and claim all that is due, try it once with this outcome, and return what was tried."""
    await route(conn)
    claimed = await claim(conn)
    await settle(conn, claimed, outcome, answer)
    return claimed


def outbox(dsn: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the real command on this database."""
    return subprocess.run(
        [sys.executable, "-m", "outbox", *arguments],
        env={**os.environ, "OUTBOX_DSN": dsn, "COLUMNS": "400"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
