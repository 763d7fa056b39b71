"""Lane: one config's deliveries in hand, and what its POSTs say of it. No I/O; the clock is an argument."""

import math
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from outbox.core.model import Delivery
from outbox.core.slots import QUICK, SLOW, TIMED_OUT, Standing

QUICK_SECONDS = 1.0
"""Whose POST was answered within that is known to be quick."""

PACE_WINDOW = 0.25
"""Seconds over which a config's pace is measured while it falls."""

RISE_WINDOW = 0.05
"""Seconds over which it is measured while it rises: who has done all that he was given could have done more."""

PROBATION = 10
"""Whose POST timed out, or took longer, is known to be quick when so many in a row were answered soon."""


class Held(NamedTuple):
    """A delivery in hand, with its lease."""

    delivery: Delivery
    claimed_at: datetime
    """The database's time of the claim."""
    clock: float
    """The monotonic clock just before the claim."""
    start_before: float
    """Until when its POST may begin, on the monotonic clock: later, the lease could run out meanwhile."""
    start_before_wall: float = math.inf
    """The same in seconds since 1970: the monotonic clock stands while a machine is suspended."""


@dataclass(slots=True)
class Lane:
    """One config's deliveries in hand. Times are of the buffer's clock, in seconds."""

    limit: int
    """How many it may have in flight, by its time-outs."""
    useful: float
    """And how many, by the time that the event loop has."""
    standing: Standing
    started: int
    """The number of its last POST's start: of two that timed out, the one with the lower goes first."""
    waiting: deque[Held] = field(default_factory=deque)
    in_flight: int = 0
    finished: int = 0
    answered_at: float = 0.0
    silent_since: float = 0.0
    """When it was answered last, or began to have something in flight."""
    answers_late: bool = False
    probation: int = 0
    """How many must be answered soon before it is known to be quick."""
    old: int = 0
    """How many were in flight at the last mark, and still are."""
    overdue: int = 0
    """How many have been in flight for longer than QUICK_SECONDS."""
    pace: float = 0.0
    """Deliveries finished in a second, as measured lately."""
    queued: bool = False
    """Whether it will have its turn."""
    crowded: bool = False
    """Whether it had its turn, could not start, and waits for a slot."""
    allowance: int = 0
    """How many it may have in hand, as it was asked for last."""
    is_governed: bool = False
    """Whether what it has in hand came from a claim of governed configs."""
    more: bool = False
    """Whether it may be owed more than it was given last."""

    @property
    def in_hand(self) -> int:
        """How many wait or are in flight."""
        return len(self.waiting) + self.in_flight

    @property
    def is_full(self) -> bool:
        """Whether it has as many in flight as it may."""
        return self.in_flight >= min(self.limit, self.useful)

    @property
    def startable(self) -> int:
        """How many it could start if there were slots."""
        return 0 if self.is_full else min(len(self.waiting), math.ceil(min(self.limit, self.useful)) - self.in_flight)

    def is_silent(self, clock: float) -> bool:
        """Whether a POST in flight is unanswered for longer than QUICK_SECONDS: no other is started then.

        Not of a config that is known to answer late.
        """
        return self.in_flight > 0 and clock - self.silent_since > QUICK_SECONDS and not self.answers_late

    def measure(self, elapsed: float) -> None:
        """Measure the pace: what it finished in so many seconds, since this was called last."""
        change = self.finished / elapsed - self.pace
        self.pace += change * min(1.0, elapsed / (RISE_WINDOW if change > 0 else PACE_WINDOW))
        self.finished = 0

    def note_timed_out(self) -> Standing:
        """Return how it stands when a POST timed out."""
        self.finished += 1
        self.limit = max(1, self.limit // 2)
        self.probation = PROBATION
        return TIMED_OUT

    def note_answered(self, seconds: float, *, clock: float, most: int) -> Standing:
        """Return how it stands when a POST was answered that took so long. `most`: its limit at most."""
        self.finished += 1
        self.limit = min(most, self.limit + 1)
        self.answered_at = self.silent_since = clock
        self.answers_late = seconds > QUICK_SECONDS
        if self.answers_late or self.overdue:
            self.probation = PROBATION
        elif self.probation:
            self.probation -= 1
        return SLOW if self.probation else QUICK

    def note_end(self, seconds: float, *, since_mark: float) -> None:
        """Count a POST that ended no more among those that are in flight for long. `since_mark`: seconds since then."""
        if seconds > since_mark:
            self.old = max(0, self.old - 1)
            self.overdue = max(0, self.overdue - (seconds > QUICK_SECONDS))

    def mark(self) -> None:
        """Find out what has been in flight since the last mark."""
        self.overdue, self.old = self.old, self.in_flight
