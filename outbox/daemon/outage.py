"""The database is away: said once when it goes and once when it returns, and waited for with growing pauses."""

import asyncio
import random

import psycopg
import structlog

from outbox import logs
from outbox.postgres.pool import is_away

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0

log = structlog.get_logger("outbox")


class Outage:
    """What the loops of a daemon know together of whether the database can be reached."""

    def __init__(self) -> None:
        self.lasts = False
        self.count = 0
        """How many began."""
        self._told: str | None = None
        """The SQLSTATE of the failure that was told last, if nothing went well since."""

    def note(self, error: Exception) -> None:
        """Say what kept a statement from going well: that the database is away, or else why it gave that one up."""
        if is_away(error):
            if not self.lasts:
                self.lasts = True
                self.count += 1
                log.warning("database.lost", error=logs.said(error))
        elif isinstance(error, psycopg.Error) and error.sqlstate != self._told:
            self._told = error.sqlstate
            log.warning("statement.failed", sqlstate=error.sqlstate, error=logs.said(error))

    def ended(self) -> None:
        """Say so: a statement was answered again."""
        self._told = None
        if self.lasts:
            self.lasts = False
            log.info("database.returned")


class ReconnectBackoff:
    """One loop's pauses between its calls: each longer than the last, with dice, so that no daemons march in step."""

    def __init__(self) -> None:
        self._pause = _FIRST_PAUSE

    def restored(self) -> None:
        """Begin with a short pause the next time."""
        self._pause = _FIRST_PAUSE

    async def wait(self) -> None:
        """Wait a little longer than the last time."""
        await asyncio.sleep(self._pause * random.uniform(0.5, 1.0))  # noqa: S311 - spread, not secrecy
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)
