"""One look at what the outbox does just now. It costs what the debt costs to count, and nothing that history costs.

Rates are made of it in core/activity.py.
"""

from dataclasses import replace
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import class_row, dict_row

from outbox.core.activity import RATE_SECONDS, ConfigLook, Daemon, Look, Tries
from outbox.postgres.figures import DEBT, STANDING

TRY_SECONDS = 60
"""How far back tries are looked at: one that ended within the last RATE_SECONDS began later, unless it was endless."""

_MOST_TRIES = 20_000
"""Tries that a look reads, shared out among the configs."""
_LEAST_EACH, _MOST_EACH = 20, 2000

# What is in hand has a due_at in the future, its lease: only such rows are read, the rest is in the index.
_CONFIGS = f"""
, in_hand as (
    select d.config_id, count(*) as in_flight from outbox.deliveries as d
    where d.state = 'pending' and d.due_at > now() and d.leased group by d.config_id
)
select {STANDING}, coalesce(h.in_flight, 0) as in_flight
from debt left join in_hand as h on h.config_id = debt.id
"""  # noqa: S608 - our own words

# The newest tries of each config: two short walks of an index for each. The tempting `… where at > now() - '10 s' group
# by config_id` has no index that begins with the time, so it reads all tries of the day; and at 10,000 tries a second
# even the last minute is too much to read, hence the limit. The upper bound spares the partitions of coming days.
_TRIES = """
with config as materialized (
    select c.id from outbox.postback_configs as c where c.deleted_at is null
), share as materialized (
    select greatest(%(least)s, least(%(most)s, %(all)s / greatest(1, count(*)))) as rows from config
)
select c.id, t.*, (select rows from share) as most
from config as c
cross join lateral (
    select
        count(*) filter (where t.delivered)::int as delivered,
        count(*) filter (where t.delivered and t.recent)::int as delivered_recent,
        extract(epoch from now() - min(t.at) filter (where t.delivered))::float8 as delivered_span,
        count(*) filter (where not t.delivered)::int as failed,
        count(*) filter (where not t.delivered and t.recent)::int as failed_recent,
        extract(epoch from now() - min(t.at) filter (where not t.delivered))::float8 as failed_span,
        percentile_disc(0.95) within group (order by t.duration_ms) as p95_ms
    from (
        select n.*, n.at + make_interval(secs => n.duration_ms / 1000.0) > now() - make_interval(secs => %(rate)s)
            as recent
        from (
            (
                select true as delivered, a.at, a.duration_ms from outbox.attempts as a
                where a.config_id = c.id and a.outcome = 'delivered'
                    and a.at > now() - make_interval(secs => %(back)s) and a.at < now() + interval '1 minute'
                order by a.at desc limit (select rows from share)
            )
            union all
            (
                select false, a.at, a.duration_ms from outbox.attempts as a
                where a.config_id = c.id and a.outcome <> 'delivered'
                    and a.at > now() - make_interval(secs => %(back)s) and a.at < now() + interval '1 minute'
                order by a.at desc limit (select rows from share)
            )
        ) as n
    ) as t
    having count(*) > 0
) as t
"""

# An event's id begins with its seq. The sequence itself is not for readers, and the tempting count of events grows with
# the history.
_WHOLE = """
select extract(epoch from now())::float8 as at, o.unrouted, o.last_seq, o.oldest_unrouted_s,
    (select e.id from outbox.events as e order by e.id desc limit 1) as last_event
from (
    select count(*) as unrouted, max(o.seq) as last_seq,
        greatest(0, coalesce(extract(epoch from now() - min(o.created_at)), 0))::float8 as oldest_unrouted_s
    from outbox.outbox as o
) as o
"""

# Each process that dispatches has one connection to fetch with. It has the DSN's own name where that gives one.
_DAEMONS = """
select a.pid, host(a.client_addr) as host, a.backend_start as since from pg_stat_activity as a
where a.datname = current_database() and a.pid <> pg_backend_pid()
    and (a.application_name = 'outbox fetch' or a.application_name = %(name)s)
order by a.client_addr nulls first, a.backend_start, a.pid
"""


async def look(conn: AsyncConnection, *, application_name: str | None = None) -> Look:
    """Look at the outbox, in four statements. Each is planned anew: the plan for an empty table reads a full one whole.

    `application_name`: what the DSN calls its connections, the daemon's too; None where it says nothing.
    """
    async with conn.cursor(row_factory=class_row(ConfigLook)) as cursor:
        await cursor.execute((DEBT + _CONFIGS).encode(), prepare=False)
        configs = await cursor.fetchall()
    connected = await daemons(conn, application_name=application_name)
    tried = await _tries(conn)
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_WHOLE.encode(), prepare=False)
        [whole] = await cursor.fetchall()
    last_event = whole.pop("last_event")
    last_routed = 0 if last_event is None else captured_seq(last_event)
    return Look(
        captured=max(whole.pop("last_seq") or 0, last_routed),
        configs=tuple(_with_tries(each, tried) for each in configs),
        daemons=tuple(connected),
        **whole,
    )


async def daemons(conn: AsyncConnection, *, application_name: str | None) -> list[Daemon]:
    """Return the processes that fetch from this database. `application_name`: see `look`."""
    async with conn.cursor(row_factory=class_row(Daemon)) as cursor:
        await cursor.execute(_DAEMONS.encode(), {"name": application_name}, prepare=False)
        return await cursor.fetchall()


def captured_seq(event_id: UUID) -> int:
    """Return the number that a change had in outbox.outbox: the id's first 60 bits, without the version."""
    return event_id.int >> 80 << 12 | event_id.int >> 64 & 0xFFF


async def _tries(conn: AsyncConnection) -> dict[UUID, tuple[Tries, Tries, int]]:
    """Return the delivered and the failed tries of each config that made one of late, and their p95 in ms."""
    cursor = await conn.execute(
        _TRIES.encode(),
        {
            "least": _LEAST_EACH, "most": _MOST_EACH, "all": _MOST_TRIES, "rate": RATE_SECONDS, "back": TRY_SECONDS,
        },
        prepare=False,
    )  # fmt: skip
    found = {}
    for config_id, *counts, p95_ms, most in await cursor.fetchall():
        delivered, failed = (
            Tries(count, recent, span if count >= most else None) for count, recent, span in (counts[:3], counts[3:])
        )
        found[config_id] = delivered, failed, p95_ms
    return found


def _with_tries(config: ConfigLook, tried: dict[UUID, tuple[Tries, Tries, int]]) -> ConfigLook:
    if config.id not in tried:
        return config
    delivered, failed, p95_ms = tried[config.id]
    return replace(config, delivered=delivered, failed=failed, p95_ms=p95_ms)
