"""The doorbell, as one daemon knows it: whether the next capture rings, and what may have rung for nobody.

Each captured change has a number, its seq. One that is missing may be committed later, and ring for nobody then.
"""

import time

import psycopg

from outbox.core.low_water import LowWater
from outbox.postgres import routing
from outbox.postgres.routing import Routed

LATE_LOOKS = (0.02, 0.1, 0.3, 1.0)
"""Seconds after which one looks for what was captured before the doorbell was up, and committed after the last look; or
for what rings for nobody. By then the mark may be past it: so with the last of these goes a look below it."""

UNKNOWN = -1
"""The number of the last change where it is not known."""


class Doorbell:
    """It is for one task at a time."""

    def __init__(self, low_water: LowWater) -> None:
        self._low_water = low_water
        self._seen = UNKNOWN
        self._is_something_missing = False
        self._late_looks: list[float] = []
        self._has_found = False
        self.is_up = False
        """Whether the next capture rings."""

    @property
    def next_look(self) -> float | None:
        """When to look though nothing rings, on the monotonic clock; None when not."""
        return self._late_looks[0] if self._late_looks else None

    def let_down(self) -> None:
        """Note that it rang, or might have rung unheard."""
        self.is_up = False

    def forget(self) -> None:
        """Note that the connection was lost. Nobody knows who raised the doorbell, or what was captured meanwhile."""
        self._seen = UNKNOWN
        self.let_down()

    async def raise_up(self, conn: psycopg.AsyncConnection) -> bool:
        """Have the next capture ring; returns whether there may be some that came before, and to look for them.

        Whoever captured a change before that, and commits it after the look, may ring for nobody: so where a number is
        missing, one looks again a little later.
        """
        # First, because it may ring before the answer is here; after the answer that ring would be forgotten.
        self.is_up = True
        last = await routing.raise_doorbell(conn)
        is_something_missing = self._seen == UNKNOWN
        if last is not None:  # else somebody had raised it, and looks for them
            # Not only where it is higher: a database that was restored begins with a lower one.
            if last != self._seen:
                is_something_missing = True
                self._low_water.missing(time.monotonic(), self._seen)
            is_something_missing |= self._is_something_missing
            self._is_something_missing = False
        self._seen = max(0, self._seen) if last is None else last
        if is_something_missing:
            self._look_again_soon()
        return is_something_missing

    def do_without(self) -> None:
        """Where nobody hears it: let what was found lead to further looks."""
        if self._has_found:
            self._look_again_soon()
        self._has_found = False

    def _look_again_soon(self) -> None:
        now = time.monotonic()
        self._late_looks = [now + seconds for seconds in LATE_LOOKS]

    def is_look_due(self, now: float) -> bool:
        """Whether it is time to look though nothing rang."""
        return bool(self._late_looks) and now >= self._late_looks[0]

    def look(self, now: float) -> None:
        """Note that a look begins."""
        if self.is_look_due(now):
            self._late_looks = [moment for moment in self._late_looks if moment > now]
            if not self._late_looks:
                self._low_water.ask(now)

    def note(self, routed: Routed, now: float) -> None:
        """Find out whether a number is missing among those that a look found."""
        if routed.first is None or routed.top is None:
            return
        self._has_found = True
        # Also where one of them is an old number: it may stand for a new one.
        if routed.first <= self._seen or routed.rows < routed.top - self._seen:
            self._is_something_missing = True
            self._low_water.missing(now, self._seen)
        self._seen = max(self._seen, routed.top)
