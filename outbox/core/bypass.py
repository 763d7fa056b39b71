"""Where to look for what stands behind a flood: first what is new, and beside that what was passed. No clock, no I/O.

To look through a million rows in the order of capture would keep whoever comes last waiting for so long. So where there
is next to nothing for others in a flood one goes on near the end, and what is left in between is looked through beside.
What stands there comes later than what was captured after it: no order is promised but strict order, and where there is
more of it, all goes in the order of capture.
"""

import math
from dataclasses import dataclass

SCAN = 20_000
"""Outbox rows that one look at what is new goes through: some 50 ms for PostgreSQL."""

SCAN_BESIDE = 10_000
"""Outbox rows that one look at what was left goes through: what is new waits for that."""

NEXT_TO_NOTHING = 0.01
"""What part of a look may be for others where what is in between is left for later."""

PAUSE = (0.01, 0.05)
"""Seconds from one look at what is new, up to the end, to the next: at least, while it finds something, and at most."""

AGAIN_SECONDS = 5.0
"""After these a flood is looked through again: for what was committed late, and for configs that changed."""

AGAIN_TIMES = 10
"""It takes so many times as long as that took, if that is more."""

TO_THE_END = 2**63 - 1
"""The highest seq that there can be."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of the outbox to look at: `scan` rows at most of those above `low`, up to `high`."""

    low: int
    high: int
    scan: int

    @property
    def is_new(self) -> bool:
        """Whether it goes up to the end."""
        return self.high == TO_THE_END

    def as_dense(self, rows: int, *, came_to: int) -> int:
        """Return how many rows all of it has for others, where so many were found before a look was cut short."""
        return max(rows, rows * self.scan // max(1, came_to - self.low))


class Bypass:
    """Up to where one has looked behind one flood. `now` is the monotonic clock."""

    def __init__(self) -> None:
        self._from = self._top = self._front = 0
        self._behind: int | None = None
        self._until = 0
        self._behind_seconds = 0.0
        self._pause = 0.0
        self._front_at = self._behind_at = 0.0
        self._again_at = math.inf

    def stands_at(self, top: int) -> None:
        """Note up to which seq the flood was routed: what is behind that may be anybody's."""
        if not self._front:
            self._from = self._front = top
        elif top < self._from:  # it begins lower than was known
            self._leave(top, self._from)
            self._from = top
        self._top = top
        self._front = max(self._front, top)
        if self._behind is not None:
            self._behind = max(self._behind, top) if top < self._until else None

    @property
    def next_look(self) -> float:
        """When to look behind the flood, on the monotonic clock."""
        return min(self._front_at, self._again_at if self._behind is None else self._behind_at)

    def next(self, now: float) -> Stretch:
        """Return what to look at: what is new, unless it is too early to and what was passed is to be looked at."""
        if self._behind is None and now >= self._again_at:
            self._leave(self._top, self._front)
        if self._behind is not None and now >= self._behind_at and now < self._front_at:
            return Stretch(self._behind, self._until, SCAN_BESIDE)
        return Stretch(self._front, TO_THE_END, SCAN)

    def looked(self, stretch: Stretch, *, began: float, now: float, came_to: int, rows: int, to_the_end: bool) -> None:
        """Note a look: up to which seq it came, how many rows were for others, and whether there was no more."""
        if stretch.is_new:
            self._front = max(self._top, came_to)
            self._front_at = now
            if to_the_end:
                least, most = PAUSE
                self._pause = least if rows else min(most, 2 * self._pause + least)
                self._front_at += self._pause
                if self._behind is None and self._again_at == math.inf:
                    self._again_at = now + AGAIN_SECONDS
            return
        self._behind_seconds += now - began
        self._behind_at = now
        if self._behind != stretch.low:  # the flood stands elsewhere since
            return
        if rows > stretch.scan * NEXT_TO_NOTHING:
            self._front, self._behind, self._front_at = max(self._top, came_to), None, now
        elif to_the_end:
            self._behind = None
            self._again_at = now + max(AGAIN_SECONDS, AGAIN_TIMES * self._behind_seconds)
        else:
            self._behind = max(self._top, came_to)

    def is_long(self, stretch: Stretch, *, rows: int, to_the_end: bool) -> bool:
        """Whether after such a look one should ask where the outbox ends, and `go_on_near` that."""
        return stretch.is_new and not to_the_end and rows <= stretch.scan * NEXT_TO_NOTHING

    def go_on_near(self, end: int) -> None:
        """Leave what is in between for later, where it is more than a look."""
        if end - SCAN > self._front:
            self._leave(self._front, end - SCAN)
            self._front = end - SCAN

    def _leave(self, low: int, high: int) -> None:
        """Have what is above `low`, up to `high`, looked through beside."""
        if self._behind is None:
            self._behind, self._until, self._behind_seconds, self._again_at = low, high, 0.0, math.inf
        self._behind, self._until = min(self._behind, low), max(self._until, high)
