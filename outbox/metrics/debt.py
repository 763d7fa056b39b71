"""What the database owes, counted in the background while somebody asks, remembered for all who ask.

Counting exactly costs what the debt costs to read (0.1 to 0.3 s for 1,000,000 pending). So the counting is spread
thin, and who asks gets the last figures with their age.
"""

import asyncio
import contextlib
import time
from dataclasses import dataclass

import psycopg
import structlog

from outbox import logs
from outbox.postgres import figures
from outbox.postgres.figures import ConfigDebt, Figures
from outbox.postgres.pool import ANSWER_SECONDS, TRANSIENT, Link
from outbox.settings import Pooling

FRESH = 5.0
"""Seconds for which figures are given out without another look."""

SHARE = 100
"""What was counted is not counted again before so many times the count's duration have passed: one per cent."""

LONGEST_PAUSE = 600.0
"""Seconds from one count to the next, at most."""

PATIENCE = 0.01
"""Seconds that who asks waits for new figures. A small debt is counted within them."""

LATE = 10.0
"""Seconds that something of a config must have been due for the config to be named."""

log = structlog.get_logger("outbox")


@dataclass(frozen=True, slots=True)
class Debt:
    """The figures of one moment."""

    figures: Figures
    worst: list[ConfigDebt]
    at: float
    """When they were counted, on the monotonic clock."""
    duration: float
    """Seconds that counting took."""


class DebtWatch:
    """Counts at its start, and when it is asked and what it knows is old; one count at a time.

    `worst`: how many configs are named.
    """

    def __init__(self, dsn: str, *, worst: int, pooling: Pooling = Pooling.AUTO) -> None:
        self._link = Link(dsn, "metrics", settings=figures.SETTINGS, pooling=pooling, deadline=ANSWER_SECONDS)
        self._worst = worst
        self._known: Debt | None = None
        self._made_at = time.monotonic()
        self._next_at = 0.0
        self._count: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin the first count, so that there is something to tell who asks first."""
        self._count = asyncio.create_task(self._refresh())

    async def debt(self) -> Debt | None:
        """Return the last figures, after waiting a moment for newer ones; None before the first count has ended."""
        if self._count is None and time.monotonic() >= self._next_at:
            self._count = asyncio.create_task(self._refresh())
        if self._count is not None:
            await asyncio.wait({self._count}, timeout=PATIENCE)
        return self._known

    @property
    def age(self) -> float:
        """How many seconds old the last figures are; before the first, for how long there have been none."""
        return time.monotonic() - (self._known.at if self._known else self._made_at)

    async def close(self) -> None:
        """End a count that is under way, and the connection."""
        if self._count is not None:
            self._count.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._count
        await self._link.drop()

    async def _refresh(self) -> None:
        began = time.monotonic()
        pause = FRESH
        try:
            conn = await self._link.connection()
            counting = time.monotonic()
            found, worst = await figures.worst(conn, self._worst, late=LATE)
            ended = time.monotonic()
            self._known = Debt(found, worst, ended, ended - counting)
            pause = (ended - counting) * SHARE
        except psycopg.errors.QueryCanceled:
            pause = LONGEST_PAUSE  # it takes too long: the figures grow old, and their age says so
        except TRANSIENT:
            await self._link.drop()
        except psycopg.Error as error:
            log.warning("figures.failed", error=logs.said(error))
            await self._link.drop()
        finally:
            self._next_at = began + min(LONGEST_PAUSE, max(FRESH, pause))
            self._count = None
