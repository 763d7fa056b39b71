"""Bodies that several configs want are made once; each is what it would be by itself."""

import datetime as dt

import pytest

from outbox.core import bodies, postback
from outbox.core.bodies import Bodies
from outbox.core.model import Delivery
from tests.ids import config_id

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def delivery(event: str, config: int = 1, attempt: int = 1, data: str | None = None) -> Delivery:
    record = f'{{"id":"{event}"}}' if data is None else data
    return Delivery(event, config_id(config), attempt, 0, NOW, 1, "UPDATE", "contact", record, '{"tags":[1]}')


def test_what_several_want_is_made_once() -> None:
    """Of one change and one try, with the same expands; whatever is sent between."""
    made = Bodies()
    first = made.of(delivery("a", 1), "")
    assert first == postback.form_body("UPDATE", "contact", 1, '{"id":"a"}')
    for other in ("b", "c"):
        made.of(delivery(other), "")
    assert made.of(delivery("a", 2), "") is first
    second, embedded = made.of(delivery("a", 3, attempt=2), ""), made.of(delivery("a", 4), "tags")
    assert second == postback.form_body("UPDATE", "contact", 2, '{"id":"a"}')
    assert embedded == postback.form_body("UPDATE", "contact", 1, '{"id":"a","tags":[1]}')


def test_little_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last few, and none that is large: what is in hand has its own bound."""
    monkeypatch.setattr(bodies, "KEPT", 2)
    monkeypatch.setattr(bodies, "LARGEST_KEPT", 200)
    made = Bodies()
    large = delivery("large", data='"' + "x" * 200 + '"')
    once = made.of(large, "")
    again = made.of(large, "")
    assert again == once
    assert again is not once
    first = made.of(delivery("a"), "")
    made.of(delivery("b"), "")
    assert made.of(delivery("a"), "") is first
    made.of(delivery("c"), "")
    assert made.of(delivery("a"), "") is not first


def test_where_nobody_wants_the_same_it_is_hardly_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would only cost; after a while it is tried again."""
    monkeypatch.setattr(bodies, "GIVEN_UP_AFTER", 3)
    monkeypatch.setattr(bodies, "RESTS_FOR", 4)
    made = Bodies()
    for event in "abc":
        made.of(delivery(event), "")
    one, other = made.of(delivery("d"), ""), made.of(delivery("d"), "")
    assert one == other
    assert one is not other
    for event in "ef":
        made.of(delivery(event), "")
    kept = made.of(delivery("g"), "")
    assert made.of(delivery("g"), "") is kept


def test_an_event_that_is_no_longer_kept_has_none() -> None:
    """There is nothing left to send."""
    gone = delivery("a")._replace(type=None, resource=None, data=None)
    assert Bodies().of(gone, "") is None
