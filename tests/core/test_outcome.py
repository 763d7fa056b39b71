"""What becomes of a delivery after a try, as the contract says it."""

import pytest

from outbox.core.model import Answer, Dead, Delivered, Failure, FailureKind, Outcome, Retry
from outbox.core.outcome import judge


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
