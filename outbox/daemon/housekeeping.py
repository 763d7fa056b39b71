"""What must be done now and then: partitions ahead of time, and what deleted configs left behind."""

import asyncio
from collections.abc import Callable

import psycopg
import structlog

from outbox.postgres import housekeeping, migrations
from outbox.postgres.pool import TRANSIENT, Link

_EVERY = 60.0
"""Seconds."""

log = structlog.get_logger("outbox")


async def keep_house(link: Link, schema_fits: Callable[[bool], None]) -> None:
    """Do it now and every minute, for ever. What fails is logged and done the next time."""
    known = migrations.known_migrations()
    while True:
        try:
            conn = await link.connection()
            schema_fits(not migrations.differences(await migrations.applied(conn), known))
            if made := await housekeeping.make_partitions(conn):
                log.info("partitions.made", count=made)
            if purged := await housekeeping.purge_deleted(conn):
                log.info("deliveries.purged", count=purged)
        except TRANSIENT:
            pass  # the fetch loop says that the database is away
        except psycopg.Error as error:
            log.warning("housekeeping.failed", error=" ".join(str(error).split())[:300])
        finally:
            await link.drop()
        await asyncio.sleep(_EVERY)
