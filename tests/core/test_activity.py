"""Two looks become rates and a table in some order."""

from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import pytest

from outbox.core.activity import NO_TRIES, ConfigLook, Daemon, Look, Sort, Tries, base, ordered, totals

CONFIG = ConfigLook(
    id=UUID(int=1), location_id="L", resource="contact", url="http://x.invalid/", is_active=True, is_paused=False,
    circuit_is_open=False, disabled_reason=None, pending=0, due=0, in_flight=0, dead=0, oldest_due_s=0.0,
)  # fmt: skip
LOOK = Look(
    at=1000.0, captured=500, unrouted=0, oldest_unrouted_s=0.0, configs=(),
    daemons=(Daemon(7, None, datetime(2026, 1, 1, tzinfo=UTC)),),
)  # fmt: skip


@pytest.mark.parametrize(
    ("tries", "per_second"),
    [
        (NO_TRIES, 0.0),
        (Tries(60, 10, None), 1.0),
        (Tries(2000, 2000, 0.5), 4000.0),
        (Tries(2000, 300, 55.0), 30.0),
        (Tries(20, 20, 0.0), 20_000.0),
        (Tries(20, 20, -0.2), 20_000.0),
    ],
    ids=["none", "all are here", "more than are read, in half a second", "more, but old ones", "a moment", "askew"],
)
def test_the_rate_of_tries_is_that_of_the_last_seconds(tries: Tries, per_second: float) -> None:
    """It is over ten seconds, or over as far as the tries go back that were read; never endless."""
    assert tries.per_second == per_second


def test_what_comes_in_is_counted_from_look_to_look() -> None:
    """One look alone has no rate, and numbers that went back are nothing that came in."""
    later = replace(LOOK, at=1004.0, captured=540)
    assert totals(later, LOOK).captured_rate == 10.0
    assert totals(later, None).captured_rate is None
    assert totals(replace(later, captured=3), LOOK).captured_rate == 0.0
    assert totals(replace(later, at=LOOK.at), LOOK).captured_rate is None


def test_sums_are_those_of_all_configs() -> None:
    """What a paused config owes is held, what is neither due nor in hand is retrying, the oldest may be unrouted."""
    configs = (
        replace(
            CONFIG, pending=10, due=3, in_flight=2, dead=1, oldest_due_s=5.0, delivered=Tries(9, 9, None),
            circuit_is_open=True,
        ),
        replace(CONFIG, id=UUID(int=2), is_paused=True, pending=8, in_flight=1, failed=Tries(5, 5, None)),
        replace(CONFIG, id=UUID(int=3), is_active=False, disabled_reason="did nothing but fail", pending=4),
    )  # fmt: skip
    sums = totals(replace(LOOK, configs=configs, unrouted=6, oldest_unrouted_s=9.0), None)
    assert (sums.due, sums.in_flight, sums.retrying, sums.held, sums.dead, sums.unrouted) == (3, 3, 5, 11, 1, 6)
    assert (sums.delivered_rate, sums.failed_rate) == (0.9, 0.5)
    assert (sums.oldest_s, sums.open_circuits, sums.disabled) == (9.0, 1, 1)
    assert totals(LOOK, None).oldest_s == 0.0


def test_each_sort_has_the_worst_first() -> None:
    """Each number has its sort, and configs that are alike stay in the order of their ids."""
    worst = {
        Sort.RATE: replace(CONFIG, delivered=Tries(9, 9, None)),
        Sort.FAILING: replace(CONFIG, failed=Tries(8, 8, None)),
        Sort.LATENCY: replace(CONFIG, p95_ms=0),
        Sort.IN_FLIGHT: replace(CONFIG, in_flight=1),
        Sort.DUE: replace(CONFIG, due=1),
        Sort.RETRYING: replace(CONFIG, pending=1),
        Sort.DEAD: replace(CONFIG, dead=1),
        Sort.OLDEST: replace(CONFIG, oldest_due_s=1.0),
    }
    configs = [replace(each, id=UUID(int=number)) for number, each in enumerate(worst.values(), start=10)]
    alike = [replace(CONFIG, id=UUID(int=2)), replace(CONFIG, id=UUID(int=1))]
    for number, sort in enumerate(worst, start=10):
        found = ordered([*alike, *configs], sort)
        assert found[0].id == UUID(int=number), sort
        assert found.index(alike[1]) < found.index(alike[0])


def test_rates_begin_at_the_oldest_look_of_the_last_seconds() -> None:
    """Looks that are far apart, because they are costly, count from the one before."""
    looks = [replace(LOOK, at=at) for at in (980.0, 991.0, 995.0, 1000.0)]
    assert base(looks, looks[-1]) is looks[1]
    assert base([looks[0], looks[-1]], looks[-1]) is looks[0]
    assert base(looks[-1:], looks[-1]) is None
