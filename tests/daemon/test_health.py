"""What /readyz tells of a daemon, beside the outage of its database (tests/acceptance/test_run.py)."""

import asyncio

import psycopg

from outbox.daemon.dispatcher import Dispatcher
from outbox.daemon.health import Health
from outbox.daemon.housekeeping import Housekeeper
from outbox.daemon.outage import Outage
from outbox.daemon.targets import Targets
from outbox.http.sender import Sender
from outbox.secrets import SecretBox
from outbox.settings import Settings
from tests.daemons import LOOPBACK, eventually

STUCK = ["the fetch loop did not turn lately"]
UNFIT = ["the schema is not the one that this program knows"]


async def test_a_fetch_loop_that_does_not_turn_is_not_ready(db: str, conn: psycopg.Connection) -> None:
    """Not before its first turn, not while it hangs, though the database can be reached; then ready again."""
    settings, outage = Settings(dsn=db, poll_interval=0.01), Outage()
    async with Sender(timeout=5.0, allow_networks=LOOPBACK, connections=10) as sender:
        dispatcher = Dispatcher(settings, sender, Targets(SecretBox(())), outage)
        health = Health(dispatcher, outage, poll_interval=settings.poll_interval, late=0.5)
        assert health.problems() == STUCK
        running = asyncio.create_task(dispatcher.run())
        await eventually(lambda: not health.problems())
        with conn.transaction():
            conn.execute("lock table outbox.outbox in access exclusive mode")
            await eventually(lambda: health.problems() == STUCK)
        await eventually(lambda: not health.problems())
        dispatcher.stop()
        await running


async def test_a_schema_that_does_not_fit_is_not_ready(db: str, conn: psycopg.Connection) -> None:
    """The ledger is looked at again and again: one that was migrated past this program makes it not ready."""
    settings, outage = Settings(dsn=db, poll_interval=0.01), Outage()
    async with Sender(timeout=5.0, allow_networks=LOOPBACK, connections=10) as sender:
        dispatcher = Dispatcher(settings, sender, Targets(SecretBox(())), outage)
        health = Health(dispatcher, outage, poll_interval=settings.poll_interval)
        running = asyncio.create_task(dispatcher.run())
        await eventually(lambda: not health.problems())
        assert health.reading()["outbox_schema_differs"] == {"": [0.0]}
        conn.execute("insert into outbox.migrations (version, name, checksum) values (99, 'x', repeat('0', 64))")
        try:
            looking = asyncio.create_task(Housekeeper(Settings(dsn=db), health.tell_schema_fits).keep_house())
            await eventually(lambda: health.problems() == UNFIT)
            assert health.reading()["outbox_schema_differs"] == {"": [1.0]}
        finally:
            conn.execute("delete from outbox.migrations where version = 99")
        looking.cancel()
        looking = asyncio.create_task(Housekeeper(Settings(dsn=db), health.tell_schema_fits).keep_house())
        await eventually(lambda: not health.problems())
        looking.cancel()
        dispatcher.stop()
        await asyncio.gather(running, looking, return_exceptions=True)
