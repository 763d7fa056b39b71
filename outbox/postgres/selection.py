"""Which deliveries: a filter as a query for their keys, the one way in to lists and replays alike.

The logs can hold 10^8 rows, so the query begins at an index: of the event, of the record, or of each config and a time.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, LiteralString, NamedTuple
from uuid import UUID

from psycopg.sql import SQL, Composable, Composed, Literal


class State(StrEnum):
    """Where a delivery stands."""

    PENDING = "pending"
    DEAD = "dead"
    DELIVERED = "delivered"
    WITHDRAWN = "withdrawn"
    """Was tried, never acknowledged, and is owed no more: it was removed. No list has it."""


LISTED = (State.PENDING, State.DEAD, State.DELIVERED)


class Order(StrEnum):
    """By which time a list is ordered. Deliveries of one time follow each other by the ids of event and config."""

    FILED = "state_at"
    """When it was delivered, when it died, or of a pending one when it was captured: each change of state moves it."""
    CAPTURED = "event_created_at"
    """When its event was captured: it keeps its place for good."""


class Position(NamedTuple):
    """A place in a list: that of the row with these values. `at`: the time that the list is ordered by."""

    at: datetime
    event_id: UUID
    config_id: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which deliveries: all that is given must hold, of several values any. `since` is included, `until` is not.

    The time of a delivery is `state_at`: when it was delivered, when it died, or of a pending one when it was captured.
    """

    states: Collection[State] = LISTED
    config: UUID | Collection[UUID] | None = None
    event: UUID | Collection[UUID] | None = None
    record: str | Collection[str] | None = None
    """The record's id (`resource_id`)."""
    resource: str | Collection[str] | None = None
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

    @property
    def by_config(self) -> bool:
        """Whether it is looked for config by config, as neither events nor records are named."""
        return self.event is None and self.record is None

    @property
    def by_many_configs(self) -> bool:
        """Whether that may be more than one."""
        configs = several(self.config)
        return self.by_config and (configs is None or len(configs) != 1)


def several(value: UUID | str | Collection[UUID] | Collection[str] | None) -> list[UUID | str] | None:
    """Return the values of a filter's field, each once; None where it chooses all."""
    if value is None:
        return None
    return [value] if isinstance(value, UUID | str) else list(dict.fromkeys(value))


class _Source(NamedTuple):
    table: LiteralString
    time: LiteralString
    number: LiteralString
    condition: LiteralString
    """What the index knows."""
    checks: tuple[LiteralString, ...] = ()
    """What takes a look elsewhere for each row."""
    once: tuple[LiteralString, ...] = ()
    """The same, so that a delivery is met once."""


# Each state with the index that serves it. `offset 0` keeps a question a probe for each row: without it the planner
# may hash the whole history to answer it for fifty rows.
_SOURCES = {
    State.PENDING: _Source("outbox.deliveries", "d.event_created_at", "d.attempts", "d.state = 'pending'"),
    State.DEAD: _Source("outbox.deliveries", "d.died_at", "d.attempts", "d.state = 'dead'"),
    # The tempting `outcome = 'delivered'` alone lists a replayed one once for each time it was acknowledged, and as
    # delivered while it is owed again.
    State.DELIVERED: _Source(
        "outbox.attempts",
        "d.at",
        "d.number",
        "d.outcome = 'delivered'",
        (
            """not exists (
            select from outbox.deliveries as owed
            where owed.event_id = d.event_id and owed.config_id = d.config_id offset 0
        )""",
        ),
        (
            """not exists (
            select from outbox.attempts as later
            where later.event_id = d.event_id and later.config_id = d.config_id and later.outcome = 'delivered'
                and later.at >= d.state_at and (later.at, later.number) > (d.state_at, d.number) offset 0
        )""",
        ),
    ),
}

# Where the search begins. The tempting `from attempts … order by at limit n` has no index for all configs together:
# it would read a day to show fifty rows. Each config's newest are at the end of its own index.
#
# A log of a resource is of a config that is for it, or once was. Without that condition a rare resource would be looked
# for in every log there is.
_CONFIGS: LiteralString = """(
    select c.id as config_id from outbox.postback_configs as c
    where (%(config)s::uuid[] is null or c.id = any(%(config)s::uuid[]))
        and (%(locations)s::text[] is null or c.location_id = any(%(locations)s::text[]))
        and (
            %(resource)s::text[] is null or c.resource = any(%(resource)s::text[])
            or c.former_resources && %(resource)s::text[]
        )
)"""
_EVENT: LiteralString = "(select unnest(%(event)s::uuid[]) as event_id)"
# Whether an event `e` is of a record: by the hash, which is what the index has, see sql/0002_tables.sql.
OF_RECORD: LiteralString = (
    "hashtextextended(e.resource_id, 0) = hashtextextended({record}, 0) and e.resource_id = {record}"
)
_RECORD: LiteralString = """(
    select e.event_id from unnest(%(record)s::text[]) as r (id)
    cross join lateral (
        select e.id as event_id from outbox.events as e
        where {of_record} and {resource} offset 0
    ) as e
)""".replace("{of_record}", OF_RECORD.replace("{record}", "r.id"))

_WITHIN: LiteralString = """exists (
    select from outbox.postback_configs as mine
    where mine.id = d.config_id and mine.location_id = any(%(locations)s::text[]) offset 0
)"""
_OF_RECORD: LiteralString = """exists (
    select from outbox.events as e
    where e.id = d.event_id and e.created_at = d.event_created_at and e.resource_id = any(%(record)s::text[]) offset 0
)"""
_OF_RESOURCE: LiteralString = """exists (
    select from outbox.events as e
    where e.id = d.event_id and e.created_at = d.event_created_at and e.resource = any(%(resource)s::text[]) offset 0
)"""

# The checks stand around the walk of the index, not in it: where it merges the days, the tempting flat query checks the
# first row of each day before it gives out one. The tempting fence for that, `offset 0`, would have the planner think
# that all rows are wanted, and sort them; of a limit that it can not know it thinks that it ends the walk early.
_ROWS: LiteralString = """
select d.event_id, d.config_id, d.event_created_at, d.state_at
from (
    select d.event_id, d.config_id, d.event_created_at, {time} as state_at, {number} as number
    from {table} as d
    where {conditions}
    order by {key} {way}, {ties} limit (select null::bigint)
) as d
where {checks}
order by d.{order} {way}, {ties}
limit {limit}
"""
_LIMIT = SQL("%(limit)s")
_OF_EACH: LiteralString = "select {state} as state, s.* from {origin} as o cross join lateral ({rows}) as s"

# The tempting `_OF_EACH` alone reads fifty rows of each of a thousand configs to show fifty. Only the configs with the
# fifty newest heads can have a row on the page, and no row on it is older than the last of those heads.
_OF_MANY: LiteralString = """
select * from (
    with heads as materialized (
        select o.config_id, h.{order} as at
        from {origin} as o cross join lateral ({head}) as h
        order by h.{order} {way} limit %(limit)s
    )
    select {state} as state, s.* from heads as o cross join lateral ({rows}) as s
) as of_many
"""
_NOT_OLDER: LiteralString = """{key} >= (
    select case when count(*) = %(limit)s then min(h.at) else '-infinity' end from heads as h
)"""
_NOT_NEWER: LiteralString = """{key} <= (
    select case when count(*) = %(limit)s then max(h.at) else 'infinity' end from heads as h
)"""

_SELECTION = """
select * from ({states}) as chosen
order by {order} {way}, event_id {way}, config_id {way} limit %(limit)s
"""

# For a count nobody needs the first of them all: each config's log is read until there are enough altogether, and a
# delivery that was acknowledged twice is found by itself and not by a look for each row.
_COUNT = """
select count(*), coalesce(sum(looked_at) = %(limit)s, false) from (
    select count(*) as looked_at from (select event_id, config_id from ({states}) as chosen limit %(limit)s) as seen
    group by event_id, config_id
) as counted
"""


def selection(
    chosen: Filter,
    *,
    limit: int,
    after: Position | None = None,
    order: Order = Order.FILED,
    oldest_first: bool = False,
    within: tuple[datetime, datetime] | None = None,
    conditions: Collection[LiteralString] = (),
) -> tuple[Composed, dict[str, Any]]:
    """Return a query for the keys of the chosen deliveries, and its parameters.

    Its columns are state, event_id, config_id, event_created_at, state_at; newest first or `oldest_first`, from
    behind `after` on. `within`: only the part of the list between these times. `conditions`: more SQL over
    the row `d`. Never to be run as a prepared statement: a plan for any time and any limit would sort a config's
    whole history for a few rows.
    """
    wanted: list[LiteralString] = []
    if after is not None:
        # The first half is implied by the second, but only it lets partitions be skipped.
        wanted.append(
            "{key} >= %(at)s and {time} >= %(at)s and ({key}, d.event_id, d.config_id) > "
            "(%(at)s, %(at_event)s, %(at_config)s)"
            if oldest_first
            else "{key} <= %(at)s and ({key}, d.event_id, d.config_id) < (%(at)s, %(at_event)s, %(at_config)s)"
        )
    if within is not None:
        wanted.append("{key} >= %(least)s and {time} >= %(least)s and {key} <= %(most)s")
    way = SQL("asc" if oldest_first else "desc")
    ties = SQL("d.event_id {way}" if chosen.by_config else "d.event_id {way}, d.config_id {way}").format(way=way)
    states = []
    for state, source in _SOURCES.items():
        if state in chosen.states:
            parts = _parts(chosen, state, order) | {"way": way, "ties": ties, "order": SQL(order.value)}
            others = [*source.checks, *_checks(chosen), *conditions]
            checks = [*others, *source.once]
            edge = [_NOT_NEWER if oldest_first else _NOT_OLDER]
            if chosen.by_many_configs:
                # In the order of capture what was acknowledged twice stands in one place: for that place no row of the
                # table is needed, and the index alone has the rest.
                one_place = order is Order.CAPTURED and chosen.since is None and chosen.until is None
                head = _rows(parts, wanted, others if one_place else checks, limit=SQL("1"))
                rows = _rows(parts, [*wanted, *edge], checks)
                states.append(SQL(_OF_MANY).format(**parts, head=head, rows=rows))
            else:
                states.append(SQL(_OF_EACH).format(**parts, rows=_rows(parts, wanted, checks)))
    parameters = _parameters(chosen, limit)
    if after is not None:
        parameters |= {"at": after.at, "at_event": after.event_id, "at_config": after.config_id}
    if within is not None:
        parameters |= {"least": within[0], "most": within[1]}
    query = SQL(_SELECTION).format(states=SQL(" union all ").join(states), order=SQL(order.value), way=way)
    return query, parameters


def counting(chosen: Filter, *, most: int) -> tuple[Composed, dict[str, Any]]:
    """Return a query for how many are chosen and whether there may be more, and its parameters.

    It looks at `most` at most. Not to be prepared either.
    """
    # The index in the order of capture has all that is counted by, so that the table is not read.
    order = Order.CAPTURED if chosen.since is None and chosen.until is None else Order.FILED
    fixed = {"way": SQL("desc"), "ties": SQL("d.event_id desc"), "order": SQL(order.value)}
    states = []
    for state, source in _SOURCES.items():
        if state in chosen.states:
            parts = _parts(chosen, state, order) | fixed
            rows = _rows(parts, [], [*source.checks, *_checks(chosen)])
            states.append(SQL(_OF_EACH).format(**parts, rows=rows))
    return SQL(_COUNT).format(states=SQL(" union all ").join(states)), _parameters(chosen, most)


def _parts(chosen: Filter, state: State, order: Order) -> dict[str, Composable]:
    """Return what a state's part of a query is made of."""
    source = _SOURCES[state]
    origin, link = _origin(chosen)
    time = SQL(source.time)
    wanted = [link, source.condition, *_conditions(chosen)]
    if state is State.PENDING and chosen.tried is not None:
        wanted.append("d.attempts > 0" if chosen.tried else "d.attempts = 0")
    return {
        "state": Literal(state.value),
        "origin": SQL(origin),
        "table": SQL(source.table),
        "time": time,
        "number": SQL(source.number),
        "key": time if order is Order.FILED else SQL("d.event_created_at"),
        "wanted": SQL(" and ").join(SQL(each).format(time=time) for each in wanted),
    }


def _rows(
    parts: Mapping[str, Composable],
    more: Collection[LiteralString],
    checks: Collection[LiteralString],
    *,
    limit: Composable = _LIMIT,
) -> Composed:
    """Return the query for the rows of a state that belong to one row of the origin."""
    conditions = [parts["wanted"], *(SQL(each).format(time=parts["time"], key=parts["key"]) for each in more)]
    return SQL(_ROWS).format(
        **parts,
        conditions=SQL(" and ").join(conditions),
        checks=SQL(" and ").join(SQL(each) for each in checks) if checks else SQL("true"),
        limit=limit,
    )


def _parameters(chosen: Filter, limit: int) -> dict[str, Any]:
    return {
        "config": several(chosen.config), "event": several(chosen.event), "record": several(chosen.record),
        "resource": several(chosen.resource),
        "since": chosen.since, "until": chosen.until, "limit": limit,
        "locations": None if chosen.locations is None else list(chosen.locations),
        "created_since": chosen.created_since, "created_until": chosen.created_until,
    }  # fmt: skip


def _conditions(chosen: Filter) -> list[LiteralString]:
    """Return what must hold of a row `d` by itself, beyond what the place where the search begins makes sure of."""
    wanted: list[LiteralString] = []
    if chosen.config is not None and not chosen.by_config:
        wanted.append("d.config_id = any(%(config)s::uuid[])")
    if chosen.created_since is not None:
        # Nothing is filed before it was captured: the second half lets the index skip what is older.
        wanted.append("d.event_created_at >= %(created_since)s and {time} >= %(created_since)s")
    if chosen.created_until is not None:
        wanted.append("d.event_created_at < %(created_until)s")
    if chosen.since is not None:
        wanted.append("{time} >= %(since)s")
    if chosen.until is not None:
        wanted.append("{time} < %(until)s")
    return wanted


def _checks(chosen: Filter) -> list[LiteralString]:
    """Return what must hold of a row `d` by what stands elsewhere."""
    wanted: list[LiteralString] = []
    if chosen.locations is not None and not chosen.by_config:
        wanted.append(_WITHIN)
    if chosen.event is not None and chosen.record is not None:
        wanted.append(_OF_RECORD)
    if chosen.resource is not None and (chosen.by_config or chosen.event is not None):
        wanted.append(_OF_RESOURCE)
    return wanted


def _origin(chosen: Filter) -> tuple[LiteralString, LiteralString]:
    """Return where the search begins, and what links a row `d` to it: the narrowest that was given."""
    if chosen.event is not None:
        return _EVENT, "d.event_id = o.event_id"
    if chosen.record is not None:
        resource: LiteralString = "true" if chosen.resource is None else "e.resource = any(%(resource)s::text[])"
        return _RECORD.replace("{resource}", resource), "d.event_id = o.event_id"
    return _CONFIGS, "d.config_id = o.config_id"
