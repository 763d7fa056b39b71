"""What a dispatching process has done since its start, as plain numbers. Nothing is named or rendered here.

Counting stands in the way of each delivery, so it costs an addition and no more: whoever wants the numbers reads them.
"""

from bisect import bisect_left
from collections.abc import Sequence
from enum import StrEnum

from outbox.core.model import Answer, Attempt, Dead, Delivered, Failure, FailureKind, Retry

DURATION_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 60.0)
"""Seconds of one try. The default deadline is among them."""

DELIVERY_BOUNDS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0)
"""Seconds from the event to its acknowledgement: a backlog makes them many."""

STATEMENT_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Seconds of one statement. Whoever waits for more than a minute gives it up."""


class Statement(StrEnum):
    """What a daemon asks the database for, over and over."""

    ROUTE = "route"
    OVERTAKE = "overtake"
    LOOK_BELOW = "look_below"
    CLAIM = "claim"
    CLAIM_GOVERNED = "claim_governed"
    SETTLE = "settle"


class GivenBack(StrEnum):
    """Why a delivery in hand is given back, with no try of it finished."""

    UNSENT = "unsent"
    """It could not be sent for want of something of ours: the proxy, descriptors, memory, threads."""
    UNREADABLE = "unreadable"
    """Its config keeps secrets that no key reads."""
    WITHDRAWN = "withdrawn"
    """Its config wants nothing now: paused, switched off or removed meanwhile."""
    EXPIRED = "expired"
    """It found no slot within the time that its lease leaves."""
    OUTAGE = "outage"
    """The database was lost before its config was known."""
    STOPPING = "stopping"
    """The daemon ends."""
    CUT_OFF = "cut_off"
    """The daemon ended in the middle of its POST, whose outcome nobody knows."""


_STATUS_CLASSES = {number: f"{number}xx" for number in range(1, 6)}
_ODD_STATUS = "other"


class Histogram:
    """How often a value lay between which bounds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Up to each bound and above the one before it; the last is for what is above all."""
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Tally:
    """Counts since the start. The parts of the dispatcher add to it where they do what is counted."""

    def __init__(self) -> None:
        self.routed = 0
        """Captured changes that became events."""
        self.created = 0
        """Deliveries that these events were found to owe."""
        self.leased_at_once = 0
        """Deliveries that were leased as they were created."""
        self.claimed = 0
        """Deliveries that were leased because they were due."""
        self.given_back = dict.fromkeys(GivenBack, 0)
        """Leased deliveries that were given back, by why."""
        self.leases_lost = 0
        """Tries settled after their lease had passed to another claim."""
        self.attempts = dict.fromkeys(_expected_attempts(), 0)
        """Tries by outcome and status class. What can be expected is there from the start, with 0."""
        self.durations = Histogram(DURATION_BOUNDS)
        """Seconds of each try."""
        self.statements = {each: Histogram(STATEMENT_BOUNDS) for each in Statement}
        """Seconds of each statement that was answered."""
        self.deliveries = Histogram(DELIVERY_BOUNDS)
        """Seconds from an event to the end of its first try, for each that was acknowledged by it."""

    def took(self, statement: Statement, seconds: float) -> None:
        """Count a statement that was answered after so many seconds."""
        self.statements[statement].observe(seconds)

    def attempted(self, attempt: Attempt, result: Answer | Failure, duration: float) -> None:
        """Count a finished try; `duration` in seconds."""
        outcome = attempt.outcome
        key = (outcome.name, status_class(result))
        self.attempts[key] = self.attempts.get(key, 0) + 1
        self.durations.observe(duration)
        if attempt.delivery.attempt == 1 and isinstance(outcome, Delivered):
            waited = (attempt.at - attempt.delivery.event_created_at).total_seconds()
            # The database's clock may have been put back meanwhile.
            self.deliveries.observe(max(0.0, waited) + duration)


def status_class(result: Answer | Failure) -> str:
    """Return `2xx` and the like for an answer, the kind of failure where there is none: few words, however it went."""
    if isinstance(result, Failure):
        return result.kind
    return _STATUS_CLASSES.get(result.status // 100, _ODD_STATUS)


def _expected_attempts() -> list[tuple[str, str]]:
    failed = [*(name for number, name in _STATUS_CLASSES.items() if number > 2), *FailureKind]  # noqa: PLR2004 - 1xx and 2xx are no failures
    retried = [(Retry.name, name) for name in failed if name != FailureKind.MISSING]
    return [(Delivered.name, "2xx"), *retried, *((Dead.name, name) for name in failed)]
