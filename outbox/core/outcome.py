"""The one decision: what becomes of a delivery after a try. Everything that affects it must live here in this file.

A 2xx acknowledges. All else uses up one try; with tries left it is repeated after the config's interval, or later if
the answer asks for it, never sooner. Without tries left it is dead.
"""

from outbox.core.model import Answer, Dead, Delivered, Failure, FailureKind, Outcome, Retry

MAX_RETRY_AFTER = 86_400
"""Seconds. The contract caps what an answer may ask for at a day."""


def judge(result: Answer | Failure, *, tries: int, number_of_attempts: int, attempt_interval: int) -> Outcome:
    """Return what becomes of the delivery.

    `tries`: how many of the current budget are used, this one included. `attempt_interval`: seconds.
    """
    retry_after = 0
    match result:
        case Answer(status=status) if 200 <= status < 300:  # noqa: PLR2004 - the contract's 2xx
            return Delivered()
        case Answer(status=status):
            reason = f"status {status}"
            retry_after = min(result.retry_after or 0, MAX_RETRY_AFTER)
        case Failure(kind=FailureKind.MISSING):
            return Dead(result.message)
        case Failure():
            reason = f"{result.kind}: {result.message}"
    if tries >= number_of_attempts:
        return Dead(reason)
    return Retry(max(attempt_interval, retry_after), reason)
