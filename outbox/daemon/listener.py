"""Hears the doorbell: LISTEN on a connection of its own. Only a hint: where it fails, polling carries on.

Behind PgBouncer in transaction mode nothing is heard, and a LISTEN would be left in a session that is lent to others.
"""

import asyncio
from collections.abc import Callable

import psycopg
import structlog

from outbox.daemon.outage import ReconnectBackoff
from outbox.postgres.pool import TRANSIENT, Link

LOOK_AFTER_SECONDS = 60.0
"""Seconds after which one looks whether the link still lives."""

log = structlog.get_logger("outbox")


async def listen(link: Link, wake: Callable[[], None]) -> None:
    """Call `wake` for each notification, for ever. A lost connection is opened anew, without a word: it is a hint.

    Returns, after one warning, where a pooler keeps notifications from coming.
    """
    backoff = ReconnectBackoff()
    while True:
        try:
            conn = await link.connection()
            if link.is_pooled:
                log.warning("listen.skipped", reason="A pooler lends sessions by transaction: new work is polled for.")
                await link.drop()
                return
            await conn.execute("listen outbox")
            backoff.restored()
            while True:
                wake()  # for what was missed until here
                async for _ in conn.notifies(timeout=LOOK_AFTER_SECONDS):
                    wake()
                await conn.execute("select")  # a link that is dead gives no answer within the deadline
        except (psycopg.Error, *TRANSIENT):
            pass
        except asyncio.CancelledError:
            await link.drop()
            raise
        await link.drop()
        await backoff.wait()
