"""Many configs may want each change, and a route of many rows takes long: all others wait for it."""

import asyncio
from itertools import pairwise

import psycopg
import pytest

from outbox.core import stride
from outbox.daemon import router as router_module
from tests.daemons import LOOPBACK, add_config, add_contacts, captured, dispatching, eventually, running
from tests.receiver import Receiver

CONFIGS = 30
CHANGES = 600


async def rows_of_looks(contacts: psycopg.Connection, db: str, *, forget_before: int = -1) -> list[int]:
    """Return how many of 200 changes each look routes. Before one of them there was one without an answer."""
    left: list[int] = []
    async with dispatching(db, allow_networks=LOOPBACK) as dispatcher, asyncio.timeout(60):
        conn, router = await dispatcher._fetcher._link.connection(), dispatcher._fetcher._router  # noqa: SLF001
        add_contacts(contacts, 1, 200)
        while not left or left[-1]:
            if len(left) == forget_before:
                router.forget()
            left.append(captured(contacts))
            await router.look(conn)
            await asyncio.sleep(0)
    return [before - after for before, after in pairwise(left)]


async def test_a_route_makes_a_bounded_number_of_deliveries(
    contacts: psycopg.Connection, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what the last ones made of each change; nothing is left."""
    monkeypatch.setattr(stride, "LONG_SECONDS", 60.0)
    for _ in range(CONFIGS):
        add_config(contacts, "http://127.0.0.1:9/", paused_at="now")
    add_contacts(contacts, 1, CHANGES)
    async with running(db):
        await eventually(lambda: captured(contacts) == 0)
    made = contacts.execute("select count(*) from outbox.deliveries group by xmin order by 1 desc").fetchall()
    assert sum(number for (number,) in made) == CHANGES * CONFIGS
    assert made[0][0] <= stride.DELIVERIES_AT_ONCE + CONFIGS
    assert len(made) < 20


async def test_what_many_configs_want_is_leased_as_it_is_routed(
    contacts: psycopg.Connection, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is routed before they have room for it has to be claimed: an update of each row."""
    monkeypatch.setattr(router_module, "AHEAD_ROWS", 1)
    with Receiver() as receiver:
        for _ in range(CONFIGS):
            add_config(contacts, receiver.url)
        add_contacts(contacts, 1, CHANGES)
        async with dispatching(db, allow_networks=LOOPBACK) as dispatcher:
            await dispatcher.run(until_empty=True)
            leased = dispatcher.reading()["outbox_deliveries_leased_total"]
        assert len(receiver.requests) == CHANGES * CONFIGS
    assert leased["route"][0] > CHANGES * CONFIGS / 3


async def test_a_route_that_took_long_is_followed_by_half_as_much(
    contacts: psycopg.Connection, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Down to one row; nothing is left."""
    monkeypatch.setattr(stride, "LONG_SECONDS", 0.0)
    rows = await rows_of_looks(contacts, db)
    assert rows[0] > 8
    assert all(later == max(1, earlier // 2) for earlier, later in pairwise(rows))
    assert sum(rows) == 200


async def test_after_one_without_an_answer_few_are_routed_and_then_more(
    contacts: psycopg.Connection, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been given up after a minute, and the next would be as long: none would ever come to an end."""
    monkeypatch.setattr(stride, "SHORT_SECONDS", 60.0)
    monkeypatch.setattr(stride, "LONG_SECONDS", 60.0)
    rows = await rows_of_looks(contacts, db, forget_before=1)
    assert rows[1] == rows[0] // stride.WITHOUT_ANSWER
    assert rows[2] == 2 * rows[1]
    assert sum(rows) == 200
