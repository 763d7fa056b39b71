"""The low-water mark: where a look at the outbox need not begin at the beginning, and what it hides."""

import math

from outbox.core.low_water import (
    LOOK_BELOW_SECONDS,
    MISSING_SECONDS,
    PAUSE_TIMES,
    QUICK_SECONDS,
    REACH,
    TRAIL_SECONDS,
    LowWater,
    Transactions,
)

NOBODY = Transactions()
LATE, SHORT = 100, 200
"""The ids of transactions."""


def passed(*under_way: int) -> LowWater:
    """Return a mark that has risen to 7 while these were under way, and at which nothing was looked for below."""
    mark = LowWater()
    mark.looked(0.0, 7, Transactions(under_way))
    mark.looked(0.1, None, Transactions(under_way))
    assert mark.low(TRAIL_SECONDS) == 7
    return mark


def look_below(mark: LowWater, now: float, *, seconds: float = 0.0, lowest: int | None = None) -> None:
    """Look below the mark for so long."""
    mark.begin_look_below(now)
    mark.looked_below(now + seconds, lowest)


def test_the_mark_trails() -> None:
    """What commits a little later than its seq is not passed over."""
    mark = LowWater()
    assert mark.low(10.0) == 0
    mark.looked(10.0, 7, NOBODY)
    assert mark.low(9.9 + TRAIL_SECONDS) == 0
    assert mark.low(10.1 + TRAIL_SECONDS) == 7


def test_the_mark_does_not_pass_what_is_missing_until_it_may_be_given_up() -> None:
    """Its transaction may commit long after others whose numbers are higher."""
    mark = LowWater()
    mark.looked(0.0, 10, NOBODY)
    mark.missing(0.1, 10)
    mark.looked(0.1, 12, NOBODY)
    assert mark.low(TRAIL_SECONDS + 0.3) == 10
    mark.missing(1.0, 12)
    mark.looked(1.0, 15, NOBODY)
    assert mark.low(MISSING_SECONDS + 0.2) == 12
    assert mark.low(MISSING_SECONDS + 1.1) == 15


def test_the_mark_does_not_trail_by_more_than_a_look_can_read() -> None:
    """A transaction that captures very much takes all numbers in between, and each look would read through them."""
    mark = LowWater()
    for number in range(10):
        now, top = number / 100, 10 + number * REACH // 2
        mark.missing(now, top - 1)
        mark.looked(now, top, NOBODY)
    assert mark.low(0.1) == 10 + 6 * REACH // 2


def test_one_looks_below_when_a_transaction_is_over_that_the_mark_has_passed() -> None:
    """What it captured may be there, and no look above the mark finds it."""
    mark = passed(LATE)
    look_below(mark, 1.0)
    mark.looked(1.1, None, Transactions({LATE, SHORT}))
    assert not mark.is_due(1.1)
    mark.looked(1.2, None, Transactions({LATE}))
    assert not mark.is_due(1.2)
    mark.looked(1.3, 9, Transactions({SHORT}))
    assert mark.is_due(1.3)
    look_below(mark, 1.3)
    mark.looked(1.4, None, NOBODY)
    assert not mark.is_due(1.4)


def test_who_was_over_before_the_mark_passed_him_was_found_by_a_look_above_it() -> None:
    """And leads to none below it."""
    mark = LowWater()
    mark.looked(0.0, 7, Transactions({LATE}))
    mark.looked(0.1, 5, NOBODY)
    assert mark.low(TRAIL_SECONDS + 0.2) == 7
    mark.looked(0.8, None, NOBODY)
    assert not mark.is_due(0.8)


def test_one_looks_below_now_and_then_and_when_asked() -> None:
    """As long as something happens; and not where a look sees everything, for nothing is below."""
    mark = LowWater()
    mark.ask(0.0)
    assert not mark.is_due(0.0)
    assert mark.next_look == math.inf
    mark.looked(0.0, 7, NOBODY)
    assert not mark.is_due(1.0)
    assert mark.next_look == LOOK_BELOW_SECONDS
    assert mark.is_due(mark.next_look)
    mark.ask(1.0)
    assert mark.is_due(1.0)
    assert mark.next_look <= 1.0
    look_below(mark, 1.0)
    assert mark.next_look == math.inf
    mark.rang()
    assert mark.next_look == 1.0 + LOOK_BELOW_SECONDS


def test_nothing_is_to_be_done_before_the_mark_rises() -> None:
    """What was routed just now is not below it yet."""
    mark = LowWater()
    mark.rang()
    assert mark.next_look == math.inf
    mark.looked(0.0, 7, NOBODY)
    look_below(mark, 1.0, lowest=1)
    mark.looked(5.0, 7, NOBODY)
    assert not mark.is_due(5.1)
    assert mark.next_look == 5.0 + TRAIL_SECONDS
    assert mark.is_due(mark.next_look)


def test_the_pause_grows_with_what_a_look_reads_through() -> None:
    """However much is under way, looking below takes a part of the time only, and not that of the routes."""
    mark = passed(LATE)
    look_below(mark, 1.0, seconds=QUICK_SECONDS / 2)
    was_quick = mark.is_quick
    look_below(mark, 2.0, seconds=1.0)
    assert (was_quick, mark.is_quick) == (True, False)
    mark.ask(3.0)
    assert not mark.is_due(2.9 + PAUSE_TIMES)
    assert mark.next_look == 3.0 + PAUSE_TIMES
    assert mark.is_due(mark.next_look)
    mark.looked(3.5, None, NOBODY)
    assert not mark.is_due(3.9)
    assert mark.next_look == 4.0
    mark.ask(3.5, at_once=True)
    assert mark.is_due(3.5)


def test_the_mark_goes_back_to_what_is_found_below_it() -> None:
    """And on from there: also where numbers began anew, as after a restore."""
    mark = LowWater()
    mark.looked(0.0, 5 * REACH, NOBODY)
    look_below(mark, 1.0, lowest=8)
    assert mark.low(1.0) == 7
    mark.ask(1.0)
    mark.looked_below(1.0, 1)
    assert (mark.low(1.0), mark.next_look) == (0, math.inf)
    mark.looked(1.0, 9, NOBODY)
    assert mark.low(1.1 + TRAIL_SECONDS) == 9
