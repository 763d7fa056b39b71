"""The one decision: what becomes of a delivery after a try. Everything that affects it must live here in this file.

A 2xx acknowledges. All else uses up one try; with tries left it is repeated after the config's interval, or later if
the answer asks for it, never sooner. Without tries left it is dead.
"""

from typing import assert_never

from outbox.core.model import Answer, Dead, Delivered, Failure, FailureKind, Outcome, Retry

MAX_RETRY_AFTER = 86_400
"""Seconds. The contract caps what an answer may ask for at a day."""


def judge(result: Answer | Failure, *, tries: int, number_of_attempts: int, attempt_interval: int) -> Outcome:
    """Return what becomes of the delivery.

    `tries`: how many of the current budget are used, this one included. `attempt_interval`: seconds.
    """
    match result:
        case Answer(status=status) if 200 <= status < 300:  # noqa: PLR2004 - the contract's 2xx
            return Delivered()
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
    return Retry(max(attempt_interval, asked_for), reason)
