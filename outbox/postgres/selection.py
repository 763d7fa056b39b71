"""Which deliveries: a filter as a query for their keys, the one way in to lists and replays alike.

The logs can hold 10^8 rows, so the query begins at an index: of the event, of the record, or of each config and a time.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, LiteralString, NamedTuple
from uuid import UUID

from psycopg.sql import SQL, Composed


class State(StrEnum):
    """Where a delivery stands."""

    PENDING = "pending"
    DEAD = "dead"
    DELIVERED = "delivered"
    WITHDRAWN = "withdrawn"
    """Was tried, never acknowledged, and is owed no more: it was removed. No list has it."""


LISTED = (State.PENDING, State.DEAD, State.DELIVERED)


class Position(NamedTuple):
    """A place in a list: that of the row with these values."""

    state_at: datetime
    event_id: UUID
    config_id: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which deliveries: all that is given must hold. `since` is included, `until` is not.

    The time of a delivery is `state_at`: when it was delivered, when it died, or of a pending one when it was captured.
    """

    states: Collection[State] = LISTED
    config: UUID | None = None
    event: UUID | None = None
    record: str | None = None
    """The record's id (`resource_id`)."""
    resource: str | None = None
    """Of the event."""
    locations: Collection[str] | None = None
    """Of the config. None: all, and the configs without a location."""
    tried: bool | None = None
    """Of a pending one: whether a try was begun."""
    created_since: datetime | None = None
    created_until: datetime | None = None
    """When the event was captured."""
    since: datetime | None = None
    until: datetime | None = None


class _Source(NamedTuple):
    table: LiteralString
    time: LiteralString
    condition: LiteralString


# Each state with the index that serves it. `offset 0` keeps a question a probe for each row: without it the planner
# may hash the whole history to answer it for fifty rows.
_SOURCES = {
    State.PENDING: _Source("outbox.deliveries", "d.event_created_at", "d.state = 'pending'"),
    State.DEAD: _Source("outbox.deliveries", "d.died_at", "d.state = 'dead'"),
    # The tempting `outcome = 'delivered'` alone lists a replayed one once for each time it was acknowledged, and as
    # delivered while it is owed again.
    State.DELIVERED: _Source(
        "outbox.attempts",
        "d.at",
        """d.outcome = 'delivered'
        and not exists (
            select from outbox.deliveries as owed
            where owed.event_id = d.event_id and owed.config_id = d.config_id offset 0
        )
        and not exists (
            select from outbox.attempts as later
            where later.event_id = d.event_id and later.config_id = d.config_id and later.outcome = 'delivered'
                and later.at >= d.at and (later.at, later.number) > (d.at, d.number) offset 0
        )""",
    ),
}

# Where the search begins. The tempting `from attempts … order by at limit n` has no index for all configs together:
# it would read a day to show fifty rows. Each config's newest are at the end of its own index.
_EVERY_CONFIG: LiteralString = """(
    select c.id as config_id from outbox.postback_configs as c
    where %(locations)s::text[] is null or c.location_id = any(%(locations)s::text[])
)"""
_ONE_CONFIG: LiteralString = "(select %(config)s::uuid as config_id)"
_EVENT: LiteralString = "(select %(event)s::uuid as event_id)"
_RECORD: LiteralString = "(select e.id as event_id from outbox.events as e where e.resource_id = %(record)s)"
_RECORD_OF_RESOURCE: LiteralString = (
    "(select e.id as event_id from outbox.events as e where e.resource_id = %(record)s and e.resource = %(resource)s)"
)

_WITHIN: LiteralString = """exists (
    select from outbox.postback_configs as mine
    where mine.id = d.config_id and mine.location_id = any(%(locations)s::text[]) offset 0
)"""
_OF_RECORD: LiteralString = """exists (
    select from outbox.events as e
    where e.id = d.event_id and e.created_at = d.event_created_at and e.resource_id = %(record)s offset 0
)"""
_OF_RESOURCE: LiteralString = """exists (
    select from outbox.events as e
    where e.id = d.event_id and e.created_at = d.event_created_at and e.resource = %(resource)s offset 0
)"""

_STATE = """
select {state} as state, s.event_id, s.config_id, s.event_created_at, s.state_at
from {origin} as o
cross join lateral (
    select d.event_id, d.config_id, d.event_created_at, {time} as state_at
    from {table} as d
    where {conditions}
    order by {time} {way}, d.event_id {way}, d.config_id {way}
    limit %(limit)s
) as s
"""

_SELECTION = """
select * from ({states}) as chosen
order by state_at {way}, event_id {way}, config_id {way} limit %(limit)s
"""


def selection(
    chosen: Filter,
    *,
    limit: int,
    after: Position | None = None,
    oldest_first: bool = False,
    conditions: Collection[LiteralString] = (),
) -> tuple[Composed, dict[str, Any]]:
    """Return a query for the keys of the chosen deliveries, and its parameters.

    Its columns are state, event_id, config_id, event_created_at, state_at; newest first or `oldest_first`, from
    behind `after` on. `conditions`: more SQL over the row `d`. Never to be run as a prepared statement: a plan for
    any time and any limit would sort a config's whole history for a few rows.
    """
    origin, link = _origin(chosen)
    wanted = [
        SQL(link), *(SQL(each) for each in conditions), *_conditions(chosen, by_config=origin == _ONE_CONFIG)
    ]  # fmt: skip
    if after is not None:
        # The first half is implied by the second, but only it lets partitions be skipped.
        wanted.append(
            SQL(
                "{time} >= %(at)s and ({time}, d.event_id, d.config_id) > (%(at)s, %(at_event)s, %(at_config)s)"
                if oldest_first
                else "{time} <= %(at)s and ({time}, d.event_id, d.config_id) < (%(at)s, %(at_event)s, %(at_config)s)"
            )
        )
    way = SQL("asc" if oldest_first else "desc")
    states = []
    for state in State:
        if state in chosen.states and state in _SOURCES:
            source = _SOURCES[state]
            time = SQL(source.time)
            fragments = [SQL(source.condition), *(each.format(time=time) for each in wanted)]
            if state is State.PENDING and chosen.tried is not None:
                fragments.append(SQL("d.attempts > 0" if chosen.tried else "d.attempts = 0"))
            states.append(
                SQL(_STATE).format(
                    state=state.value, origin=SQL(origin), time=time, table=SQL(source.table),
                    conditions=SQL(" and ").join(fragments), way=way,
                )
            )  # fmt: skip
    parameters = {
        "config": chosen.config, "event": chosen.event, "record": chosen.record, "resource": chosen.resource,
        "since": chosen.since, "until": chosen.until, "limit": limit,
        "locations": None if chosen.locations is None else list(chosen.locations),
        "created_since": chosen.created_since, "created_until": chosen.created_until,
    }  # fmt: skip
    if after is not None:
        parameters |= {"at": after.state_at, "at_event": after.event_id, "at_config": after.config_id}
    return SQL(_SELECTION).format(states=SQL(" union all ").join(states), way=way), parameters


def _conditions(chosen: Filter, *, by_config: bool) -> list[SQL]:
    """Return what must hold of a row `d`. `by_config`: whether the search begins at the config, so that it holds."""
    wanted: list[SQL] = []
    if chosen.config is not None and not by_config:
        wanted.append(SQL("d.config_id = %(config)s"))
    if chosen.locations is not None:
        wanted.append(SQL(_WITHIN))
    if chosen.event is not None and chosen.record is not None:
        wanted.append(SQL(_OF_RECORD))
    if chosen.resource is not None and (chosen.event is not None or chosen.record is None):
        wanted.append(SQL(_OF_RESOURCE))
    if chosen.created_since is not None:
        # Nothing is filed before it was captured: the second half lets the index skip what is older.
        wanted.append(SQL("d.event_created_at >= %(created_since)s and {time} >= %(created_since)s"))
    if chosen.created_until is not None:
        wanted.append(SQL("d.event_created_at < %(created_until)s"))
    if chosen.since is not None:
        wanted.append(SQL("{time} >= %(since)s"))
    if chosen.until is not None:
        wanted.append(SQL("{time} < %(until)s"))
    return wanted


def _origin(chosen: Filter) -> tuple[LiteralString, LiteralString]:
    """Return where the search begins, and what links a row `d` to it: the narrowest that was given."""
    if chosen.event is not None:
        return _EVENT, "d.event_id = o.event_id"
    if chosen.record is not None:
        return _RECORD if chosen.resource is None else _RECORD_OF_RESOURCE, "d.event_id = o.event_id"
    return _EVERY_CONFIG if chosen.config is None else _ONE_CONFIG, "d.config_id = o.config_id"
