"""The names that Prometheus sees, with their types, labels and meanings: the public surface, told in docs/metrics.md.

No values here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from outbox.core.tally import DELIVERY_BOUNDS, DURATION_BOUNDS, STATEMENT_BOUNDS


class Kind(StrEnum):
    """What may be done with a number."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Family:
    """One name."""

    name: str
    kind: Kind
    meaning: str
    labels: tuple[str, ...] = ()
    bounds: Sequence[float] = ()
    """A histogram's."""
    greatest: bool = False
    """Of several workers the greatest counts; else their sum."""


OF_A_PROCESS = (Family("outbox_build_info", Kind.GAUGE, "Always 1; the labels say what runs.", ("version", "python")),)

OF_DISPATCHING = (
    Family("outbox_workers", Kind.GAUGE, "Worker processes that this page tells of."),
    Family("outbox_events_routed_total", Kind.COUNTER, "Captured changes that were taken from the outbox."),
    Family("outbox_deliveries_created_total", Kind.COUNTER, "Deliveries that these changes turned out to owe."),
    Family(
        "outbox_deliveries_leased_total",
        Kind.COUNTER,
        "Deliveries taken in hand: as they were created (by=route), or when they were due (by=claim).",
        ("by",),
    ),
    Family(
        "outbox_deliveries_given_back_total",
        Kind.COUNTER,
        "Deliveries given back with no try finished. reason: unsent (no proxy, no descriptors, memory or threads), "
        "unreadable (no key reads what their config keeps secret), withdrawn (the config was paused, switched off or "
        "removed meanwhile), expired (not begun in time), outage (the database was lost before their config was "
        "known), stopping (the daemon ends), cut_off (it ended in the middle of their POST: may be sent twice).",
        ("reason",),
    ),
    Family(
        "outbox_attempts_total",
        Kind.COUNTER,
        "Finished tries. outcome: delivered, retry, dead. status_class: 1xx to 5xx, other, or without a complete "
        "answer why: resolve, connect, tls, timeout, broken, oversized, forbidden, missing.",
        ("outcome", "status_class"),
    ),
    Family(
        "outbox_attempt_duration_seconds",
        Kind.HISTOGRAM,
        "How long a try took, from before the connection to the end of the answer.",
        bounds=DURATION_BOUNDS,
    ),
    Family(
        "outbox_commit_to_delivery_seconds",
        Kind.HISTOGRAM,
        "From the event to the end of its first try, where that was acknowledged. The event's time is now() of the "
        "writer's transaction, so how long that stayed open counts too; and so does a pause of the config.",
        bounds=DELIVERY_BOUNDS,
    ),
    Family(
        "outbox_leases_lost_total",
        Kind.COUNTER,
        "Tries that were settled too late: the delivery had been claimed again or replayed. It may be sent twice.",
    ),
    Family(
        "outbox_statement_duration_seconds",
        Kind.HISTOGRAM,
        "How long the database took to answer, as the daemon saw it. statement: route (takes what was captured), "
        "overtake (what stands behind a batch), look_below (what was committed late), claim, claim_governed, settle.",
        ("statement",),
        bounds=STATEMENT_BOUNDS,
    ),
    Family("outbox_concurrency", Kind.GAUGE, "POSTs in flight at most (OUTBOX_CONCURRENCY, all workers together)."),
    Family(
        "outbox_in_flight",
        Kind.GAUGE,
        "POSTs in flight now, by what the last POSTs of their configs say: quick, slow, timed_out, or unknown where "
        "there was none lately.",
        ("standing",),
    ),
    Family("outbox_waiting", Kind.GAUGE, "Deliveries in hand that wait for their turn."),
    Family("outbox_unsettled", Kind.GAUGE, "Finished tries that are not written down yet. They take up concurrency."),
    Family(
        "outbox_settle_delay_seconds",
        Kind.GAUGE,
        "For how long the oldest of these has waited. Above 5 nothing is claimed.",
        greatest=True,
    ),
    Family(
        "outbox_limited_configs",
        Kind.GAUGE,
        "Configs that may have fewer in flight than OUTBOX_MAX_IN_FLIGHT_PER_CONFIG, because their POSTs timed out.",
    ),
    Family(
        "outbox_timed_out_configs",
        Kind.GAUGE,
        "Configs whose last POST timed out. All together they may have a quarter of the concurrency.",
    ),
    Family(
        "outbox_flooded_configs",
        Kind.GAUGE,
        "Configs that more was captured for than they can take. It stays in the outbox until they can.",
        greatest=True,
    ),
    Family(
        "outbox_turn_age_seconds",
        Kind.GAUGE,
        "Time since the fetch loop last looked for work with success, or since the start.",
        greatest=True,
    ),
    Family("outbox_outage", Kind.GAUGE, "1 while the database can not be reached, else 0.", greatest=True),
    Family(
        "outbox_schema_differs",
        Kind.GAUGE,
        "1 while the database's schema is not the one of the version that runs, else 0. It is looked at every minute.",
        greatest=True,
    ),
    Family("outbox_outages_total", Kind.COUNTER, "How often the database could not be reached any more."),
)

OF_THE_DATABASE = (
    Family("outbox_unrouted", Kind.GAUGE, "Captured changes that no daemon has taken yet."),
    Family("outbox_pending", Kind.GAUGE, "Deliveries still to be made, whatever they wait for."),
    Family(
        "outbox_due",
        Kind.GAUGE,
        "Of these, the ones that are due now, those that wait for a rate limit too; none of an open circuit.",
    ),
    Family("outbox_held", Kind.GAUGE, "Of these, the ones of paused and inactive configs."),
    Family("outbox_dead", Kind.GAUGE, "Deliveries that are out of tries, and kept."),
    Family(
        "outbox_oldest_due_seconds", Kind.GAUGE, "For how long the oldest due delivery has been due; 0 when none is."
    ),
    Family("outbox_configs", Kind.GAUGE, "Configs that are not deleted."),
    Family(
        "outbox_open_circuits", Kind.GAUGE, "Configs that get probes only, because they failed many times in a row."
    ),
    Family("outbox_disabled_configs", Kind.GAUGE, "Configs that were switched off, because they did nothing but fail."),
    Family("outbox_config_pending", Kind.GAUGE, "outbox_pending of the worst configs.", ("config_id",)),
    Family("outbox_config_due", Kind.GAUGE, "outbox_due of the worst configs.", ("config_id",)),
    Family("outbox_config_dead", Kind.GAUGE, "outbox_dead of the worst configs.", ("config_id",)),
    Family(
        "outbox_config_oldest_due_seconds",
        Kind.GAUGE,
        "outbox_oldest_due_seconds of the worst configs; of the others no sum makes sense.",
        ("config_id",),
    ),
    Family(
        "outbox_figures_age_seconds",
        Kind.GAUGE,
        "How old the figures of the database are; before the first, for how long there have been none.",
    ),
    Family("outbox_figures_duration_seconds", Kind.GAUGE, "How long the database took to count them."),
)

FAMILIES = {family.name: family for family in (*OF_A_PROCESS, *OF_DISPATCHING, *OF_THE_DATABASE)}

OTHER = "other"
"""The config_id under which all configs that are not among the worst stand together."""
