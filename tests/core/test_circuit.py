"""What the tries of a config say of it, and which changes follow."""

from datetime import UTC, datetime
from uuid import UUID

import pytest

from outbox.core.circuit import DISABLES_AFTER, OPENS_AFTER, SETTLED_SECONDS, Change, Condition, Run, changes, runs
from outbox.core.model import Attempt, Dead, Delivered, Delivery, FailureKind, Outcome, Retry
from tests.ids import config_id

AT = datetime(2026, 1, 1, tzinfo=UTC)
CONFIG = config_id(1)
DAY = 86_400.0


def attempt(outcome: Outcome, status: int | None, failure: FailureKind | None = None) -> Attempt:
    delivery = Delivery(str(UUID(int=9)), CONFIG, 1, 0, AT, 1, "CREATE", "contact", "{}")
    return Attempt(delivery, outcome, status, b"", 1, AT, failure)


def condition(**fields: object) -> Condition:
    healthy = {
        "failures": 0, "troubles": 0, "failing_seconds": 0.0, "is_active": True, "circuit_is_open": False,
        "exhausted_seconds": None,
    }  # fmt: skip
    return Condition(**(healthy | fields))  # type: ignore[arg-type]


OK = attempt(Delivered(), 204)
REFUSED = attempt(Retry(300, "status 422"), 422)
BROKEN = attempt(Retry(300, "status 503"), 503)
SILENT = attempt(Dead("timeout: no answer"), None, FailureKind.TIMEOUT)
GONE = attempt(Dead("the event is no longer kept"), None, FailureKind.MISSING)


@pytest.mark.parametrize(
    ("tries", "expected"),
    [
        ([], None),
        ([OK, OK], Run(succeeded=True)),
        ([REFUSED, BROKEN], Run(failures=2, troubles=1, reason="status 503")),
        ([BROKEN, OK, SILENT], Run(succeeded=True, failures=1, troubles=1, died=True, reason="timeout: no answer")),
        ([SILENT, OK], Run(succeeded=True, died=True, reason="timeout: no answer")),
        ([GONE], None),
        ([attempt(Retry(1, "status 429"), 429)], Run(failures=1, troubles=1, reason="status 429")),
        ([attempt(Retry(1, "oversized"), 200, FailureKind.OVERSIZED)], Run(failures=1, reason="oversized")),
    ],
)
def test_what_tries_say(tries: list[Attempt], expected: Run | None) -> None:
    """Failures count since the last success; a 4xx is no trouble of the endpoint; what was not sent says nothing."""
    assert runs(tries).get(CONFIG) == expected


@pytest.mark.parametrize(
    ("told", "stands", "expected"),
    [
        (Run(failures=1), condition(failures=OPENS_AFTER - 1, troubles=OPENS_AFTER - 1), []),
        (Run(failures=1), condition(failures=OPENS_AFTER, troubles=OPENS_AFTER), [Change.OPENED]),
        (Run(failures=1), condition(failures=500, troubles=OPENS_AFTER - 1), []),
        (Run(failures=1), condition(failures=99, troubles=99, circuit_is_open=True), []),
        (Run(succeeded=True), condition(circuit_is_open=True), [Change.CLOSED]),
        (Run(succeeded=True), condition(), []),
        (Run(failures=1, died=True), condition(failures=1), [Change.EXHAUSTED]),
        (Run(failures=1, died=True), condition(failures=1, exhausted_seconds=1.0), []),
        (Run(succeeded=True), condition(exhausted_seconds=SETTLED_SECONDS), [Change.RECOVERED]),
        (Run(succeeded=True), condition(exhausted_seconds=SETTLED_SECONDS - 1), []),
        (Run(failures=1), condition(failures=DISABLES_AFTER, failing_seconds=5 * DAY), [Change.DISABLED]),
        (Run(failures=1), condition(failures=DISABLES_AFTER - 1, failing_seconds=9 * DAY), []),
        (Run(failures=1), condition(failures=DISABLES_AFTER, failing_seconds=5 * DAY - 1), []),
        (Run(failures=1), condition(failures=DISABLES_AFTER, failing_seconds=5 * DAY, is_active=False), []),
        (Run(failures=1), condition(failures=99, troubles=99, failing_seconds=5 * DAY), [Change.DISABLED]),
    ],
)
def test_which_changes_follow(told: Run, stands: Condition, expected: list[Change]) -> None:
    """Each change is asked for when its reason is there and the config does not stand so already."""
    assert changes(told, stands, disable_after=5 * DAY) == expected


def test_no_config_is_switched_off_where_the_operator_does_not_want_it() -> None:
    """`disable_after` 0 means never."""
    assert changes(Run(failures=1), condition(failures=99, failing_seconds=99 * DAY), disable_after=0) == []
