"""Hears the doorbell: LISTEN on a connection of its own. Only a hint: where it fails, polling carries on.

Behind PgBouncer in transaction mode nothing is heard, and a LISTEN would be left in a session that is lent to others.
"""

import asyncio
import math
import time
from collections.abc import Callable

import psycopg
import structlog

from outbox import logs
from outbox.daemon.outage import ReconnectBackoff
from outbox.postgres.pool import TRANSIENT, Link

LOOK_AFTER_SECONDS = 60.0
"""Seconds after which one looks whether the link still lives."""

TOLD_AFTER_SECONDS = 30.0
"""Of a link that can not be had for so long is told: where the whole database is away, another loop says so at once."""

log = structlog.get_logger("outbox")


async def listen(link: Link, wake: Callable[[], None]) -> None:
    """Call `wake` for each notification, for ever. A lost connection is opened anew.

    Returns, after one warning, where a pooler keeps notifications from coming.
    """
    backoff = ReconnectBackoff()
    lost_at, is_told = math.inf, False
    while True:
        try:
            conn = await link.connection()
            if link.is_pooled:
                log.warning("listen.skipped", reason="A pooler lends sessions by transaction: new work is polled for.")
                await link.drop()
                return
            await conn.execute("listen outbox")
            backoff.restored()
            if is_told:
                log.info("listen.returned")
            lost_at, is_told = math.inf, False
            while True:
                wake()  # for what was missed until here
                async for _ in conn.notifies(timeout=LOOK_AFTER_SECONDS):
                    wake()
                await conn.execute("select")  # a link that is dead gives no answer within the deadline
        except (psycopg.Error, *TRANSIENT) as error:
            lost_at = min(lost_at, time.monotonic())
            if not is_told and time.monotonic() - lost_at > TOLD_AFTER_SECONDS:
                is_told = True
                log.warning("listen.lost", error=logs.said(error))
        except asyncio.CancelledError:
            await link.drop()
            raise
        await link.drop()
        await backoff.wait()
