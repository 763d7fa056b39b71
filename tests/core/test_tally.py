"""What is counted of a try, and under which few words."""

import datetime as dt
from uuid import UUID

import pytest

from outbox.core.model import Answer, Attempt, Dead, Delivered, Delivery, Failure, FailureKind, Outcome, Retry
from outbox.core.tally import Histogram, Tally, status_class
from tests.ids import config_id

EVENT_AT = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def attempt(outcome: Outcome, *, number: int = 1, after: float = 2.0) -> Attempt:
    """Return a try of an event that begins `after` seconds from it."""
    delivery = Delivery(str(UUID(int=1)), config_id(2), number, 0, EVENT_AT, 1, "CREATE", "contact", "{}")
    return Attempt(delivery, outcome, 200, b"", 5, EVENT_AT + dt.timedelta(seconds=after))


def test_a_value_on_a_bound_belongs_below_it() -> None:
    """As Prometheus has it: `le` is less or equal; what is above all bounds has a count of its own."""
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 2.5):
        histogram.observe(value)
    assert histogram.counts == [2, 2, 1]
    assert histogram.sum == 7.5


@pytest.mark.parametrize(
    ("result", "word"),
    [
        (Answer(204), "2xx"),
        (Answer(101), "1xx"),
        (Answer(599), "5xx"),
        (Answer(600), "other"),
        (Answer(999), "other"),
        (Failure(FailureKind.OVERSIZED, "", 200), "oversized"),
    ],
)
def test_a_subscriber_can_not_make_new_words(result: Answer | Failure, word: str) -> None:
    """Whatever the status, there are six words for it; without a complete answer the kind of failure counts."""
    assert status_class(result) == word


def test_only_an_acknowledged_first_try_is_a_delivery_time() -> None:
    """From the event to the end of the try; retries wait for reasons of their subscriber's."""
    tally = Tally()
    tally.attempted(attempt(Delivered()), Answer(200), 0.5)
    tally.attempted(attempt(Delivered(), number=2, after=300), Answer(200), 0.5)
    tally.attempted(attempt(Retry(300, "status 500")), Answer(500), 0.5)
    tally.attempted(attempt(Dead("status 600")), Answer(600), 0.5)
    assert (sum(tally.deliveries.counts), tally.deliveries.sum) == (1, 2.5)
    assert sum(tally.durations.counts) == 4
    assert {key: count for key, count in tally.attempts.items() if count} == {
        ("delivered", "2xx"): 2, ("retry", "5xx"): 1, ("dead", "other"): 1,
    }  # fmt: skip


def test_a_clock_that_was_put_back_makes_no_negative_time() -> None:
    """A try that seems to begin before its event counts as one that began with it."""
    tally = Tally()
    tally.attempted(attempt(Delivered(), after=-60), Answer(200), 0.25)
    assert tally.deliveries.sum == 0.25
