"""Marks: where a look need not begin at the beginning."""

import datetime as dt

from outbox.core.marks import LAG, LIFE, Marks
from outbox.core.model import ConfigId
from tests.ids import config_id

AT = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
TRAILING = AT - dt.timedelta(seconds=LAG)
EARLY = AT - dt.timedelta(hours=1)
NONE, ONE, TWO, THREE = (config_id(n) for n in range(4))


def claimed(marks: Marks, config_ids: list[ConfigId], *, after: ConfigId = NONE, to_the_last: bool = True) -> None:
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
    marks.routed(AT)
    claimed(marks, [ONE, ONE, TWO])
    assert marks.since == {ONE: EARLY, TWO: TRAILING, THREE: TRAILING}


def test_who_was_not_looked_at_gets_no_mark() -> None:
    """A claim looks behind the cursor only, and as far as its slots reach."""
    marks = Marks()
    marks.routed(AT)
    claimed(marks, [TWO], after=ONE, to_the_last=False)
    assert marks.since == {TWO: EARLY}


def test_marks_are_forgotten() -> None:
    """What commits later than its due_at by more than they trail is not passed over for longer than they live."""
    marks = Marks()
    marks.renew(10.0)
    marks.routed(AT)
    claimed(marks, [ONE])
    marks.renew(9.9 + LIFE)
    assert marks.since
    marks.renew(10.0 + LIFE)
    assert not marks.since
