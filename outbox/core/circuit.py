"""A config in trouble: what its tries say of it, and which changes follow. Everything that decides it stands here.

A run of failures that speak of the whole endpoint opens its circuit: it gets a probe now and then instead of its
traffic. The first success closes it. What fails for days and does nothing else is switched off.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from outbox.core.model import Attempt, ConfigId, Dead, Delivered, FailureKind

OPENS_AFTER = 30
"""Troubles in a row that open a circuit."""

DISABLES_AFTER = 20
"""Failures in a row that a config must have, at the least, to be switched off."""

SILENCE_PART = 2
"""Who had no failure for this part of the time after which it is switched off begins that time anew: one POST that
failed a week ago, and nothing since, is no week of failures."""

SETTLED_SECONDS = 300.0
"""A config that died and succeeds is not called recovered before: one that refuses every other postback is no news."""

_SERVER_ERRORS = 500
_TEMPORARY = (408, 429)


class Change(StrEnum):
    """What is told of a config, once for each change."""

    EXHAUSTED = "exhausted"
    OPENED = "opened"
    CLOSED = "closed"
    DISABLED = "disabled"
    RECOVERED = "recovered"


@dataclass(frozen=True, slots=True)
class Run:
    """What some tries of one config say, in the order in which they ended."""

    succeeded: bool = False
    failures: int = 0
    """Since the last success among them."""
    troubles: int = 0
    """Of these, the ones that speak of the whole endpoint."""
    died: bool = False
    reason: str | None = None
    """Of the last failure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A config after the tries of a run were counted."""

    failures: int
    troubles: int
    failing_seconds: float
    """Since its first failure after the last success, or after a long silence."""
    is_active: bool
    circuit_is_open: bool
    exhausted_seconds: float | None
    """Since a delivery first died; None when none did since it recovered."""


def together(earlier: Run, later: Run) -> Run:
    """Return what two runs of one config say, one after the other."""
    died = earlier.died or later.died
    if later.succeeded:
        return replace(later, died=died)
    return Run(
        succeeded=earlier.succeeded,
        failures=earlier.failures + later.failures,
        troubles=earlier.troubles + later.troubles,
        died=died,
        reason=later.reason or earlier.reason,
    )


def runs(attempts: Iterable[Attempt]) -> dict[ConfigId, Run]:
    """Return what finished tries say of each config. A try that had nothing to send says nothing."""
    found: dict[ConfigId, Run] = {}
    for attempt in attempts:
        if attempt.failure is FailureKind.MISSING:
            continue
        config_id = attempt.delivery.config_id
        before = found.get(config_id, _NOTHING)
        if isinstance(attempt.outcome, Delivered):
            if before is _NOTHING:
                found[config_id] = _SUCCESS
            elif not before.succeeded or before.failures:
                found[config_id] = replace(before, succeeded=True, failures=0, troubles=0)
            continue
        found[config_id] = replace(
            before,
            failures=before.failures + 1,
            troubles=before.troubles + _is_trouble(attempt.status),
            died=before.died or isinstance(attempt.outcome, Dead),
            reason=attempt.outcome.reason,
        )
    return found


_NOTHING = Run()
_SUCCESS = Run(succeeded=True)


def _is_trouble(status: int | None) -> bool:
    """Tell whether a failure speaks of the endpoint and not of the one postback: a 422 to some is normal life."""
    return status is None or status >= _SERVER_ERRORS or status in _TEMPORARY


def changes(told: Run, condition: Condition, *, disable_after: float) -> list[Change]:
    """Return what changes for the config, in its order. `disable_after`: seconds; 0 for never."""
    found = []
    if told.succeeded:
        if condition.circuit_is_open:
            found.append(Change.CLOSED)
        if condition.exhausted_seconds is not None and condition.exhausted_seconds >= SETTLED_SECONDS:
            found.append(Change.RECOVERED)
    if told.died and condition.exhausted_seconds is None:
        found.append(Change.EXHAUSTED)
    if (
        disable_after
        and condition.is_active
        and condition.failures >= DISABLES_AFTER
        and condition.failing_seconds >= disable_after
    ):
        found.append(Change.DISABLED)
    elif condition.troubles >= OPENS_AFTER and not condition.circuit_is_open:
        found.append(Change.OPENED)
    return found
