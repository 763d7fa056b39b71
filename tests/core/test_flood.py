"""Whose flood it is, and how much of it to route."""

from collections.abc import Mapping
from uuid import UUID

import pytest

from outbox.core import flood

A, B, C = (UUID(int=number) for number in (1, 2, 3))
SLOW = [UUID(int=number) for number in range(100, 199)]


def whose(
    found: Mapping[UUID, int], *, rows: int = 100, says_little: bool = False, before: flood.Shares | None = None
) -> flood.Shares:
    """Return whose flood it is; A has room for 50, any other for 10."""
    created = sum(found.values())
    return flood.whose(
        found, rows=rows, created=created, says_little=says_little, before=before or {}, rooms={A: 50}, room=10
    )


def test_it_is_of_those_that_had_much_and_no_room_for_all_of_it() -> None:
    """With the part of the changes that each wants."""
    assert whose({A: 100, B: 60}) == {A: 1.0, B: 0.6}
    assert whose({A: 100, B: 20}) == {A: 1.0}  # B wants little
    assert whose({A: 80, B: 9}) == {A: 0.8}


def test_whoever_has_room_for_all_of_it_is_none() -> None:
    """Unless he is of the flood before: what he had room for is what he did meanwhile."""
    assert whose({A: 49}) == {}
    assert whose({A: 49}, before={A: 1.0}) == {A: 0.49}
    assert whose({A: 20}, before={A: 1.0}) == {}


def test_where_a_quarter_is_for_others_it_is_none() -> None:
    """To pass it by would take longer than to route it."""
    others = {UUID(int=number): 5 for number in range(1000, 1005)}
    assert whose({A: 100} | others) == {A: 1.0}
    assert whose({A: 60} | others) == {}


def test_a_look_that_says_little_adds_nobody() -> None:
    """And leaves those who were in it."""
    assert whose({A: 2, C: 3}, rows=5, says_little=True) == {}
    assert whose({A: 2, C: 3}, rows=5, says_little=True, before={A: 0.7, B: 0.3}) == {A: 0.7}


@pytest.mark.parametrize(
    ("shares", "rooms", "rows"),
    [
        ({A: 1.0}, {A: 120}, 120),
        ({A: 1.0}, {}, 1),
        ({A: 1.0}, {A: 5000}, 1000),
        ({A: 0.5, B: 0.5}, {A: 60, B: 60}, 120),  # each wants every second one
        ({A: 1.0, B: 1.0}, {A: 60, B: 60}, 60),  # both want each
        ({A: 1.0, B: 1.0}, {A: 900, B: 900}, 500),  # as many as there are slots
        ({A: 1.0, B: 1.0, C: 1.0}, {A: 100, B: 30, C: 1}, 100),
    ],
)
def test_so_much_is_routed_as_those_take_that_have_room(
    shares: flood.Shares, rooms: Mapping[UUID, int], rows: int
) -> None:
    """With 1,000 slots."""
    assert flood.rows_wanted(shares, slots=1000, rooms=rooms) == rows


def test_the_slow_ones_do_not_hold_back_the_quick_one_that_wants_the_same() -> None:
    """Nor do they count for the slots, of which they take next to none."""
    shares = dict.fromkeys([A, *SLOW], 1.0)
    assert flood.rows_wanted(shares, slots=1000, rooms=dict.fromkeys(SLOW, 1) | {A: 400}) == 400


def test_where_there_are_no_slots_the_flood_goes_on() -> None:
    """One by one."""
    assert flood.rows_wanted({A: 1.0}, slots=0, rooms={A: 10}) == 1
