"""How many captured changes a look routes."""

import pytest

from outbox.core import stride
from outbox.core.stride import DELIVERIES_AT_ONCE, FIRST_ROWS, FanOut, Stride

PAUSE = 0.1


def known(of_a_row: int) -> Stride:
    """Return one that knows how many deliveries a change makes."""
    found = Stride()
    found.fan_out.note(1, of_a_row)
    return found


def test_few_are_routed_while_nobody_knows_how_many_configs_want_each() -> None:
    """One change could make a thousand deliveries."""
    assert FanOut().rows(3000) == FIRST_ROWS
    assert FanOut().rows(3) == 3
    assert Stride().next(0.0, 3000, ahead=500, pause=PAUSE) == FIRST_ROWS


def test_what_a_change_makes_rises_at_once_and_falls_with_the_rows() -> None:
    """A route that makes too much keeps all others waiting, one that makes too little nobody.

    Some single changes, which come one by one, say nothing of the next batch.
    """
    fan_out = FanOut()
    fan_out.note(10, 10)
    assert fan_out.rows(3000) == 3000
    fan_out.note(1, 100)
    assert fan_out.rows(3000) == 30
    fan_out.note(0, 0)
    assert fan_out.rows(3000) == 30
    for _ in range(10):
        fan_out.note(1, 1)
    assert fan_out.rows(3000) < 40
    fan_out.note(stride.FORGOTTEN_ROWS, stride.FORGOTTEN_ROWS)
    assert fan_out.rows(3000) == 3000


def test_a_part_of_a_row_is_a_row() -> None:
    """Else a change that very many want would never be routed."""
    fan_out = FanOut()
    fan_out.note(1, 10_000)
    assert fan_out.rows(1) == 1


def test_in_each_pause_so_many_are_routed_at_least() -> None:
    """Beyond what can be leased, what was routed meanwhile counts."""
    looks = known(1)
    assert looks.next(0.0, 100, ahead=500, pause=PAUSE) == 500
    looks.routed(500, leased=100)
    assert looks.next(0.05, 100, ahead=500, pause=PAUSE) == 100
    looks.routed(100, leased=100)
    assert looks.next(0.11, 100, ahead=500, pause=PAUSE) == 300
    looks.routed(300, leased=100)
    assert looks.next(0.12, 2000, ahead=500, pause=PAUSE) == 2000
    looks.routed(2000, leased=2000)
    assert looks.next(0.22, 100, ahead=500, pause=PAUSE) == 100


def test_what_is_leased_counts_as_much_as_what_is_routed() -> None:
    """Where those who want each change take what is made, none has to be routed ahead of them."""
    looks = known(100)
    looks.next(0.0, 10, ahead=0, pause=PAUSE)
    looks.routed(10, leased=600)
    assert looks.next(0.11, 10, ahead=500, pause=PAUSE) == 10


@pytest.mark.parametrize(("seconds", "brings"), [(0.3, 1000), (0.02, 1)], ids=["slow and cut", "a trickle"])
def test_what_was_not_there_is_not_made_up_for(seconds: float, brings: int) -> None:
    """Neither what a look that took longer than the pause left, nor what nobody had captured."""
    looks, now = known(100), 0.0
    for _ in range(1000):
        looks.routed(min(brings, looks.next(now, 1, ahead=500, pause=PAUSE)))
        now += seconds
    looks.fan_out.note(stride.FORGOTTEN_ROWS, stride.FORGOTTEN_ROWS)
    assert looks.next(now + PAUSE, 1, ahead=500, pause=PAUSE) <= 500


def test_a_look_that_is_cut_short_is_followed_by_the_rest() -> None:
    """All that is to be routed ahead is, and then the pause begins."""
    looks = known(100)
    at_once = DELIVERIES_AT_ONCE // 100
    given: list[int] = []
    while not given or looks.is_cut:
        given.append(looks.next(0.0, 10, ahead=500, pause=PAUSE))
        looks.routed(given[-1])
    assert set(given[:-1]) == {at_once}
    assert sum(given) == 500 + 10 * (len(given) - 1)
    assert looks.next(0.05, 10, ahead=500, pause=PAUSE) == 10


def test_one_that_took_long_is_followed_by_half_as_much_and_one_that_did_not_by_twice() -> None:
    """But only where that had kept it short: a short one of little says nothing. In between it is somewhat more."""
    looks = known(1)
    asked = looks.at_once(2000)
    looks.took(stride.LONG_SECONDS + 0.1)
    assert looks.at_once(2000) == asked // 2
    looks.took(stride.SHORT_SECONDS + 0.1)
    assert looks.at_once(10) == 10
    looks.took(0.0)
    assert looks.at_once(2000) == asked // 2 + asked // 16
    looks.took(0.0)
    assert looks.at_once(2000) == asked


def test_a_slow_database_does_not_keep_it_at_one_row() -> None:
    """One row can not be halved, and what takes neither long nor short is tried with more."""
    looks = known(1)
    for asked in (2, 1):
        looks.at_once(asked)
        looks.took(stride.LONG_SECONDS + 0.1)
    for _ in range(100):
        asked = looks.at_once(2000)
        looks.took(stride.LONG_SECONDS)
    assert asked == 2000


@pytest.mark.parametrize("asked", [1, 5, 2000])
def test_one_without_an_answer_is_followed_by_an_eighth(asked: int) -> None:
    """At least one row."""
    looks = known(1)
    looks.at_once(asked)
    looks.had_no_answer()
    assert looks.at_once(2000) == max(1, asked // stride.WITHOUT_ANSWER)


def test_what_nobody_wanted_is_followed_at_once() -> None:
    """Perhaps somebody wants what is behind it."""
    looks = known(1)
    looks.next(0.0, 1, ahead=500, pause=PAUSE)
    looks.routed(500)
    looks.found_nothing()
    assert looks.next(0.01, 1, ahead=500, pause=PAUSE) == 500
