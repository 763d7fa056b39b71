"""The low-water mark: where a look at the outbox need not begin at the beginning, and what it hides."""

import math
import random

import pytest

from outbox.core.low_water import (
    LOOK_BELOW_SECONDS,
    MANY_UNSEEN,
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
    mark.keep_order(0.0, wanted=True)
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
    look(mark, 10.0, None)
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
    look(mark, 1.1, None)
    assert mark.low(MISSING_SECONDS + 0.2) == 12
    assert mark.low(MISSING_SECONDS + 1.1) == 15


def test_the_mark_does_not_trail_by_more_than_a_look_can_read() -> None:
    """A transaction that captures very much takes all numbers in between, and each look would read through them."""
    mark = LowWater()
    for number in range(10):
        now, top = number / 100, 10 + number * REACH // 2
        mark.missing(now, top - 1)
        look(mark, now, top)
    assert mark.low(0.1) == 10 + 7 * REACH // 2


def test_the_mark_soon_passes_what_took_very_many_numbers() -> None:
    """Else each look of the next half second would read through what a large transaction captures."""
    mark = LowWater()
    look(mark, 0.0, 10)
    look(mark, 0.01, 10 + 5 * REACH, LATE)
    look(mark, 0.02, 11 + 5 * REACH, LATE)
    assert mark.low(0.02) == 10 + 4 * REACH
    look(mark, 0.03, None)
    assert mark.is_due(0.03)


def test_the_mark_does_not_rise_by_the_look_that_came_there() -> None:
    """Its snapshot ends behind the last transaction that was done: it does not list who began after that."""
    mark = LowWater()
    mark.keep_order(0.0, wanted=True)
    look(mark, 0.0, 7)
    assert mark.low(2 * TRAIL_SECONDS) == 0
    look(mark, 1.0, None, LATE)
    assert mark.hidden(1.0) == (7, frozenset())
    mark = LowWater()
    mark.keep_order(0.0, wanted=True)
    mark.looked(0.0, 7, Snapshot(LATE, frozenset()), low=0, to_the_end=True)
    mark.looked(1.0, None, Snapshot(LATE + 1, frozenset({LATE})), low=0, to_the_end=True)
    assert mark.hidden(1.0) == (7, frozenset({LATE}))


def test_a_look_below_that_was_asked_for_is_made_when_no_missing_number_keeps_the_mark_down() -> None:
    """Where the mark is without it is what would be hidden."""
    mark = passed(LATE)
    mark.missing(1.0, -1)
    mark.ask(1.0, at_once=True)
    assert not mark.is_due(1.1)
    assert mark.is_due(1.0 + MISSING_SECONDS)


def test_where_many_numbers_were_not_seen_a_look_below_may_take_long() -> None:
    """Until one was made and took no time."""
    mark = LowWater()
    look(mark, 0.0, 10)
    mark.looked(0.1, 10 + MANY_UNSEEN, NOBODY, low=0, to_the_end=True, rows=MANY_UNSEEN)
    was_quick = [mark.is_quick]
    look(mark, 0.2, 12 + 2 * MANY_UNSEEN)
    was_quick.append(mark.is_quick)
    look_below(mark, 1.0)
    assert [*was_quick, mark.is_quick] == [True, False, True]


def test_what_is_hidden_is_known_only_where_nothing_below_is_to_be_looked_for() -> None:
    """It is for those who must not go before what may be there."""
    mark = passed(LATE)
    assert mark.hidden(1.0) == (7, frozenset({LATE}))
    mark.begin_look_below(1.0)
    assert mark.hidden(1.0) == (0, frozenset())
    mark.looked_below(1.0, None)
    assert mark.hidden(1.0) == (7, frozenset({LATE}))
    look(mark, 1.1, None)
    assert mark.hidden(1.1) == (0, frozenset())


def test_nothing_is_known_to_be_hidden_where_looks_did_not_tell_what_they_left() -> None:
    """Until one was made below the mark; what they came to above it is forgotten."""
    mark = LowWater()
    look(mark, 0.0, 7)
    look(mark, 0.1, 9)
    assert mark.low(TRAIL_SECONDS) == 7
    assert mark.hidden(TRAIL_SECONDS) == (0, frozenset())
    mark.keep_order(TRAIL_SECONDS, wanted=True)
    assert mark.hidden(1.0) == (0, frozenset())
    assert mark.is_due(1.0)
    look_below(mark, 1.0)
    look(mark, 1.1, None)
    assert mark.hidden(5.0) == (7, frozenset())


def test_a_look_below_goes_up_to_where_the_mark_is_when_a_missing_number_is_given_up() -> None:
    """Nobody may look in between before that is done."""
    mark = LowWater()
    look(mark, 0.0, 10)
    mark.missing(0.1, 10)
    look(mark, 0.1, 12)
    look(mark, 0.2, None)
    assert mark.low(0.2 + TRAIL_SECONDS) == 10
    assert mark.begin_look_below(1.0) == 12


def test_the_mark_does_not_pass_what_another_daemon_is_routing() -> None:
    """That may die, and what was captured is there again, without a transaction that is known to be over."""
    mark = LowWater()
    look(mark, 0.0, 7)
    mark.looked(0.1, 12, NOBODY, low=0, to_the_end=True, left_to_others=6)
    look(mark, 0.2, None)
    assert mark.low(TRAIL_SECONDS + 0.3) == 5
    mark.looked(1.0, None, NOBODY, low=5, to_the_end=True, rows=0, left_to_others=6)
    assert mark.low(TRAIL_SECONDS + 1.1) == 5
    look(mark, 2.0, 15)
    look(mark, 2.1, None)
    assert mark.low(TRAIL_SECONDS + 2.2) == 15


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
    look(mark, 0.0, None)
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
    look(mark, 5.0, None)
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
    look(mark, 1.1, None)
    assert mark.low(1.1 + TRAIL_SECONDS) == 9


class History:
    """A random one: who captures, commits or is rolled back, what other daemons route, and the looks of one of them."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)  # noqa: S311 - a game
        self.mark = LowWater()
        self.now = 0.0
        self.seq = self.ids = 0
        self.captured: dict[int, list[int]] = {}
        """By each transaction that is under way."""
        self.visible: set[int] = set()
        self.others: dict[int, set[int]] = {}
        """What other daemons are routing, by their transactions."""
        self.completed = 0
        """The highest transaction that is over."""
        self.ends = False

    @property
    def under_way(self) -> set[int]:
        """The transactions that are."""
        return {*self.captured, *self.others}

    @property
    def held(self) -> set[int]:
        """What nobody else can take."""
        return set().union(*self.others.values())

    def capture(self) -> None:
        """Have some captured, committed and rolled back."""
        if not self.ends and self.dice.random() < 0.6:
            self.ids += 1
            self.captured[self.ids] = []
        for transaction in list(self.captured):
            for _ in range(0 if self.ends else self.dice.choice((0, 0, 1, 5))):
                self.seq += 1
                self.captured[transaction].append(self.seq)
            if self.ends or self.dice.random() < (0.5 if transaction % 7 else 0.03):
                captured = self.captured.pop(transaction)
                self._complete(transaction)
                self.visible |= set(captured) if self.dice.random() < 0.8 else set()

    def let_others_route(self) -> None:
        """Have them begin, and end or die."""
        if not self.ends and self.dice.random() < 0.2 and (free := sorted(self.visible - self.held)):
            self.ids += 1
            self.others[self.ids] = set(free[: self.dice.choice((1, 20))])
        for daemon in list(self.others):
            if self.ends or self.dice.random() < 0.3:
                routed = self.others.pop(daemon)
                self._complete(daemon)
                self.visible -= routed if self.dice.random() < 0.7 else set()

    def look_below(self) -> None:
        """Look for what the mark hides."""
        low = self.mark.begin_look_below(self.now)
        self.mark.looked_below(self.now, min((each for each in self.visible if each <= low), default=None))

    def look(self) -> None:
        """Route what is above the mark."""
        low, limit = self.mark.low(self.now), 100 if self.ends else self.dice.choice((1, 5, 100))
        taken = sorted(each for each in self.visible - self.held if each > low)[:limit]
        to_the_end = len(taken) < limit
        seen = {each for each in self.visible if each > low and (to_the_end or each <= max(taken))}
        self.visible -= set(taken)
        began, snapshot = self.now, self._snapshot()
        if self.dice.random() < 0.2:  # it takes a while
            self.now += 0.6
            self.capture()
        self.mark.looked(
            began, max(taken, default=None), snapshot, low=low, to_the_end=to_the_end, rows=len(taken),
            left_to_others=min(seen - set(taken), default=None) if self.mark.keeps_order else None,
        )  # fmt: skip
        if taken:
            self.ids += 1
            self._complete(self.ids)
        if self.dice.random() < 0.3:
            self.mark.missing(self.now, self.dice.randrange(self.seq + 1))

    def _snapshot(self) -> Snapshot:
        """Return one as PostgreSQL's are: it ends behind the last transaction that was completed."""
        listed = frozenset(each for each in self.under_way if each <= self.completed)
        return Snapshot(self.completed + 1, listed)

    def _complete(self, transaction: int) -> None:
        self.completed = max(self.completed, transaction)


@pytest.mark.parametrize("seed", range(300))
def test_whatever_is_committed_is_found_by_the_looks_that_follow(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However late, and whatever is rolled back or under way beside; without the look that is made all the same.

    Nor is anything hidden while all are under way whom the mark has passed.
    """
    monkeypatch.setattr("outbox.core.low_water.LOOK_BELOW_SECONDS", math.inf)
    monkeypatch.setattr("outbox.core.low_water.REACH", 20)
    history = History(seed)
    for step in range(400):
        history.ends = step >= 350
        history.now += history.dice.choice((0.001, 0.01, 0.1, 0.4, 3.0))
        history.capture()
        history.let_others_route()
        if history.dice.random() < 0.05:
            history.mark.keep_order(history.now, wanted=history.dice.random() < 0.8)
        low, passed_ = history.mark.hidden(history.now)
        assert not (passed_ <= history.under_way and any(each <= low for each in history.visible))
        if history.ends or history.dice.random() < 0.5:
            if history.mark.is_due(history.now):
                history.look_below()
            if history.ends or history.dice.random() < 0.9:  # else time passes before it
                history.look()
    assert not history.visible


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
    look(mark, 0.2, None)
    assert mark.low(5.0) == 500


def test_a_look_that_began_above_the_mark_does_not_raise_it() -> None:
    """The mark went back while it was under way, to what was committed late."""
    mark = passed(LATE)
    low = mark.low(1.0)
    look_below(mark, 1.0, lowest=3)
    mark.looked(1.0, 50, NOBODY, low=low, to_the_end=True)
    assert mark.low(5.0) == 2
