"""Bypass: what comes last behind a flood waits for no look at what is in between, and none of that is forgotten."""

import itertools

import pytest

from outbox.core.bypass import AGAIN_SECONDS, AGAIN_TIMES, PAUSE, SCAN, SCAN_BESIDE, TO_THE_END, Bypass, Stretch

MANY = 50 * SCAN
"""The last seq of a long outbox."""


class Walk:
    """Looks behind a flood that stands at 100, each as soon as it may be made."""

    def __init__(self, last: int) -> None:
        self.bypass = Bypass()
        self.bypass.stands_at(100)
        self.last = last
        self.now = 0.0

    def look(self, *, rows: int = 0, seconds: float = 0.01) -> Stretch:
        """Make a look of so many seconds that finds so many rows for others; return the stretch."""
        began = self.now = max(self.now, self.bypass.next_look)
        stretch = self.bypass.next(began)
        end = min(stretch.high, self.last)
        to_the_end = end - stretch.low < stretch.scan
        came_to = end if to_the_end else stretch.low + stretch.scan
        self.now += seconds
        self.bypass.looked(stretch, began=began, now=self.now, came_to=came_to, rows=rows, to_the_end=to_the_end)
        if self.bypass.is_long(stretch, rows=rows, to_the_end=to_the_end):
            self.bypass.go_on_near(self.last)
        return stretch

    def left(self, looks: int) -> list[int]:
        """Make so many looks; return where those began that were at what had been left."""
        return [each.low for each in [self.look() for _ in range(looks)] if not each.is_new]


def test_a_short_flood_is_passed_in_the_order_of_capture() -> None:
    """Up to the end, and on from there, after a pause that ends sooner where something is found."""
    walk = Walk(2 * SCAN)
    assert walk.look() == Stretch(100, TO_THE_END, SCAN)
    assert walk.bypass.next_look == walk.now
    assert walk.look() == Stretch(100 + SCAN, TO_THE_END, SCAN)
    assert walk.bypass.next_look == pytest.approx(walk.now + PAUSE[0])
    assert walk.look().low == 2 * SCAN
    assert walk.bypass.next_look == pytest.approx(walk.now + 3 * PAUSE[0])
    assert walk.look(rows=1).low == 2 * SCAN
    assert walk.bypass.next_look == pytest.approx(walk.now + PAUSE[0])


def test_of_a_long_one_the_end_is_looked_at_first_and_the_rest_beside() -> None:
    """All of the rest, once; and what is new waits for no more than one look at a part of it."""
    walk = Walk(MANY)
    ends, looks = zip(*[(walk.look(), walk.now)[::-1] for _ in range(250)], strict=True)
    assert looks[0].low == 100
    assert all(each.low >= MANY - SCAN for each in looks[1:] if each.is_new)
    new = [end for end, each in zip(ends, looks, strict=True) if each.is_new]
    assert max(later - earlier for earlier, later in itertools.pairwise(new)) < PAUSE[1] + 3 * 0.01
    assert [each.low for each in looks if not each.is_new] == list(range(100 + SCAN, MANY - SCAN, SCAN_BESIDE))


@pytest.mark.parametrize("rows", [SCAN // 50, SCAN])
def test_where_there_is_much_for_others_all_goes_in_the_order_of_capture(rows: int) -> None:
    """Nothing that comes later is looked at first."""
    walk = Walk(MANY)
    assert [walk.look(rows=rows).low for _ in range(4)] == [100 + number * SCAN for number in range(4)]


def test_where_much_for_others_is_found_in_between_one_goes_on_from_there() -> None:
    """It begins with what is for one and goes on with what is for all."""
    walk = Walk(MANY)
    lows = [walk.look().low for _ in range(3)]
    assert lows == [100, MANY - SCAN, MANY]
    assert walk.look(rows=SCAN_BESIDE // 10).low == 100 + SCAN
    lows = [walk.look(rows=SCAN // 10).low for _ in range(4)]
    assert lows == [100 + SCAN + SCAN_BESIDE + number * SCAN for number in range(4)]


def test_what_another_batch_puts_behind_a_flood_is_passed_as_well() -> None:
    """It would be looked through in the order of capture else."""
    walk = Walk(SCAN)
    assert walk.look().low == 100
    walk.last = MANY
    assert [walk.look().low for _ in range(3)] == [SCAN, MANY - SCAN, MANY]
    assert walk.left(1) == [2 * SCAN]


def test_a_flood_is_looked_through_again_beside_what_is_new() -> None:
    """From where it stands then, and after a time that grows with the time that it takes."""
    walk = Walk(SCAN)
    walk.look()
    again = walk.now + AGAIN_SECONDS
    walk.bypass.stands_at(200)
    while walk.bypass.next_look < again:
        assert walk.look().is_new
    while walk.look(seconds=2.0).is_new:
        assert walk.now < again + 10.0
    while (stretch := walk.look(seconds=2.0)).is_new or stretch.low < SCAN - SCAN_BESIDE:
        assert walk.now < again + 60.0
    again = walk.now + AGAIN_TIMES * (SCAN // SCAN_BESIDE) * 2.0
    while walk.bypass.next_look < again:
        assert walk.look().is_new
    assert walk.left(3)


def test_a_flood_that_begins_lower_than_was_known_is_looked_through_from_there() -> None:
    """As when it was committed after others had been routed whose numbers are higher."""
    walk = Walk(SCAN)
    walk.look()
    walk.bypass.stands_at(50)
    assert walk.look() == Stretch(50, 100, SCAN_BESIDE)


def test_a_look_that_a_flood_has_moved_under_is_not_what_is_known_of_it() -> None:
    """What was committed late, below what is being looked at, is looked at next."""
    walk = Walk(MANY)
    walk.left(3)
    stretch = walk.bypass.next(walk.bypass.next_look)
    assert not stretch.is_new
    walk.bypass.stands_at(50)
    now = walk.now
    walk.bypass.looked(stretch, began=now, now=now, came_to=stretch.low + SCAN_BESIDE, rows=0, to_the_end=False)
    assert walk.left(3)[0] == 50


def test_what_was_routed_of_a_flood_is_not_looked_at() -> None:
    """It stands further on than what was looked through."""
    walk = Walk(MANY)
    walk.left(3)
    walk.bypass.stands_at(10 * SCAN)
    assert walk.left(2)[0] == 10 * SCAN
    walk.bypass.stands_at(MANY + 7)
    walk.last = MANY + 7
    assert [walk.look() for _ in range(3)] == [Stretch(MANY + 7, TO_THE_END, SCAN)] * 3


def test_a_look_that_is_cut_short_is_taken_for_as_dense_as_it_was() -> None:
    """Neither for next to nothing because it found few, nor for much: one would go on in the order of capture."""
    stretch = Stretch(100, TO_THE_END, SCAN)
    assert stretch.as_dense(50, came_to=150) == SCAN
    assert stretch.as_dense(50, came_to=100 + 150 * 50) == SCAN // 150
    assert stretch.as_dense(50, came_to=100 + 2 * SCAN) == 50
    assert stretch.as_dense(1, came_to=100) == SCAN
