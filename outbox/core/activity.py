"""What the outbox does just now: two looks at it become rates, and a table in some order.

Looks are taken by postgres/activity.py. Nothing is measured or drawn here.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from outbox.core.model import ConfigStanding

RATE_SECONDS = 10.0
"""Rates are over so many of the last seconds."""


@dataclass(frozen=True, slots=True)
class Tries:
    """The newest tries of a config that ended alike, from the last minute, as many as a look reads."""

    count: int
    recent: int
    """Of these, the ones that ended within the last RATE_SECONDS."""
    span: float | None
    """For how many seconds they reach back, where there are more than a look reads; None where these are all."""

    @property
    def per_second(self) -> float:
        """How many ended in a second, of late."""
        if self.span is not None and self.span < RATE_SECONDS:
            # All within a moment: the clocks of two daemons may even let it be none.
            return self.count / max(self.span, 0.001)
        return self.recent / RATE_SECONDS


NO_TRIES = Tries(0, 0, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigLook(ConfigStanding):
    """One config at the moment of a look."""

    in_flight: int
    """Of the pending, the ones that a daemon has in hand."""
    delivered: Tries = NO_TRIES
    failed: Tries = NO_TRIES
    p95_ms: int | None = None
    """What 95 of 100 tries of the last minute stayed within; None without a try."""

    @property
    def tried_rate(self) -> float:
        """Tries per second of late, however they ended."""
        return self.delivered.per_second + self.failed.per_second

    @property
    def sends(self) -> bool:
        """Whether a daemon would send what is due."""
        return self.is_active and not self.is_paused

    @property
    def held(self) -> int:
        """What is owed and not sent, because the config is paused or inactive."""
        return 0 if self.sends else self.pending - self.in_flight

    @property
    def retrying(self) -> int:
        """What is not due yet: mostly it waits for its next try."""
        return max(0, self.pending - self.due - self.in_flight) if self.sends else 0


@dataclass(frozen=True, slots=True)
class Daemon:
    """One process that dispatches."""

    pid: int
    """Of its session in PostgreSQL."""
    host: str | None
    """Its address; None where it came through a socket, or where the role may not see it."""
    since: datetime | None
    """None where the role may not see it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The whole outbox at one moment."""

    at: float
    """Epoch seconds of the database's clock."""
    captured: int
    """The number of the last change that was captured. Rolled-back ones are counted too."""
    unrouted: int
    """Captured changes that no daemon has taken yet."""
    oldest_unrouted_s: float
    configs: tuple[ConfigLook, ...]
    daemons: tuple[Daemon, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """The sums over all configs. Rates are per second."""

    captured_rate: float | None
    """None while there was only one look."""
    delivered_rate: float
    failed_rate: float
    unrouted: int
    due: int
    in_flight: int
    retrying: int
    held: int
    dead: int
    oldest_s: float
    """The age of what has waited longest for a daemon, routed or not."""
    open_circuits: int
    disabled: int


class Sort(StrEnum):
    """What the configs are sorted by: the most of it comes first."""

    RATE = "rate"
    FAILING = "failing"
    LATENCY = "latency"
    IN_FLIGHT = "in-flight"
    DUE = "due"
    RETRYING = "retrying"
    DEAD = "dead"
    OLDEST = "oldest"


_RANKS: Mapping[Sort, Callable[[ConfigLook], tuple[float, ...]]] = {
    Sort.RATE: lambda each: (each.tried_rate, each.pending),
    Sort.FAILING: lambda each: (each.failed.per_second, each.failed.count, each.circuit_is_open, each.dead),
    Sort.LATENCY: lambda each: (-1 if each.p95_ms is None else each.p95_ms, each.tried_rate),
    Sort.IN_FLIGHT: lambda each: (each.in_flight, each.tried_rate),
    Sort.DUE: lambda each: (each.due, each.held),
    Sort.RETRYING: lambda each: (each.retrying, each.failed.per_second),
    Sort.DEAD: lambda each: (each.dead, each.failed.per_second),
    Sort.OLDEST: lambda each: (each.oldest_due_s, each.due),
}
"""What is compared, the second where the first is equal."""


def totals(now: Look, before: Look | None) -> Totals:
    """Return the sums of a look. What came in is what was captured since the look before."""
    rate = None
    if before is not None and now.at > before.at:
        # A restored backup sets the numbers back.
        rate = max(0, now.captured - before.captured) / (now.at - before.at)
    configs = now.configs
    return Totals(
        captured_rate=rate,
        delivered_rate=sum(each.delivered.per_second for each in configs),
        failed_rate=sum(each.failed.per_second for each in configs),
        unrouted=now.unrouted,
        due=sum(each.due for each in configs),
        in_flight=sum(each.in_flight for each in configs),
        retrying=sum(each.retrying for each in configs),
        held=sum(each.held for each in configs),
        dead=sum(each.dead for each in configs),
        oldest_s=max([now.oldest_unrouted_s, *(each.oldest_due_s for each in configs)]),
        open_circuits=sum(each.circuit_is_open for each in configs),
        disabled=sum(each.disabled_reason is not None for each in configs),
    )


def ordered(configs: Iterable[ConfigLook], sort: Sort) -> list[ConfigLook]:
    """Return the configs, the most of `sort` first. Those that are alike keep one order from look to look."""
    return sorted(configs, key=lambda each: (*(-number for number in _RANKS[sort](each)), each.id))


def base(looks: Iterable[Look], now: Look) -> Look | None:
    """Return the look to count from: the oldest of at most RATE_SECONDS ago, or else the last before `now`."""
    earlier = [each for each in looks if each.at < now.at]
    recent = [each for each in earlier if each.at >= now.at - RATE_SECONDS]
    return recent[0] if recent else earlier[-1] if earlier else None
