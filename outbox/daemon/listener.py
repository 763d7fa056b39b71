"""Hears the doorbell: LISTEN on a connection of its own. Only a hint: where it fails, polling carries on."""

import asyncio
from collections.abc import Callable

import psycopg

from outbox.daemon.outage import Patience
from outbox.postgres.pool import TRANSIENT, Link


async def listen(link: Link, wake: Callable[[], None]) -> None:
    """Call `wake` for each notification, for ever. A lost connection is opened anew, without a word: it is a hint."""
    patience = Patience()
    while True:
        try:
            conn = await link.connection()
            await conn.execute("listen outbox")
            patience.restored()
            wake()  # for what was missed until here
            async for _ in conn.notifies():
                wake()
        except (psycopg.Error, *TRANSIENT):
            pass
        except asyncio.CancelledError:
            await link.drop()
            raise
        await link.drop()
        await patience.wait()
