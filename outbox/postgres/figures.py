"""The numbers that say how the outbox fares, over all and for each config. They cost what the debt costs to count.

No history is counted here: it can hold 10^8 rows.
"""

import dataclasses
from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import class_row

from outbox.core.model import ConfigStanding


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The whole outbox at one moment. What a deleted config left behind is not owed and not counted."""

    schema_version: int
    configs: int
    unrouted: int
    """Captured changes that no daemon has taken yet."""
    pending: int
    """Deliveries still to be made: due, waiting for their next try, in hand just now, or held."""
    due: int
    """Of these, the ones that are due now, those that wait for a rate limit too; none of an open circuit."""
    held: int
    """Of these, the ones of paused and inactive configs."""
    dead: int
    oldest_due_s: float
    """For how many seconds the oldest due one has been due; 0 when none is."""
    open_circuits: int
    """Configs that get probes only."""
    disabled: int
    """Configs that were switched off because they did nothing but fail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigHealth(ConfigStanding):
    """One config: what it owes and how its last tries went. Counts as in Figures."""

    last_success_at: datetime | None
    last_failure_at: datetime | None
    last_failure: str | None


@dataclass(frozen=True, slots=True)
class ConfigDebt:
    """What one config owes. Counts as in Figures."""

    id: UUID
    pending: int
    due: int
    dead: int
    oldest_due_s: float


SETTINGS = {"max_parallel_workers_per_gather": "0", "jit": "off", "statement_timeout": "30s"}
"""What who counts again and again brings: one process, no compiling for so short a query, and an end to it."""


def shown_url(column: LiteralString) -> LiteralString:
    """Return the URL in a column without what may be secret in it (user, password, query), as an expression."""
    return rf"regexp_replace({column}, '^([^:]+://)(?:[^/?#]*@)?([^?#]*).*$', '\1\2')"


# Both partial indexes hold all that is asked of the debt. The tempting `count(*) filter (where state = …)` over the
# table reads its rows, errors and all.
DEBT = """
with owed as (
    select d.config_id, count(*) as pending, count(*) filter (where d.due_at <= now()) as ready,
        min(d.due_at) as first_due
    from outbox.deliveries as d where d.state = 'pending' group by d.config_id
), died as (
    select d.config_id, count(*) as dead from outbox.deliveries as d where d.state = 'dead' group by d.config_id
), debt as (
    select c.id, c.location_id, c.resource, c.url, c.is_active, c.paused_at is not null as is_paused,
        c.circuit_opened_at is not null as circuit_is_open, c.disabled_reason,
        coalesce(o.pending, 0) as pending, coalesce(x.dead, 0) as dead,
        case
            when c.is_active and c.paused_at is null and c.circuit_opened_at is null then coalesce(o.ready, 0) else 0
        end as due,
        case when c.is_active and c.paused_at is null then 0 else coalesce(o.pending, 0) end as held,
        case
            when c.is_active and c.paused_at is null and c.circuit_opened_at is null and o.ready > 0
                then round(extract(epoch from now() - o.first_due), 3)::float8
            else 0
        end as oldest_due_s
    from outbox.postback_configs as c
    left join owed as o on o.config_id = c.id
    left join died as x on x.config_id = c.id
    where c.deleted_at is null
)
"""

STANDING = f"""debt.id, debt.location_id, debt.resource, {shown_url("debt.url")} as url, debt.is_active,
    debt.is_paused, debt.circuit_is_open, debt.disabled_reason, debt.pending, debt.due, debt.dead, debt.oldest_due_s"""
"""What ConfigStanding has of a row of `debt`."""

_FIGURES = """
select (select max(m.version) from outbox.migrations as m) as schema_version,
    (select count(*) from outbox.outbox) as unrouted,
    count(*) as configs, coalesce(sum(pending), 0)::bigint as pending, coalesce(sum(due), 0)::bigint as due,
    coalesce(sum(held), 0)::bigint as held, coalesce(sum(dead), 0)::bigint as dead,
    coalesce(max(oldest_due_s), 0) as oldest_due_s, count(*) filter (where circuit_is_open) as open_circuits,
    count(*) filter (where disabled_reason is not null) as disabled
from debt
"""

# The last success and failure are the ends of two indexes: a probe for each config. The tempting
# `max(at) … group by config_id` reads every try of the history.
_HEALTH = f"""
select {STANDING},
    success.at as last_success_at, failure.at as last_failure_at, failure.error as last_failure
from debt
left join lateral (
    select a.at from outbox.attempts as a
    where a.config_id = debt.id and a.outcome = 'delivered' order by a.at desc limit 1
) as success on true
left join lateral (
    select a.at, a.error from outbox.attempts as a
    where a.config_id = debt.id and a.outcome <> 'delivered' order by a.at desc limit 1
) as failure on true
order by debt.location_id nulls first, debt.resource, debt.id
"""  # noqa: S608 - our own words

_NAMES = [each.name for each in dataclasses.fields(Figures)]

# The worst by either measure: one that has the most dead may have nothing due. Who is due for a moment only is not
# named at all: everyone is, now and then, and each id that is named once is a series that Prometheus keeps.
_WORST = f"""
, worst as (
    select least(
            case when debt.oldest_due_s >= %(late)s then row_number() over (order by debt.oldest_due_s desc) end,
            case when debt.dead > 0 then row_number() over (order by debt.dead desc) end
        ) as place, debt.id, debt.pending, debt.due, debt.dead, debt.oldest_due_s
    from debt
)
select {", ".join(f"f.{name}" for name in _NAMES)},
    w.id, w.pending, w.due, w.dead, w.oldest_due_s
from ({_FIGURES}) as f
left join (select * from worst where place is not null order by place, id limit %(count)s) as w on true
order by w.place, w.id
"""  # noqa: S608 - our own words


async def figures(conn: AsyncConnection) -> Figures:
    """Return the numbers of the whole outbox."""
    async with conn.cursor(row_factory=class_row(Figures)) as cursor:
        await cursor.execute((DEBT + _FIGURES).encode())
        found = await cursor.fetchone()
    assert found is not None  # noqa: S101 - an aggregate without groups has one row
    return found


async def worst(conn: AsyncConnection, count: int, *, late: float) -> tuple[Figures, list[ConfigDebt]]:
    """Return the numbers of the whole outbox, and the `count` configs that fare worst, at one moment.

    The worst have something due for `late` seconds or longer, or something dead.
    """
    cursor = await conn.execute((DEBT + _WORST).encode(), {"count": count, "late": late})
    rows = await cursor.fetchall()
    split = len(_NAMES)
    found = Figures(**dict(zip(_NAMES, rows[0][:split], strict=True)))
    return found, [ConfigDebt(*row[split:]) for row in rows if row[split] is not None]


async def config_health(conn: AsyncConnection) -> list[ConfigHealth]:
    """Return each config that is not deleted, sorted by location and resource."""
    async with conn.cursor(row_factory=class_row(ConfigHealth)) as cursor:
        await cursor.execute((DEBT + _HEALTH).encode())
        return await cursor.fetchall()
