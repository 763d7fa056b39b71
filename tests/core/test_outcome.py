"""What becomes of a delivery after a try, as the contract says it."""

import pytest

from outbox.core.model import Answer, Dead, Delivered, Failure, FailureKind, Outcome, Retry
from outbox.core.outcome import Backoff, judge


@pytest.mark.parametrize(
    ("result", "tries", "expected"),
    [
        (Answer(200), 1, Delivered()),
        (Answer(204), 3, Delivered()),
        (Answer(299), 3, Delivered()),
        (Answer(199), 1, Retry(300, "status 199")),
        (Answer(301), 1, Retry(300, "status 301")),
        (Answer(422), 2, Retry(300, "status 422")),
        (Answer(500), 3, Dead("status 500")),
        (Answer(500), 4, Dead("status 500")),
        (Answer(503, retry_after=1000), 1, Retry(1000, "status 503")),
        (Answer(503, retry_after=10), 1, Retry(300, "status 503")),
        (Answer(503, retry_after=10**9), 1, Retry(86_400, "status 503")),
        (Answer(503, retry_after=1000), 3, Dead("status 503")),
        (Failure(FailureKind.TIMEOUT, "no answer within 15 s"), 1, Retry(300, "timeout: no answer within 15 s")),
        (Failure(FailureKind.OVERSIZED, "too long", 200), 3, Dead("oversized: too long")),
        (Failure(FailureKind.MISSING, "gone"), 1, Dead("gone")),
    ],
)
def test_the_law(result: Answer | Failure, tries: int, expected: Outcome) -> None:
    """2xx acknowledges; all else uses up one of three tries; Retry-After makes it later, never sooner."""
    assert judge(result, tries=tries, number_of_attempts=3, attempt_interval=300) == expected


@pytest.mark.parametrize(
    ("dice", "limit", "schedule"),
    [
        (0.0, 86_400, [300, 600, 1200, 2400]),
        (1.0, 86_400, [375, 750, 1500, 3000]),
        (0.5, 1000, [338, 675, 1000, 1000]),
        (0.5, 10, [300, 300, 300, 300]),
    ],
)
def test_the_schedule_of_the_exponential_backoff(dice: float, limit: int, schedule: list[int]) -> None:
    """Each wait is twice the last, up to a quarter longer by the dice, at most the limit, never below the interval."""
    waits = [
        judge(Answer(500), tries=tries, number_of_attempts=5, attempt_interval=300, backoff=Backoff(limit, dice))
        for tries in range(1, 5)
    ]
    assert waits == [Retry(wait, "status 500") for wait in schedule]
