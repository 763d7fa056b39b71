"""Marks: where a look need not begin at the beginning."""

import datetime as dt
from uuid import UUID

import pytest

from outbox.core.marks import LAG, LIFE, MISSING_SECONDS, Marks

AT = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
TRAILING = AT - dt.timedelta(seconds=LAG)
EARLY = AT - dt.timedelta(hours=1)
NONE, ONE, TWO, THREE = (UUID(int=n) for n in range(4))


def claimed(marks: Marks, config_ids: list[UUID], *, after: UUID = NONE, to_the_last: bool = True) -> None:
    """Note a claim that had room for two of each config, and came to what was due early."""
    marks.claimed(
        config_ids,
        dict.fromkeys(config_ids, EARLY),
        after=after,
        rooms={ONE: 2, TWO: 2, THREE: 2},
        room=2,
        to_the_last=to_the_last,
        latest=marks.latest,
    )


def test_a_mark_is_what_a_config_came_to_or_the_moment_if_it_has_no_more() -> None:
    """Who got all of his room has nothing before the last of it; who got less, or nothing, has nothing due at all."""
    marks = Marks()
    marks.routed(0.0, at=AT, top=None)
    claimed(marks, [ONE, ONE, TWO])
    assert marks.since == {ONE: EARLY, TWO: TRAILING, THREE: TRAILING}


def test_who_was_not_looked_at_gets_no_mark() -> None:
    """A claim looks behind the cursor only, and as far as its slots reach."""
    marks = Marks()
    marks.routed(0.0, at=AT, top=None)
    claimed(marks, [TWO], after=ONE, to_the_last=False)
    assert marks.since == {TWO: EARLY}


def test_marks_trail_and_are_forgotten() -> None:
    """What commits a little later than its seq is not passed over, and nothing is for longer than the marks live."""
    marks = Marks()
    assert marks.low(10.0) == 0
    marks.routed(10.0, at=AT, top=7)
    assert marks.low(10.0 + LAG) == 0
    assert marks.low(10.1 + LAG) == 7
    claimed(marks, [ONE])
    assert marks
    assert marks.low(10.0 + LIFE) == 0
    assert not marks


def test_the_low_mark_does_not_pass_what_is_missing_until_it_may_be_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its transaction may commit long after others whose numbers are higher."""
    monkeypatch.setattr("outbox.core.marks.LIFE", 3600.0)
    marks = Marks()
    marks.low(0.0)  # the first look forgets
    marks.routed(0.0, at=AT, top=10)
    marks.missing(0.1, 10)
    marks.routed(0.1, at=AT, top=12)
    assert marks.low(LAG + 0.3) == 10
    marks.missing(1.0, 12)
    marks.routed(1.0, at=AT, top=15)
    assert marks.low(MISSING_SECONDS + 0.2) == 12
    assert marks.low(MISSING_SECONDS + 1.1) == 15
