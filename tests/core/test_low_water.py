"""The low-water mark: where a look at the outbox need not begin at the beginning, and what it hides."""

import math
import random

import pytest

from outbox.core.low_water import (
    LOOK_BELOW_SECONDS,
    MISSING_SECONDS,
    PAUSE_TIMES,
    QUICK_SECONDS,
    REACH,
    TRAIL_SECONDS,
    LowWater,
    Snapshot,
)

NOBODY = Snapshot(1000, frozenset())
LATE, SHORT = 100, 200
"""The ids of transactions."""


def look(mark: LowWater, now: float, top: int | None, *under_way: int) -> None:
    """Make a look at all above the mark, while these are under way."""
    mark.looked(now, top, Snapshot(1000, frozenset(under_way)), low=mark.low(now), to_the_end=True)


def passed(*under_way: int) -> LowWater:
    """Return a mark that has risen to 7 while these were under way, and at which nothing was looked for below."""
    mark = LowWater()
    look(mark, 0.0, 7, *under_way)
    look(mark, 0.1, None, *under_way)
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
    look(mark, 10.0, 7)
    assert mark.low(9.9 + TRAIL_SECONDS) == 0
    assert mark.low(10.1 + TRAIL_SECONDS) == 7


def test_the_mark_does_not_pass_what_is_missing_until_it_may_be_given_up() -> None:
    """Its transaction may commit long after others whose numbers are higher."""
    mark = LowWater()
    look(mark, 0.0, 10)
    mark.missing(0.1, 10)
    look(mark, 0.1, 12)
    assert mark.low(TRAIL_SECONDS + 0.3) == 10
    mark.missing(1.0, 12)
    look(mark, 1.0, 15)
    assert mark.low(MISSING_SECONDS + 0.2) == 12
    assert mark.low(MISSING_SECONDS + 1.1) == 15


def test_the_mark_does_not_trail_by_more_than_a_look_can_read() -> None:
    """A transaction that captures very much takes all numbers in between, and each look would read through them."""
    mark = LowWater()
    for number in range(10):
        now, top = number / 100, 10 + number * REACH // 2
        mark.missing(now, top - 1)
        look(mark, now, top)
    assert mark.low(0.1) == 10 + 6 * REACH // 2


def test_one_looks_below_when_a_transaction_is_over_that_the_mark_has_passed() -> None:
    """What it captured may be there, and no look above the mark finds it."""
    mark = passed(LATE)
    look_below(mark, 1.0)
    look(mark, 1.1, None, LATE, SHORT)
    assert not mark.is_due(1.1)
    look(mark, 1.2, None, LATE)
    assert not mark.is_due(1.2)
    look(mark, 1.3, 9, SHORT)
    assert mark.is_due(1.3)
    look_below(mark, 1.3)
    look(mark, 1.4, None)
    assert not mark.is_due(1.4)


def test_who_was_over_before_the_mark_passed_him_was_found_by_a_look_above_it() -> None:
    """And leads to none below it."""
    mark = LowWater()
    look(mark, 0.0, 7, LATE)
    look(mark, 0.1, 5)
    assert mark.low(TRAIL_SECONDS + 0.2) == 7
    look(mark, 0.8, None)
    assert not mark.is_due(0.8)


def test_one_looks_below_now_and_then_and_when_asked() -> None:
    """As long as something happens; and not where a look sees everything, for nothing is below."""
    mark = LowWater()
    mark.ask(0.0)
    assert not mark.is_due(0.0)
    assert mark.next_look(0.0) == math.inf
    look(mark, 0.0, 7)
    assert not mark.is_due(1.0)
    assert mark.next_look(1.0) == LOOK_BELOW_SECONDS
    assert mark.is_due(LOOK_BELOW_SECONDS)
    mark.ask(1.0)
    assert mark.is_due(1.0)
    assert mark.next_look(1.0) <= 1.0
    look_below(mark, 1.0)
    assert mark.next_look(1.0) == math.inf
    mark.rang()
    assert mark.next_look(1.0) == 1.0 + LOOK_BELOW_SECONDS


def test_nothing_is_to_be_done_before_the_mark_rises() -> None:
    """What was routed just now is not below it yet."""
    mark = LowWater()
    mark.rang()
    assert mark.next_look(0.0) == math.inf
    look(mark, 0.0, 7)
    look_below(mark, 1.0, lowest=1)
    look(mark, 5.0, 7)
    assert not mark.is_due(5.1)
    assert mark.next_look(5.0) == 5.0 + TRAIL_SECONDS
    assert mark.is_due(5.0 + TRAIL_SECONDS)


def test_the_pause_grows_with_what_a_look_reads_through() -> None:
    """However much is under way, looking below takes a part of the time only, and not that of the routes."""
    mark = passed(LATE)
    look_below(mark, 1.0, seconds=QUICK_SECONDS / 2)
    was_quick = mark.is_quick
    look_below(mark, 2.0, seconds=1.0)
    assert (was_quick, mark.is_quick) == (True, False)
    mark.ask(3.0)
    assert not mark.is_due(2.9 + PAUSE_TIMES)
    assert mark.next_look(3.0) == 3.0 + PAUSE_TIMES
    assert mark.is_due(3.0 + PAUSE_TIMES)
    look(mark, 3.5, None)
    assert not mark.is_due(3.9)
    assert mark.next_look(3.5) == 4.0
    mark.ask(3.5, at_once=True)
    assert mark.is_due(3.5)


def test_the_mark_goes_back_to_what_is_found_below_it() -> None:
    """And on from there: also where numbers began anew, as after a restore."""
    mark = LowWater()
    look(mark, 0.0, 5 * REACH)
    look_below(mark, 1.0, lowest=8)
    assert mark.low(1.0) == 7
    mark.ask(1.0)
    mark.looked_below(1.0, 1)
    assert (mark.low(1.0), mark.next_look(1.0)) == (0, math.inf)
    look(mark, 1.0, 9)
    assert mark.low(1.1 + TRAIL_SECONDS) == 9


@pytest.mark.parametrize("seed", range(300))
def test_whatever_is_committed_is_found_by_the_looks_that_follow(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However late, and whatever is rolled back or under way beside; without the look that is made all the same."""
    monkeypatch.setattr("outbox.core.low_water.LOOK_BELOW_SECONDS", math.inf)
    monkeypatch.setattr("outbox.core.low_water.REACH", 20)
    dice = random.Random(seed)  # noqa: S311 - a game
    mark, now, seq, ids = LowWater(), 0.0, 0, 0
    under_way: dict[int, list[int]] = {}
    visible: set[int] = set()
    for step in range(400):
        now += dice.choice((0.001, 0.01, 0.1, 0.4))
        if step < 350 and dice.random() < 0.6:
            ids += 1
            under_way[ids] = []
        for transaction in list(under_way):
            for _ in range(dice.choice((0, 0, 1, 5)) if step < 350 else 0):
                seq += 1
                under_way[transaction].append(seq)
            if dice.random() < (0.5 if transaction % 7 else 0.03) or step == 350:
                captured = under_way.pop(transaction)
                visible |= set(captured) if dice.random() < 0.8 else set()
        if step >= 350 or dice.random() < 0.5:
            if mark.is_due(now):
                low = mark.begin_look_below(now)
                mark.looked_below(now, min((each for each in visible if each <= low), default=None))
            low = mark.low(now)
            taken = sorted(each for each in visible if each > low)[: dice.choice((1, 5, 100) if step < 350 else (100,))]
            visible -= set(taken)
            to_the_end = not any(each > max(taken, default=low) for each in visible)
            # Whoever began last may be beyond the end of the snapshot.
            listed = frozenset(each for each in under_way if each < ids or dice.random() < 0.5)
            snapshot = Snapshot(ids + (ids in listed or ids not in under_way), listed)
            mark.looked(now, max(taken, default=None), snapshot, low=low, to_the_end=to_the_end)
            if dice.random() < 0.3:
                mark.missing(now, dice.randrange(seq + 1))
    assert not visible


@pytest.mark.parametrize("seed", range(100))
def test_who_is_to_look_below_may(seed: int) -> None:
    """Else whoever waits until then would turn without end."""
    dice = random.Random(seed)  # noqa: S311 - a game
    mark, now = LowWater(), 0.0
    for _ in range(300):
        now += dice.choice((0.0, 0.001, 0.1, 0.7))
        match dice.randrange(6):
            case 0:
                look(mark, now, dice.choice((None, dice.randrange(1, 50_000))), dice.randrange(5))
            case 1:
                mark.missing(now, dice.choice((-1, 0, 7, 40_000)))
            case 2:
                mark.ask(now, soon=dice.random() < 0.5)
            case 3:
                mark.rang()
            case 4:
                look_below(mark, now, seconds=dice.choice((0.0, 0.1)), lowest=dice.choice((None, 1, 5)))
            case _:
                mark.begin_look_below(now)
                mark.ask(now, at_once=True)
        assert mark.next_look(now) > now or mark.is_due(now)


def test_a_look_without_an_answer_is_made_again() -> None:
    """Nobody knows what it would have found."""
    mark = passed(LATE)
    mark.begin_look_below(1.0)
    mark.ask(1.0, at_once=True)
    assert mark.is_due(1.0)


def test_the_mark_does_not_rise_over_what_a_look_has_left() -> None:
    """An older one came to what is above it; this one may take no more, and what it leaves is not seen by it."""
    mark = LowWater()
    mark.looked(0.0, 5000, Snapshot(1000, frozenset({LATE})), low=0, to_the_end=True)
    mark.looked(0.1, 500, NOBODY, low=0, to_the_end=False)
    assert mark.low(5.0) == 500


def test_a_look_that_began_above_the_mark_does_not_raise_it() -> None:
    """The mark went back while it was under way, to what was committed late."""
    mark = passed(LATE)
    low = mark.low(1.0)
    look_below(mark, 1.0, lowest=3)
    mark.looked(1.0, 50, NOBODY, low=low, to_the_end=True)
    assert mark.low(5.0) == 2
