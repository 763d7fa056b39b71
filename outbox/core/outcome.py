"""The one decision: what becomes of a delivery after a try. Everything that affects it must live here in this file.

A 2xx acknowledges. All else uses up one try; with tries left it is repeated after the config's interval, or later if
the answer asks for it, never sooner. Without tries left it is dead.
"""

from dataclasses import dataclass
from typing import assert_never

from outbox.core.model import Answer, Dead, Delivered, Failure, FailureKind, Outcome, Retry

MAX_RETRY_AFTER = 86_400
"""Seconds. The contract caps what an answer may ask for at a day."""

_DELIVERED = Delivered()


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits that grow: each is twice the last, up to `limit` seconds, and up to a quarter longer by `dice`.

    `dice`: from 0 to 1. It only lengthens: the contract's interval is the least, and what failed at one moment must
    not all come back at one.
    """

    limit: int
    dice: float

    def wait(self, interval: int, tries: int) -> int:
        """Return the seconds to wait after this many tries."""
        return max(interval, min(self.limit, round(interval * 2.0 ** (tries - 1) * (1 + self.dice / 4))))


def judge(
    result: Answer | Failure,
    *,
    tries: int,
    number_of_attempts: int,
    attempt_interval: int,
    backoff: Backoff | None = None,
) -> Outcome:
    """Return what becomes of the delivery.

    `tries`: how many of the current budget are used, this one included. `attempt_interval`: seconds; each wait is as
    long, unless there is a `backoff`.
    """
    match result:
        case Answer(status=status) if 200 <= status < 300:  # noqa: PLR2004 - the contract's 2xx
            return _DELIVERED
        case Failure(kind=FailureKind.MISSING):
            return Dead(result.message)
        case Answer():
            reason, asked_for = f"status {result.status}", min(result.retry_after or 0, MAX_RETRY_AFTER)
        case Failure():
            reason, asked_for = f"{result.kind}: {result.message}", 0
        case _:
            assert_never(result)
    if tries >= number_of_attempts:
        return Dead(reason)
    wait = attempt_interval if backoff is None else backoff.wait(attempt_interval, tries)
    return Retry(max(wait, asked_for), reason)
