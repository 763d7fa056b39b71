"""Watches how the configs fare: counts what the settled tries say of them, and has each change made and told."""

from collections.abc import Sequence
from dataclasses import replace

import psycopg
import structlog

from outbox.core.circuit import SILENCE_PART, Change, Run, changes, runs, together
from outbox.core.model import Attempt, ConfigId
from outbox.postgres import circuits

_EVENTS = {
    Change.EXHAUSTED: "config.exhausted",
    Change.OPENED: "circuit.opened",
    Change.CLOSED: "circuit.closed",
    Change.DISABLED: "config.disabled",
    Change.RECOVERED: "config.recovered",
}

_NOTHING = Run()

log = structlog.get_logger("outbox")


class Circuits:
    """What this daemon knows of configs in trouble. `disable_after`: seconds; 0 for never."""

    def __init__(self, *, disable_after: float) -> None:
        self._disable_after = disable_after
        self._uncounted: dict[ConfigId, Run] = {}
        self._unmade: dict[ConfigId, Run] = {}
        self.failing = set[ConfigId]()
        """Configs whose last try failed, or that are known for it: by what all daemons counted, and this one since."""

    async def refresh(self, conn: psycopg.AsyncConnection) -> None:
        """Learn which configs' successes are news, by what all daemons counted."""
        self.failing = await circuits.failing(conn)

    @property
    def is_behind(self) -> bool:
        """Whether something could not be counted, or a change not be made, and is to be tried again."""
        return bool(self._uncounted or self._unmade)

    async def note(self, conn: psycopg.AsyncConnection, attempts: Sequence[Attempt]) -> bool:
        """Count what these tries say, with those that could not be counted before; healthy configs cost nothing.

        Returns whether a change was captured. What PostgreSQL refuses is kept for the next time: nobody else counts
        these tries. Where it gave no answer they may be counted already, and are not counted twice.
        """
        told = self._uncounted
        for config_id, run in runs(attempts).items():
            if run.failures or run.died or config_id in self.failing or config_id in told or config_id in self._unmade:
                told[config_id] = together(told.get(config_id, _NOTHING), run)
        if not self.is_behind:
            return False
        counted = {config_id: told.get(config_id, _NOTHING) for config_id in told | self._unmade}
        try:
            conditions = await circuits.note(conn, counted, silence=self._disable_after / SILENCE_PART or None)
        except BaseException as error:
            if getattr(error, "sqlstate", None) is None:
                told.clear()
            raise
        # Judged by how the config stands now: what another daemon, or an operator, did meanwhile counts.
        self._unmade = {
            config_id: together(
                replace(self._unmade.get(config_id, _NOTHING), failures=0, troubles=0), counted[config_id]
            )
            for config_id in conditions
        }
        self.failing |= told.keys()
        told.clear()
        is_captured = False
        for config_id, condition in conditions.items():
            run = self._unmade[config_id]
            for change in changes(run, condition, disable_after=self._disable_after):
                if await circuits.make(conn, config_id, change, run.reason):
                    log.warning(_EVENTS[change], config_id=config_id, error=run.reason)
                    is_captured = True
            del self._unmade[config_id]
        return is_captured
