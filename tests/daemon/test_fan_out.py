"""Many configs want each change: one route makes as many deliveries as there is room for, however few rows that are."""

import asyncio

import psycopg

from outbox.daemon import router as router_module
from tests.daemons import LOOPBACK, add_config, add_contacts, captured, dispatching, eventually, running

CONFIGS = 30
CHANGES = 600


async def test_a_route_makes_a_bounded_number_of_deliveries(contacts: psycopg.Connection, db: str) -> None:
    """By what the last ones made of each row: all others wait for it. Nothing is left."""
    for _ in range(CONFIGS):
        add_config(contacts, "http://127.0.0.1:9/", paused_at="now")
    add_contacts(contacts, 1, CHANGES)
    async with running(db):
        await eventually(lambda: captured(contacts) == 0)
    by_statement = "select count(*) from outbox.deliveries group by xmin order by 1 desc"
    made = [number for (number,) in contacts.execute(by_statement)]
    assert sum(made) == CHANGES * CONFIGS
    ahead = router_module.MANY_SLOTS + router_module.AHEAD_ROWS
    assert made[0] <= max(ahead, router_module.FIRST_ROWS * CONFIGS)


async def test_where_a_route_had_no_answer_the_next_one_takes_few(contacts: psycopg.Connection, db: str) -> None:
    """One that takes more than a minute is given up, and the next would be as much: none would ever come to an end."""
    async with dispatching(db, allow_networks=LOOPBACK) as dispatcher:
        conn, router = await dispatcher._fetcher._link.connection(), dispatcher._fetcher._router  # noqa: SLF001
        add_contacts(contacts, 1, 100)
        async with asyncio.timeout(30):
            while captured(contacts):
                await router.look(conn)
        add_contacts(contacts, 101, 100)
        router.forget()
        await router.look(conn)
        assert captured(contacts) == 100 - router_module.FIRST_ROWS
