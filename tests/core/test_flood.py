"""Whose flood it is, and how much of it to route."""

from collections.abc import Collection, Mapping

import pytest

from outbox.core.flood import ENOUGH_ROWS, MANY_ROWS, Flood
from outbox.core.model import ConfigId
from tests.ids import config_id

A, B, C, D = (config_id(number) for number in (1, 2, 3, 4))
MANY = [config_id(number) for number in range(100, 199)]
SLOTS = 1000


def looked(flood: Flood, found: Mapping[ConfigId, int], *, rows: int = 100, slots: int = SLOTS) -> Collection[ConfigId]:
    """Note a look, in which A had room for 50, any other for 10; return whose flood it is then."""
    created = sum(found.values())
    flood.looked(found, rows=rows, created=created, slots=slots, rooms={A: 50}, room=10, enough=100)
    return set(flood.configs)


def of(shares: Mapping[ConfigId, float]) -> Flood:
    """Return a flood of which each wants that part."""
    flood = Flood()
    found = {config_id: round(1000 * share) for config_id, share in shares.items()}
    flood.looked(found, rows=1000, created=sum(found.values()), slots=SLOTS, rooms={}, room=1, enough=100)
    assert set(flood.configs) == shares.keys()
    return flood


def test_it_is_of_those_that_had_much_and_no_room_for_all_of_it() -> None:
    """Whoever wants little of it is passed by."""
    assert looked(Flood(), {A: 100, B: 60}) == {A, B}
    assert looked(Flood(), {A: 100, B: 20}) == {A}


def test_whoever_has_room_for_all_of_it_is_none() -> None:
    """Unless he is of the flood before: what he had room for is what he did meanwhile."""
    rows = {"rows": 200}
    assert looked(Flood(), {A: 49, C: 1, B: 9, D: 41}, **rows) == set()
    assert looked(of({A: 1.0}), {A: 60, C: 9, B: 9, D: 9}, **rows) == {A}
    assert looked(of({A: 1.0}), {A: 20, B: 90}, **rows) == {B}


def test_where_a_quarter_is_for_others_it_is_none() -> None:
    """To pass it by would take longer than to route it."""
    others = dict.fromkeys(MANY[:5], 5)
    assert looked(Flood(), {A: 100} | others) == {A}
    assert looked(Flood(), {A: 60} | others | dict.fromkeys(MANY[5:10], 5)) == set()


def test_where_all_that_could_be_leased_was_it_is_of_those_that_had_much() -> None:
    """Of many that want each change few rows fill the slots, fewer than each of them had room for."""
    flood = Flood()
    while not flood.configs:
        looked(flood, dict.fromkeys(MANY, 6), rows=6, slots=590)
    assert set(flood.configs) == set(MANY)


def test_looks_of_few_rows_are_judged_together() -> None:
    """Of two kinds in one flood a look of one row brings but one; that adds nobody, and drops nobody."""
    flood = of({A: 1.0})
    for number in range(ENOUGH_ROWS - 1):
        config_id = (B, C)[number % 2]
        assert looked(flood, dict.fromkeys((config_id, *MANY), 1), rows=1, slots=1) == {A}
    assert looked(flood, {B: 1, C: 1} | dict.fromkeys(MANY, 2), rows=2, slots=1) == {B, C, *MANY}


def test_it_is_over_where_nobody_wants_what_comes() -> None:
    """So all of that is routed at once."""
    flood = of({A: 1.0})
    for _ in range(MANY_ROWS // 100):
        looked(flood, {})
    assert not flood.configs


def test_it_is_over_when_nothing_is_left() -> None:
    """And so is what was seen of the next one."""
    flood = of({A: 1.0})
    looked(flood, {B: 90}, rows=90)
    flood.over()
    assert not flood.configs
    assert looked(flood, {C: 10, A: 90}) == {A}


@pytest.mark.parametrize(
    ("shares", "rooms", "rows"),
    [
        ({A: 1.0}, {A: 120}, 120),
        ({A: 1.0}, {}, 1),
        ({A: 1.0}, {A: 5000}, SLOTS),
        ({A: 0.5, B: 0.5}, {A: 60, B: 60}, 120),  # each wants every second one
        ({A: 1.0, B: 1.0}, {A: 60, B: 60}, 60),  # both want each
        ({A: 1.0, B: 1.0}, {A: 900, B: 900}, SLOTS // 2),  # as many as there are slots
        ({A: 1.0, B: 1.0, C: 1.0}, {A: 100, B: 30, C: 1}, 100),
    ],
)
def test_so_much_is_routed_as_those_take_that_have_room(
    shares: Mapping[ConfigId, float], rooms: Mapping[ConfigId, int], rows: int
) -> None:
    """By what part of it each wants."""
    assert of(shares).rows_wanted(slots=SLOTS, rooms=rooms) == rows


def test_the_slow_ones_do_not_hold_back_the_quick_one_that_wants_the_same() -> None:
    """Nor do they count for the slots, of which they take next to none."""
    flood = of(dict.fromkeys([A, *MANY], 1.0))
    assert flood.rows_wanted(slots=SLOTS, rooms=dict.fromkeys(MANY, 1) | {A: 400}) == 400


def test_where_there_are_no_slots_the_flood_goes_on() -> None:
    """One by one."""
    assert of({A: 1.0}).rows_wanted(slots=0, rooms={A: 10}) == 1
