"""Tells of floods: whose batch stays in the outbox because it can not be sent as fast as it was captured."""

import math
from collections.abc import Collection

import structlog

from outbox.core.model import ConfigId

TOLD_AFTER = 1.0
"""Seconds that a flood must last before it is told of."""

NAMED = 5
"""Configs that are named at most."""

log = structlog.get_logger("outbox")


class FloodLog:
    """Remembers since when there is a flood. `now` is the monotonic clock."""

    def __init__(self) -> None:
        self._since = math.inf
        self._told = False

    def note(self, flooded: Collection[ConfigId], now: float) -> None:
        """Tell of it once when it has lasted, and once when it is over."""
        if not flooded:
            if self._told:
                log.info("flood.ended", seconds=round(now - self._since, 1))
            self._since, self._told = math.inf, False
            return
        self._since = min(self._since, now)
        if not self._told and now - self._since >= TOLD_AFTER:
            self._told = True
            log.info("flood.began", configs=len(flooded), config_ids=sorted(flooded)[:NAMED])
