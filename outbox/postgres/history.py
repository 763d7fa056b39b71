"""What became of the deliveries: lists of them, and one with all its tries. Reads only; replay.py sends again.

A delivery that is owed has a row in `deliveries`; a delivered one has only its tries in `attempts`. The logs can hold
10^8 rows: nothing here counts them.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Self
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import class_row, kwargs_row
from psycopg.sql import SQL

from outbox.core import expansions as embedding
from outbox.postgres.selection import Filter, Position, State, selection

_WINDOWS = (timedelta(hours=1), timedelta(days=1))
"""Where the newest deliveries of all configs are looked for first: of 1,000 configs it took 30 ms instead of 1.5 s."""


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

    @property
    def position(self) -> Position:
        """Where a list goes on after it."""
        return Position(self.state_at, self.event_id, self.config_id)


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


_SUMMARIES = """
select s.event_id, s.config_id, s.state, s.state_at, s.event_created_at, e.type, e.resource, e.resource_id,
    coalesce(d.attempts, t.number, 0) as attempts, coalesce(d.leased and d.due_at > now(), false) as in_progress,
    case when d.state = 'pending' then d.due_at end as due_at, d.last_error
from ({selection}) as s
left join outbox.deliveries as d on d.event_id = s.event_id and d.config_id = s.config_id
left join lateral (
    select e.type, e.resource, e.resource_id from outbox.events as e
    where e.id = s.event_id and e.created_at = s.event_created_at limit 1
) as e on true
left join lateral (
    select max(a.number) as number from outbox.attempts as a
    where s.state = 'delivered' and a.event_id = s.event_id and a.config_id = s.config_id
) as t on true
order by s.state_at {way}, s.event_id {way}, s.config_id {way}
"""

# One delivery. Its tries tell it from one that never was: the key's index finds them in each partition.
_ONE = """
with tried as materialized (
    select max(a.number) as number, max(a.at) filter (where a.outcome = 'delivered') as delivered_at,
        max(a.at) as at, max(a.event_created_at) as event_created_at
    from outbox.attempts as a where a.event_id = %(event)s and a.config_id = %(config)s
)
select f.event_id, f.config_id, f.state, f.state_at, f.event_created_at, e.type, e.resource, e.resource_id,
    f.attempts, f.in_progress, f.due_at, f.last_error, e.data, e.expansions,
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
    where e.id = f.event_id and e.created_at = f.event_created_at limit 1
) as e on true
"""

_TRIES = """
select a.number, a.at, a.duration_ms, a.outcome, a.status, a.error, a.answer
from outbox.attempts as a where a.event_id = %(event)s and a.config_id = %(config)s
order by a.number, a.at
"""


async def deliveries(
    conn: AsyncConnection,
    chosen: Filter,
    *,
    limit: int,
    after: Position | None = None,
    oldest_first: bool = False,
) -> list[Summary]:
    """Return up to `limit` of the chosen deliveries, newest first; the next ones with `after` the last's position."""
    if oldest_first:
        return await _read(conn, chosen, limit, after, oldest_first=True)
    if all(each is None for each in (chosen.config, chosen.event, chosen.record)):
        end = min(each for each in (chosen.until, after and after.state_at, await now(conn)) if each is not None)
        for window in _WINDOWS:
            since = end - window if chosen.since is None else max(chosen.since, end - window)
            found = await _read(conn, replace(chosen, since=since), limit, after)
            if len(found) == limit:
                return found
    return await _read(conn, chosen, limit, after)


async def count(conn: AsyncConnection, chosen: Filter, *, most: int) -> int:
    """Return how many deliveries are chosen; no more than `most` are counted."""
    keys, parameters = selection(chosen, limit=most)
    query = SQL("select count(*) from ({selection}) as s").format(selection=keys)
    row = await (await conn.execute(query, parameters, prepare=False)).fetchone()
    return int(row[0]) if row else 0


async def _read(
    conn: AsyncConnection, chosen: Filter, limit: int, after: Position | None, *, oldest_first: bool = False
) -> list[Summary]:
    keys, parameters = selection(chosen, limit=limit, after=after, oldest_first=oldest_first)
    cursor = conn.cursor(row_factory=kwargs_row(_summary))
    await cursor.execute(
        SQL(_SUMMARIES).format(selection=keys, way=SQL("asc" if oldest_first else "desc")), parameters, prepare=False
    )
    return await cursor.fetchall()


async def delivery(conn: AsyncConnection, key: DeliveryKey) -> Detail | None:
    """Return one delivery with its tries; None when there is no trace of it."""
    parameters = {"event": key.event_id, "config": key.config_id}
    async with conn.cursor(row_factory=kwargs_row(_with_data)) as cursor:
        await cursor.execute(_ONE.encode(), parameters)
        found = await cursor.fetchone()
    if found is None:
        return None
    async with conn.cursor(row_factory=class_row(Try)) as cursor:
        await cursor.execute(_TRIES.encode(), parameters)
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
