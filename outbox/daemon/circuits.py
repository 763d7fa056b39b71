"""Watches how the configs fare: counts what the settled tries say of them, and has each change made and told."""

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

log = structlog.get_logger("outbox")


class Circuits:
    """What this daemon knows of configs in trouble. `disable_after`: seconds; 0 for never."""

    def __init__(self, *, disable_after: float) -> None:
        self._disable_after = disable_after
        self.failing = set[UUID]()
        """Configs whose last try failed, or that are known for it: by what all daemons counted, and this one since."""

    async def refresh(self, conn: psycopg.AsyncConnection) -> None:
        """Learn which configs' successes are news, by what all daemons counted."""
        self.failing = await circuits.failing(conn)

    async def note(self, conn: psycopg.AsyncConnection, attempts: Sequence[Attempt]) -> bool:
        """Count what these tries say; those of healthy configs cost nothing. Returns whether a change was captured."""
        told = {
            config_id: each
            for config_id, each in runs(attempts).items()
            if each.failures or each.died or config_id in self.failing
        }
        if not told:
            return False
        is_captured = False
        for config_id, condition in (await circuits.note(conn, told)).items():
            for change in changes(told[config_id], condition, disable_after=self._disable_after):
                reason = told[config_id].reason
                if await circuits.make(conn, config_id, change, reason):
                    log.warning(_EVENTS[change], config_id=str(config_id), error=reason)
                    is_captured = True
        self.failing |= told.keys()
        return is_captured
