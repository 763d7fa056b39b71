"""Watches how the configs fare: counts what the settled tries say of them, and has each change made and told."""

from collections import deque
from collections.abc import Sequence
from uuid import UUID

import psycopg
import structlog

from outbox.core.circuit import Change, changes, runs
from outbox.core.model import Attempt
from outbox.postgres import circuits

_EVENTS = {
    Change.EXHAUSTED: "config.exhausted",
    Change.OPENED: "circuit.opened",
    Change.CLOSED: "circuit.closed",
    Change.DISABLED: "config.disabled",
    Change.RECOVERED: "config.recovered",
}

_MOST_UNCOUNTED = 10_000
"""Tries that are kept to be counted later: more would only say the same."""

log = structlog.get_logger("outbox")


class Circuits:
    """What this daemon knows of configs in trouble. `disable_after`: seconds; 0 for never."""

    def __init__(self, *, disable_after: float) -> None:
        self._disable_after = disable_after
        self._uncounted: list[Attempt] = []
        self._unmade: deque[tuple[UUID, Change, str | None]] = deque()
        self.failing = set[UUID]()
        """Configs whose last try failed, or that are known for it: by what all daemons counted, and this one since."""

    async def refresh(self, conn: psycopg.AsyncConnection) -> None:
        """Learn which configs' successes are news, by what all daemons counted."""
        self.failing = await circuits.failing(conn)

    @property
    def is_behind(self) -> bool:
        """Whether there is something to note that failed before, for want of the database."""
        return bool(self._uncounted or self._unmade)

    async def note(self, conn: psycopg.AsyncConnection, attempts: Sequence[Attempt]) -> bool:
        """Count what these tries say, after those that could not be counted before; healthy configs cost nothing.

        Returns whether a change was captured. What fails is kept for the next time: nobody else counts these tries.
        """
        self._uncounted += [each._replace(answer=b"") for each in attempts] if self._uncounted else attempts
        del self._uncounted[:-_MOST_UNCOUNTED]
        told = {
            config_id: each
            for config_id, each in runs(self._uncounted).items()
            if each.failures or each.died or config_id in self.failing
        }
        if told:
            for config_id, condition in (await circuits.note(conn, told)).items():
                reason = told[config_id].reason
                made = changes(told[config_id], condition, disable_after=self._disable_after)
                self._unmade += [(config_id, change, reason) for change in made]
            self.failing |= told.keys()
        self._uncounted.clear()
        is_captured = False
        while self._unmade:
            config_id, change, reason = self._unmade[0]
            if await circuits.make(conn, config_id, change, reason):
                log.warning(_EVENTS[change], config_id=str(config_id), error=reason)
                is_captured = True
            self._unmade.popleft()
        return is_captured
