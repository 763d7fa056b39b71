"""The claim of governed configs: those with strict order, a rate limit or an open circuit. All others are in queue.py.

Apart, so that it costs nothing where there are none, and the common claim stays as simple as it is.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import LiteralString

from psycopg import AsyncConnection

from outbox.core.model import ConfigId, Delivery
from outbox.postgres.arrays import array, numbers
from outbox.postgres.circuits import FIRST_PROBE_SECONDS, LONGEST_PROBE_SECONDS
from outbox.postgres.queue import Claimed, in_utc
from outbox.postgres.routing import ID_BEGINS
from outbox.postgres.statements import statement

CONFIGS_AT_ONCE = 50
"""Configs that one claim serves: of a thousand the next fifty are served by the next claim."""

LOOKED_AT = 500
"""Due deliveries of a config with strict order that one claim looks at, for those whose turn it is."""

PARKED_SECONDS = 60.0
"""How long a delivery is put off at least whose record has two changes or more before it, or a dead one that holds it.

It is due sooner by its turn.
"""

PARKED_LONGEST = 600.0
"""And at most. In between it is put off for as long again as it has waited: a million behind a dead one cost little."""

# A clock that was put back: a bucket filled, or a probe put off, in what is now the future, is full, or due.
_BUCKET: LiteralString = """
select case
    when s.refilled_at > now() + interval '1 minute' then c.rate_limit
    else least(c.rate_limit, s.tokens + c.rate_limit * extract(epoch from now() - s.refilled_at))
end as tokens
"""

# Deliveries of a record are in order when each goes only after all earlier ones are gone. "Earlier" is by the event's
# id, which begins with the seq: two transactions that change one record take turns at its row, so its changes are
# captured in the order in which they were made. There are two places where an earlier change can be: in
# `deliveries`, or still in `outbox`, when another daemon has it in an uncommitted route. One snapshot sees it in one of
# the two for certain. So nothing goes that is not older than all that waits to be routed. That is not looked for below
# `low` while all who have `passed` it are under way: it would be read through all that a large transaction captures.
#
# What is blocked is parked: due later, or every claim would look at it again. Its turn comes when the settle of the
# one before it makes it due. The first in line is parked for a second only, because a settle may not have seen it. Only
# what a settle would free is parked for longer than the least: not what was tried before, and not the first in line,
# whose dead one may be pruned, or hold nothing any more.
#
# A rate limit is a bucket of tokens in the config's state, an open circuit a bucket with one token for each
# probe. The row is locked, so that daemons share the bucket; who does not get it has nothing to do there.
#
# `due_at = s.due_at` is the fence: what was seen by the snapshot may be another daemon's, or parked or freed, by now.
#
# The tempting `config_id = … and order_key = … and state = … and event_id < …` would let a planner that has seen one
# hot record, or nothing, take another index, and read all that the config owes for each of its deliveries.
# Only one index has the order that is asked for here. And `state = 'pending'`, where a delivery's own row is asked for,
# would offer it the index of what is due, where thousands are due at the same moment.
#
# Nothing is locked, and nothing looked at, of a circuit whose probe is not due, and of a bucket that is empty: there
# may be a thousand. The walk over the configs ends where there are enough; the next claim goes on behind them.
_CLAIM_GOVERNED = statement(
    """
with turn as materialized (
    select c.id, c.revision, c.strict_order, c.rate_limit, c.circuit_opened_at is not null as probing,
        least(coalesce(b.room, %(room)s), case
            when c.circuit_opened_at is not null then 1
            when c.rate_limit is null then %(slots)s
            else floor(r.tokens)
        end)::integer as allowed,
        r.tokens
    from outbox.postback_configs as c
    join outbox.config_state as s on s.config_id = c.id
    cross join lateral ({bucket}) as r
    left join unnest(%(busy)s::uuid[], %(rooms)s::integer[]) as b (id, room) on b.id = c.id
    where c.governed and c.is_active and c.paused_at is null and c.deleted_at is null and c.id > %(after)s
        and case
            when c.circuit_opened_at is not null
                then s.probe_at <= now() or s.probe_at > now() + make_interval(secs => 2 * %(longest_probe)s)
            else c.rate_limit is null or r.tokens >= 1
        end
        and exists (
            select from outbox.deliveries as d where d.state = 'pending' and d.config_id = c.id and d.due_at <= now()
        )
    order by c.id limit %(configs)s
    for no key update of s skip locked
), seen as materialized (
    select t.id as config_id, t.allowed, d.event_id, d.due_at, d.ordered, d.earlier, d.wait_until
    from turn as t
    cross join lateral (
        select d.event_id, d.due_at, t.strict_order <> 'off' and d.order_key is not null as ordered,
            before.earlier, before.wait_until
        from (
            select d.event_id, d.event_created_at, d.due_at, d.order_key, d.attempts = d.attempts_uncounted as untried
            from outbox.deliveries as d
            where d.state = 'pending' and d.config_id = t.id and d.due_at <= now()
            order by d.due_at limit case when t.strict_order = 'off' then t.allowed else %(looked_at)s end
        ) as d
        cross join lateral (
            select count(*) as earlier,
                case
                    when count(*) filter (where not p.dead) > 1 and d.untried then now() + least(
                        make_interval(secs => %(parked_longest)s),
                        greatest(make_interval(secs => %(parked)s), now() - d.event_created_at)
                    )
                    when count(*) > 1 or bool_or(p.dead) then now() + make_interval(secs => %(parked)s)
                    else least(
                        greatest(max(p.due_at) filter (where not p.leased), now() + interval '1 second'),
                        now() + make_interval(secs => %(parked)s)
                    )
                end as wait_until
            from (
                (
                    select e.due_at, e.leased, false as dead from outbox.deliveries as e
                    where t.strict_order <> 'off' and e.order_key is not null
                        and (e.config_id, e.order_key, e.state) >= (t.id, d.order_key, 'pending')
                        and (e.config_id, e.order_key, e.state, e.event_id)
                            < (t.id, d.order_key, 'pending', d.event_id)
                    order by e.config_id, e.order_key, e.state, e.event_id limit 2
                )
                union all
                (
                    select e.due_at, false, true from outbox.deliveries as e
                    where t.strict_order = 'hold' and e.order_key is not null
                        and (e.config_id, e.order_key, e.state) >= (t.id, d.order_key, 'dead')
                        and (e.config_id, e.order_key, e.state, e.event_id)
                            < (t.id, d.order_key, 'dead', d.event_id)
                    order by e.config_id, e.order_key, e.state, e.event_id limit 1
                )
            ) as p
        ) as before
    ) as d
    where t.allowed > 0
), chosen as materialized (
    select f.config_id, f.event_id, f.due_at
    from (
        select s.*, row_number() over (partition by s.config_id order by s.due_at, s.event_id) as place
        from seen as s
        where s.earlier = 0 and (not s.ordered or s.event_id < coalesce(
            (
                select (
                    {id_begins} || '0000000000000000'
                )::uuid
                from outbox.outbox as o
                where o.seq > case when not exists (
                    select from unnest(%(passed)s::text[]) as p (xid)
                    where pg_visible_in_snapshot(p.xid::xid8, pg_current_snapshot())
                ) then %(low)s else 0 end
            ), 'ffffffff-ffff-ffff-ffff-ffffffffffff'
        ))
    ) as f
    where f.place <= f.allowed
    order by f.place, f.due_at limit %(slots)s
), picked as materialized (
    select d.row, s.config_id from chosen as s
    cross join lateral (
        select d.ctid as row from outbox.deliveries as d
        where d.event_id = s.event_id and d.config_id = s.config_id and d.state <> 'dead' and d.due_at = s.due_at
        for no key update of d skip locked
    ) as d
), blocked as materialized (
    select d.row, s.wait_until from seen as s
    cross join lateral (
        select d.ctid as row from outbox.deliveries as d
        where d.event_id = s.event_id and d.config_id = s.config_id and d.state <> 'dead' and d.due_at = s.due_at
        for no key update of d skip locked
    ) as d
    where s.earlier > 0
), parked as (
    update outbox.deliveries as d set due_at = b.wait_until, leased = false,
        attempts_uncounted = d.attempts_uncounted + d.leased::integer
    from blocked as b where d.ctid = b.row
), claimed as (
    update outbox.deliveries as d
    set attempts = d.attempts + 1, leased = true, due_at = now() + make_interval(secs => %(lease)s),
        attempts_uncounted = d.attempts_uncounted + d.leased::integer
    from picked as p where d.ctid = p.row
    returning d.event_id, d.config_id, d.event_created_at, d.attempts, d.attempts_uncounted
), spent as (
    update outbox.config_state as s
    set tokens = case
            when t.rate_limit is null then s.tokens
            else t.tokens - n.tries
        end,
        refilled_at = now(),
        probes = s.probes + t.probing::integer,
        probe_at = case when t.probing then now() + make_interval(
            secs => least(%(longest_probe)s, %(first_probe)s * 2 ^ least(s.probes, 20))
        ) else s.probe_at end
    from (select p.config_id, count(*) as tries from picked as p group by p.config_id) as n
    join turn as t on t.id = n.config_id
    where s.config_id = n.config_id
)
select now(), (
        select t.id::text from turn as t where (select count(*) from turn) = %(configs)s order by t.id desc limit 1
    ) as walked_to,
    case when not exists (select from picked) then (
        select min((1 - r.tokens) / c.rate_limit)::float8
        from outbox.postback_configs as c
        join outbox.config_state as s on s.config_id = c.id
        cross join lateral ({bucket}) as r
        where c.governed and c.is_active and c.paused_at is null and c.deleted_at is null
            and c.rate_limit is not null and c.circuit_opened_at is null and r.tokens < 1
            and exists (
                select from outbox.deliveries as w
                where w.state = 'pending' and w.config_id = c.id and w.due_at <= now()
            )
    ) end as refilled_in,
    (select extract(epoch from min(b.wait_until) - now()) from blocked as b)::float8 as parked_for,
    exists (
        select from seen as s group by s.config_id having count(*) >= least(min(s.allowed), %(looked_at)s)
    ) as cut_short,
    c.event_id::text, c.config_id::text, c.attempts, c.attempts_uncounted, c.event_created_at, t.revision,
    e.type, e.resource, e.data::text, e.expansions::text, e.traceparent
from (select 1) as one
left join (claimed as c join turn as t on t.id = c.config_id) on true
left join lateral (
    select e.type, e.resource, e.data, e.expansions, e.traceparent from outbox.events as e
    where e.id = c.event_id and e.created_at = c.event_created_at
) as e on true
""".replace("{id_begins}", ID_BEGINS.replace("{seq}", "min(o.seq)")).replace("{bucket}", _BUCKET)
)

# The rows that a claim locks. One for each config that is governed, and none for the others.
_PREPARE = statement("""
with missing as (
    insert into outbox.config_state (config_id, tokens)
    select c.id, coalesce(c.rate_limit, 1) from outbox.postback_configs as c
    where c.governed and c.is_active and c.paused_at is null and c.deleted_at is null
        and not exists (select from outbox.config_state as s where s.config_id = c.id)
    on conflict (config_id) do nothing
)
select
    exists (
        select from outbox.postback_configs as c
        where c.governed and c.is_active and c.paused_at is null and c.deleted_at is null
    ),
    exists (
        select from outbox.postback_configs as c
        where c.governed and c.is_active and c.paused_at is null and c.deleted_at is null and c.strict_order <> 'off'
    )
""")


@dataclass(frozen=True, slots=True)
class Governed(Claimed):
    """What a claim of governed configs leased to us."""

    walked_to: ConfigId | None
    """The last config that was served, where the walk ended before the last of all."""
    refilled_in: float | None
    """Seconds until something that is due may go, where nothing may, by its config's rate limit; None: by no such."""
    parked_for: float | None
    """Seconds after which something that was found blocked is due again; None where nothing was found so."""
    cut_short: bool
    """Whether a config may have more that is due than was looked at, or than it was allowed."""


async def prepare(conn: AsyncConnection) -> tuple[bool, bool]:
    """Return whether there is a governed config that sends, and whether one in strict order.

    New ones are made ready to be claimed.
    """
    row = await (await conn.execute(_PREPARE)).fetchone()
    return row or (False, False)


async def claim_governed(
    conn: AsyncConnection,
    *,
    after: ConfigId,
    slots: int,
    room: int,
    rooms: Mapping[ConfigId, int],
    lease: float,
    hidden: tuple[int, Collection[int]] = (0, ()),
    configs: int = CONFIGS_AT_ONCE,
) -> Governed:
    """Lease up to `slots` due deliveries of governed configs for `lease` seconds, as their rules allow.

    It walks the configs whose id is above `after`, and serves at most `configs` of them. `hidden`: see LowWater.
    """
    low, passed = hidden
    cursor = await conn.execute(
        _CLAIM_GOVERNED,
        {
            "after": after, "configs": configs,
            "slots": slots, "room": room, "lease": lease, "busy": array(rooms), "rooms": numbers(rooms.values()),
            "looked_at": LOOKED_AT, "parked": PARKED_SECONDS, "parked_longest": PARKED_LONGEST,
            "low": low, "passed": [str(each) for each in passed],
            "first_probe": FIRST_PROBE_SECONDS, "longest_probe": LONGEST_PROBE_SECONDS,
        },
        binary=True,
    )  # fmt: skip
    found = await cursor.fetchall()
    now, walked_to, refilled_in, parked_for, cut_short = found[0][:5]
    deliveries = [Delivery._make(row[5:]) for row in found if row[5] is not None]
    return Governed(deliveries, in_utc(now), walked_to, refilled_in, parked_for, cut_short)
