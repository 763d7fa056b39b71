"""What became of the deliveries: lists of them, and one with all its tries. Reads only; replay.py sends again.

A delivery that is owed has a row in `deliveries`; a delivered one has only its tries in `attempts`. The logs can hold
10^8 rows: nothing here counts them.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, Self
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import class_row, kwargs_row
from psycopg.sql import SQL

from outbox.core import expansions as embedding
from outbox.postgres.selection import Filter, Order, Position, State, counting, selection

_WINDOWS = (timedelta(hours=1), timedelta(days=1))
"""How much of the list of all configs is looked at first: each config is asked for each day in it."""


class DeliveryKey(NamedTuple):
    """What identifies a delivery; as text `EVENT_ID.CONFIG_ID`."""

    event_id: UUID
    config_id: UUID

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text form; ValueError when it is none."""
        event, _, config = text.partition(".")
        return cls(UUID(event), UUID(config))

    def __str__(self) -> str:
        return f"{self.event_id}.{self.config_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A delivery in a list. `type`, `resource` and `resource_id` are None when its event is no longer kept."""

    event_id: UUID
    config_id: UUID
    state: State
    state_at: datetime
    event_created_at: datetime
    type: str | None
    resource: str | None
    resource_id: str | None
    attempts: int
    """Tries begun, over all replays."""
    in_progress: bool
    """A daemon has it in hand just now."""
    due_at: datetime | None
    """When a pending one may be tried; None for the others."""
    last_error: str | None

    @property
    def key(self) -> DeliveryKey:
        """What identifies it."""
        return DeliveryKey(self.event_id, self.config_id)

    def position(self, order: Order = Order.FILED) -> Position:
        """Return where a list of this order goes on after it."""
        at = self.state_at if order is Order.FILED else self.event_created_at
        return Position(at, self.event_id, self.config_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Try:
    """A finished try, as it was logged."""

    number: int
    at: datetime
    """When it began."""
    duration_ms: int
    outcome: str
    status: int | None
    error: str | None
    answer: str | None
    """The first bytes of the answer, chosen by the subscriber."""


@dataclass(frozen=True, slots=True)
class Detail:
    """One delivery with its frozen data as it is sent, None when no longer kept, and its logged tries, oldest first."""

    summary: Summary
    data: str | None
    tries: list[Try]


# Whom locations limit is told nothing of an event in another one, which a config that was moved has in its log: neither
# the record nor what the receiver of those days answered, which may repeat it.
_SUMMARIES = """
select s.event_id, s.config_id, s.state, s.state_at, s.event_created_at, e.type, e.resource, e.resource_id,
    coalesce(d.attempts, t.number, 0) as attempts, coalesce(d.leased and d.due_at > now(), false) as in_progress,
    case when d.state = 'pending' then d.due_at end as due_at,
    case when %(locations)s::text[] is null or e.type is not null then d.last_error end as last_error
from ({selection}) as s
left join outbox.deliveries as d on d.event_id = s.event_id and d.config_id = s.config_id
left join lateral (
    select e.type, e.resource, e.resource_id from outbox.events as e
    where e.id = s.event_id and e.created_at = s.event_created_at
        and (%(locations)s::text[] is null or e.location_id = any(%(locations)s::text[]))
    limit 1
) as e on true
left join lateral (
    select max(a.number) as number from outbox.attempts as a
    where s.state = 'delivered' and a.event_id = s.event_id and a.config_id = s.config_id
) as t on true
order by s.{order} {way}, s.event_id {way}, s.config_id {way}
"""

# One delivery. Its tries tell it from one that never was: the key's index finds them in each partition.
_ONE = """
with tried as materialized (
    select max(a.number) as number, max(a.at) filter (where a.outcome = 'delivered') as delivered_at,
        max(a.at) as at, max(a.event_created_at) as event_created_at
    from outbox.attempts as a where a.event_id = %(event)s and a.config_id = %(config)s
)
select f.event_id, f.config_id, f.state, f.state_at, f.event_created_at, e.type, e.resource, e.resource_id,
    f.attempts, f.in_progress, f.due_at,
    case when %(locations)s::text[] is null or e.type is not null then f.last_error end as last_error,
    e.data, e.expansions,
    (select c.expands from outbox.postback_configs as c where c.id = f.config_id) as expands
from (
    select %(event)s::uuid as event_id, %(config)s::uuid as config_id,
        coalesce(d.state, case when t.delivered_at is null then 'withdrawn' else 'delivered' end) as state,
        coalesce(
            case when d.state = 'pending' then d.event_created_at end, d.died_at, t.delivered_at, t.at
        ) as state_at,
        coalesce(d.event_created_at, t.event_created_at) as event_created_at,
        coalesce(d.attempts, t.number) as attempts,
        coalesce(d.leased and d.due_at > now(), false) as in_progress,
        case when d.state = 'pending' then d.due_at end as due_at, d.last_error
    from tried as t
    left join outbox.deliveries as d on d.event_id = %(event)s and d.config_id = %(config)s
    where d.event_id is not null or t.number is not null
) as f
left join lateral (
    select e.type, e.resource, e.resource_id, e.data::text as data, e.expansions::text as expansions
    from outbox.events as e
    where e.id = f.event_id and e.created_at = f.event_created_at
        and (%(locations)s::text[] is null or e.location_id = any(%(locations)s::text[]))
    limit 1
) as e on true
"""

_TRIES = """
select a.number, a.at, a.duration_ms, a.outcome, a.status, case when %(told)s then a.error end as error,
    case when %(told)s then a.answer end as answer
from outbox.attempts as a where a.event_id = %(event)s and a.config_id = %(config)s
order by a.number, a.at
"""


async def deliveries(
    conn: AsyncConnection,
    chosen: Filter,
    *,
    limit: int,
    after: Position | None = None,
    order: Order = Order.FILED,
    oldest_first: bool = False,
) -> list[Summary]:
    """Return up to `limit` of the chosen deliveries, newest first; the next ones with `after` the last's position."""
    if chosen.by_many_configs and State.DELIVERED in chosen.states:
        for within in _windows(chosen, await now(conn), after, order, oldest_first=oldest_first):
            found = await _read(conn, chosen, limit, after, order, oldest_first=oldest_first, within=within)
            if len(found) == limit:
                return found
    return await _read(conn, chosen, limit, after, order, oldest_first=oldest_first)


def _windows(
    chosen: Filter, now: datetime, after: Position | None, order: Order, *, oldest_first: bool
) -> list[tuple[datetime, datetime]]:
    """Return in which parts of the list of all configs its next rows may be, the nearest and smallest first."""
    since, until = (
        (chosen.since, chosen.until) if order is Order.FILED else (chosen.created_since, chosen.created_until)
    )
    if oldest_first:
        start = after.at if after else since
        return [] if start is None else [(start, _moved(start, each)) for each in _WINDOWS]
    start = after.at if after else until
    # A row of a clock that is ahead of now is the newest of all the same.
    return [
        (_moved(now if start is None else min(now, start), -each), start or _moved(now, timedelta.max))
        for each in _WINDOWS
    ]


def _moved(at: datetime, by: timedelta) -> datetime:
    try:
        return at + by
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC) if by < timedelta() else datetime.max.replace(tzinfo=UTC)


async def _read(
    conn: AsyncConnection,
    chosen: Filter,
    limit: int,
    after: Position | None,
    order: Order,
    *,
    oldest_first: bool,
    within: tuple[datetime, datetime] | None = None,
) -> list[Summary]:
    keys, parameters = selection(
        chosen, limit=limit, after=after, order=order, oldest_first=oldest_first, within=within
    )  # fmt: skip
    query = SQL(_SUMMARIES).format(selection=keys, order=SQL(order.value), way=SQL("asc" if oldest_first else "desc"))
    cursor = conn.cursor(row_factory=kwargs_row(_summary))
    await cursor.execute(query, parameters, prepare=False)
    return await cursor.fetchall()


async def count(conn: AsyncConnection, chosen: Filter, *, most: int) -> tuple[int, bool]:
    """Return how many deliveries are chosen, and whether there may be more because `most` were looked at."""
    query, parameters = counting(chosen, most=most)
    row = await (await conn.execute(query, parameters, prepare=False)).fetchone()
    return (int(row[0]), bool(row[1])) if row else (0, False)


async def delivery(
    conn: AsyncConnection, key: DeliveryKey, *, locations: Collection[str] | None = None
) -> Detail | None:
    """Return one delivery with its tries; None when there is no trace of it.

    `locations`: of which events may be told, None for all; of another's as little as of one that is no longer kept.
    """
    parameters = {
        "event": key.event_id, "config": key.config_id, "locations": None if locations is None else list(locations),
    }  # fmt: skip
    async with conn.cursor(row_factory=kwargs_row(_with_data)) as cursor:
        await cursor.execute(_ONE.encode(), parameters)
        found = await cursor.fetchone()
    if found is None:
        return None
    async with conn.cursor(row_factory=class_row(Try)) as cursor:
        told = locations is None or found[0].type is not None
        await cursor.execute(_TRIES.encode(), parameters | {"told": told})
        return Detail(*found, await cursor.fetchall())


async def now(conn: AsyncConnection) -> datetime:
    """Return the database's time, the only clock by which deliveries are filed."""
    row = await (await conn.execute("select now()")).fetchone()
    assert row is not None  # noqa: S101 - a select without a table has one row
    found: datetime = row[0]
    return found


def _summary(**columns: Any) -> Summary:  # noqa: ANN401 - a row
    return Summary(state=State(columns.pop("state")), **columns)


def _with_data(
    *,
    data: str | None,
    expansions: str | None,
    expands: str | None,
    **columns: Any,  # noqa: ANN401 - a row
) -> tuple[Summary, str | None]:
    if data is not None and expansions is not None and expands is not None:
        data = embedding.embed(data, expansions, expands)
    return _summary(**columns), data
