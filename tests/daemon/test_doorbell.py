"""The doorbell is a hint, and no ring of it is lost by the daemon itself: what is lost costs a whole poll interval."""

import asyncio

import psycopg

from outbox.daemon.dispatcher import Dispatcher
from outbox.daemon.outage import Outage
from outbox.daemon.targets import Targets
from outbox.http.sender import Sender
from outbox.postgres.pool import Link
from outbox.secrets import SecretBox
from outbox.settings import Settings


async def test_a_ring_that_comes_before_the_answer_to_the_raising_is_not_forgotten(
    conn: psycopg.Connection, db: str
) -> None:
    """The listening connection may be heard first. The bell is down then, and the next look raises it again."""
    settings = Settings(dsn=db)
    async with Sender.of(settings, connections=1) as sender:
        dispatcher = Dispatcher(settings, sender, Targets(SecretBox(())), Outage())
        fetcher = dispatcher._fetcher  # noqa: SLF001 - no other way into the middle of a look
        link = Link(db, "test")
        raising = asyncio.create_task(fetcher._look_once_more(await link.connection()))  # noqa: SLF001
        await asyncio.sleep(0)  # it waits for the answer now
        dispatcher.ring()
        await raising
        conn.execute("select setval('outbox.doorbell', 1)")  # as the one did who rang
        await fetcher._look_once_more(await link.connection())  # noqa: SLF001
        assert conn.execute("select last_value from outbox.doorbell").fetchone() == (2,)
        await link.drop()
        for used in dispatcher._links:  # noqa: SLF001
            await used.drop()
