"""What one process says at a moment, in plain JSON, so that one process can tell of several."""

from collections.abc import Iterable, Mapping

from outbox.core.tally import Histogram, Tally
from outbox.metrics.families import FAMILIES

Values = dict[str, list[float]]
"""By the values of the labels, with commas between them: [value], or of a histogram [sum, count, count …]."""

Reading = dict[str, Values]
"""By the names of families."""

Readings = Mapping[int, Reading]
"""What each process that dispatches says, by its pid, this one first."""


def one(value: float) -> Values:
    """Return the values of a family without labels."""
    return {"": [float(value)]}


def of_tally(tally: Tally) -> Reading:
    """Return what was counted since the start."""
    return {
        "outbox_events_routed_total": one(tally.routed),
        "outbox_deliveries_created_total": one(tally.created),
        "outbox_deliveries_leased_total": {"route": [tally.leased_at_once], "claim": [tally.claimed]},
        "outbox_deliveries_given_back_total": {why: [count] for why, count in tally.given_back.items()},
        "outbox_attempts_total": {",".join(labels): [count] for labels, count in tally.attempts.items()},
        "outbox_attempt_duration_seconds": _histogram(tally.durations),
        "outbox_commit_to_delivery_seconds": _histogram(tally.deliveries),
        "outbox_leases_lost_total": one(tally.leases_lost),
        "outbox_statement_duration_seconds": {each: _numbers(took) for each, took in tally.statements.items()},
    }


def together(readings: Iterable[Reading]) -> Reading:
    """Return what several processes say as if they were one."""
    whole: Reading = {}
    for reading in readings:
        for name, values in reading.items():
            merged = whole.setdefault(name, {})
            combine = max if FAMILIES[name].greatest else _sum
            for labels, numbers in values.items():
                known = merged.get(labels)
                merged[labels] = numbers if known is None else list(map(combine, known, numbers))
    return whole


def _histogram(histogram: Histogram) -> Values:
    return {"": _numbers(histogram)}


def _numbers(histogram: Histogram) -> list[float]:
    return [histogram.sum, *histogram.counts]


def _sum(first: float, second: float) -> float:
    return first + second
