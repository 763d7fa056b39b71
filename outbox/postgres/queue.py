"""The queue: claim, settle, release. Each handles many rows in one statement; each says why it is so.

Only the database's now() decides when something is due. No statement here holds a transaction open over a POST.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from psycopg import AsyncConnection

from outbox.core.model import Attempt, ConfigId, Delivery, Retry
from outbox.postgres.arrays import array, microseconds, numbers, texts, times
from outbox.postgres.statements import statement

# Claim: due deliveries, fair over configs.
#
# The tempting query, `order by due_at limit n … and config_id <> all (busy)`, reads through all that the busy configs
# owe before it finds another's. This one walks the partial index config by config: one probe for each that owes
# anything, then a few rows of each. It begins after the config that was served last, and what it does not need is
# never read, so its cost follows the number of indebted configs and not the size of the debt.
#
# While somebody holds a snapshot open, all that was delivered is still in the index, below what is due: a probe that
# comes to such a config reads through it, and a look at what is due does so again. So those that were just served
# (`served`, in the order of their ids) are steps of the walk without a probe, and each is looked at from `since` on.
_CLAIM = statement("""
with recursive indebted (config_id, place, next_place) as (
    select %(after)s::uuid, null::integer, 1
    union all
    select coalesce(f.config_id, (%(served)s::uuid[])[i.next_place]),
        case when f.config_id is null then i.next_place else 0 end,
        case when f.config_id is null then i.next_place + 1 else i.next_place end
    from indebted as i
    cross join lateral (
        select (
            select d.config_id from outbox.deliveries as d
            where d.state = 'pending' and d.config_id > i.config_id
                and d.config_id < coalesce(
                    (%(served)s::uuid[])[i.next_place], 'ffffffff-ffff-ffff-ffff-ffffffffffff'
                )
            order by d.config_id limit 1
        ) as config_id
    ) as f
    where i.config_id is not null
), picked as materialized (
    select d.row, d.due_at, c.revision
    from indebted as i
    -- Not a plain join: the planner could begin with the configs, and serve them in another order than the walk's.
    cross join lateral (
        select c.revision from outbox.postback_configs as c
        where c.id = i.config_id and c.is_active and c.paused_at is null and c.deleted_at is null and not c.governed
        offset 0
    ) as c
    cross join lateral (
        select d.ctid as row, d.due_at from outbox.deliveries as d
        where d.state = 'pending' and d.config_id = i.config_id and d.due_at <= now()
            and d.due_at >= coalesce((%(since)s::timestamptz[])[i.place], '-infinity')
        order by d.due_at
        limit coalesce((%(rooms)s::integer[])[i.place], %(room)s)
        for no key update skip locked
    ) as d
    where i.place is not null
    limit %(slots)s
), claimed as (
    update outbox.deliveries as d
    set attempts = d.attempts + 1, leased = true, due_at = now() + make_interval(secs => %(lease)s),
        -- Still leased: its claimer died. The outcome of that try is unknown, so it is repeated and uses up nothing.
        attempts_uncounted = d.attempts_uncounted + d.leased::integer
    from picked as p where d.ctid = p.row
    returning d.event_id, d.config_id, d.event_created_at, d.attempts, d.attempts_uncounted, p.revision,
        greatest(p.due_at, timestamptz '2000-01-01') as was_due_at  -- -infinity is no time in Python
)
select now(), was_due_at, event_id::text, config_id::text, attempts, attempts_uncounted, event_created_at, revision,
    type, resource, data, expansions, traceparent
from (
    select c.*, e.type, e.resource, e.data::text as data, e.expansions::text as expansions, e.traceparent
    from claimed as c
    left join lateral (
        select e.type, e.resource, e.data, e.expansions, e.traceparent from outbox.events as e
        where e.id = c.event_id and e.created_at = c.event_created_at
    ) as e on true
) as ready
""")

# Settle: many outcomes in one statement. Each is fenced by its attempt and its lease: a delivery that was claimed,
# released or replayed since has another number or no lease, and nothing of it is changed; the try is logged all the
# same. Rows are locked in the order of their key, so that two that settle can not wait for each other. A settle whose
# answer was lost is repeated as it was: the second time changes nothing.
_SETTLE = statement("""
with outcome as materialized (
    select o.event_id, o.config_id, o.number, o.outcome, o.after, o.reason, o.status, o.answer, o.duration_ms, o.place,
        timestamptz 'epoch' + o.at * interval '1 microsecond' as at,
        timestamptz 'epoch' + o.created_at * interval '1 microsecond' as created_at
    from unnest(
        %(event)s::uuid[], %(config)s::uuid[], %(number)s::integer[], %(outcome)s::text[], %(after)s::integer[],
        %(reason)s::text[], %(status)s::smallint[], %(answer)s::text[], %(duration)s::integer[],
        %(at)s::bigint[], %(created)s::bigint[]
    ) with ordinality
        as o (event_id, config_id, number, outcome, after, reason, status, answer, duration_ms, at, created_at, place)
), held as materialized (
    -- The wait counts from the end of the try, also when the database was away since.
    --
    -- A planner that believes the table empty, as the vacuum leaves it where all was delivered, reads all of it for a
    -- join: 200 outcomes took a second with 20,000 owed. So each row is looked for by its key; and as a row that we
    -- have locked stays where it is, it is written by its place. `and d.state = 'pending'`, which `leased` implies,
    -- would offer the index of what is due.
    select o.*, d.row, d.order_key, o.at + make_interval(secs => o.after + o.duration_ms / 1000.0) as due_at
    from (select * from outcome order by event_id, config_id) as o
    cross join lateral (
        select d.ctid as row, d.order_key from outbox.deliveries as d
        where d.event_id = o.event_id and d.config_id = o.config_id and d.attempts = o.number and d.leased
        for no key update of d
    ) as d
), acknowledged as (
    delete from outbox.deliveries as d using held as h where d.ctid = h.row and h.outcome = 'delivered'
), repeated as (
    update outbox.deliveries as d
    set due_at = h.due_at, last_error = h.reason, leased = false,
        state = case when h.outcome = 'dead' then 'dead' else 'pending' end,
        died_at = case when h.outcome = 'dead' then now() end
    from held as h where d.ctid = h.row and h.outcome <> 'delivered'
), following as materialized (
    -- The next change of the same record may go, unless it waits for a retry of its own. It may be due already: parked
    -- for less time than this try took, or never seen by a claim. Then there is nothing to write, but somebody to wake.
    --
    -- The tempting `config_id = … and order_key = … and state = 'pending' and event_id > … order by event_id limit 1`
    -- would let a planner that has seen one hot record take the key of the table, and read all later deliveries for a
    -- record that has none. Only one index has the order that is asked for here. Skipping what is locked keeps the
    -- order of the locks: it is being claimed, parked or deleted, and is looked at again soon by itself.
    select d.row, d.is_parked from held as h
    cross join lateral (
        select n.event_id, n.config_id, n.order_key, n.state from outbox.deliveries as n
        where n.order_key is not null
            and (n.config_id, n.order_key, n.state, n.event_id) > (h.config_id, h.order_key, 'pending', h.event_id)
        order by n.config_id, n.order_key, n.state, n.event_id limit 1
    ) as n
    cross join lateral (
        select d.ctid as row, d.due_at > now() as is_parked from outbox.deliveries as d
        where d.event_id = n.event_id and d.config_id = n.config_id
            and not d.leased and (d.attempts = d.attempts_uncounted or d.due_at <= now())
        for no key update of d skip locked
    ) as d
    where h.order_key is not null and h.outcome <> 'retry'
        and n.config_id = h.config_id and n.order_key = h.order_key and n.state = 'pending'
), freed as (
    update outbox.deliveries as d set due_at = now() from following as f where d.ctid = f.row and f.is_parked
), logged as (
    insert into outbox.attempts
        (event_id, config_id, number, at, event_created_at, duration_ms, outcome, status, error, answer)
    select h.event_id, h.config_id, h.number, h.at, h.created_at, h.duration_ms, h.outcome, h.status, h.reason, h.answer
    from held as h
), lost as materialized (
    select o.* from outcome as o where o.place not in (select h.place from held as h)
), logged_without as (
    -- Only what is not held any more may stand there already, from the settle that this one repeats. For all of them,
    -- `on conflict` would cost a second look into the index.
    insert into outbox.attempts
        (event_id, config_id, number, at, event_created_at, duration_ms, outcome, status, error, answer)
    select l.event_id, l.config_id, l.number, l.at, l.created_at, l.duration_ms, l.outcome, l.status, l.reason, l.answer
    from lost as l
    on conflict do nothing
)
select array(select l.place from lost as l), exists (select from following)
""")

# Release: gives claimed deliveries back, untried. Fenced and ordered like a settle. One whose POST was begun keeps its
# number, which the subscriber may have seen, and uses up no try: as after a daemon that died.
_RELEASE = statement("""
with held as materialized (
    select d.row
    from (
        select * from unnest(%(event)s::uuid[], %(config)s::uuid[], %(number)s::integer[])
            as r (event_id, config_id, number)
        order by event_id, config_id
    ) as r
    cross join lateral (
        select d.ctid as row from outbox.deliveries as d
        where d.event_id = r.event_id and d.config_id = r.config_id and d.attempts = r.number and d.leased
        for no key update of d
    ) as d
)
update outbox.deliveries as d
set attempts = d.attempts - (not %(begun)s::boolean)::integer,
    attempts_uncounted = d.attempts_uncounted + %(begun)s::boolean::integer, leased = false,
    due_at = now() + make_interval(secs => %(after)s)
from held as h where d.ctid = h.row
""")


_FROM_THE_FIRST: Mapping[ConfigId, datetime] = {}


@dataclass(frozen=True, slots=True)
class Claimed:
    """What a route or a claim leased to us."""

    deliveries: list[Delivery]
    now: datetime | None
    """The database's time of the lease, in UTC; None when there is nothing."""
    reached: Mapping[ConfigId, datetime] = field(default_factory=dict, kw_only=True)
    """Up to what was due when a claim came with each of these configs."""


async def claim(
    conn: AsyncConnection,
    *,
    after: ConfigId,
    slots: int,
    room: int,
    rooms: Mapping[ConfigId, int],
    lease: float,
    since: Mapping[ConfigId, datetime] = _FROM_THE_FIRST,
) -> Claimed:
    """Lease up to `slots` due deliveries for `lease` seconds, walking the configs whose id is above `after`.

    Of those in `rooms` nothing is looked for that was due before `since[config]`.
    """
    served = sorted(config_id for config_id in rooms if config_id > after)
    cursor = await conn.execute(
        _CLAIM,
        {
            "after": after, "slots": slots, "room": room, "lease": lease, "served": array(served),
            "rooms": numbers(rooms[config_id] for config_id in served),
            "since": times(since.get(config_id) for config_id in served),
        },
        binary=True,
    )  # fmt: skip
    found = await cursor.fetchall()
    deliveries = [Delivery._make(row[2:]) for row in found]
    reached = {delivery.config_id: row[1] for delivery, row in zip(deliveries, found, strict=True)}
    return Claimed(deliveries, in_utc(found[0][0]) if found else None, reached=reached)


def in_utc(time: datetime) -> datetime:
    """Return the same moment in UTC. PostgreSQL gives it in the session's time zone, which may be a server's own.

    With summer time, adding seconds to it would go wrong: of the hour that there is twice Python takes the first.
    """
    return time.astimezone(UTC)


@dataclass(frozen=True, slots=True)
class Settled:
    """What a settle did."""

    lost: list[Attempt]
    """Those whose lease was lost: they changed no delivery."""
    freed: bool
    """Whether a later change of the same record may go now."""


async def settle(conn: AsyncConnection, attempts: Sequence[Attempt]) -> Settled:
    """Record finished tries, each once, however often it is repeated."""
    deliveries = [attempt.delivery for attempt in attempts]
    outcomes = [attempt.outcome for attempt in attempts]
    columns = {
        "event": array(delivery.webhook_id for delivery in deliveries),
        "config": array(delivery.config_id for delivery in deliveries),
        "number": numbers(delivery.attempt for delivery in deliveries),
        "outcome": array(outcome.name for outcome in outcomes),
        "after": numbers(outcome.after if isinstance(outcome, Retry) else 0 for outcome in outcomes),
        "reason": texts(outcome.reason for outcome in outcomes),
        "status": array("null" if attempt.status is None else str(attempt.status) for attempt in attempts),
        "answer": texts(attempt.answer.decode("utf-8", "replace") or None for attempt in attempts),
        "duration": numbers(attempt.duration_ms for attempt in attempts),
        "at": microseconds(attempt.at for attempt in attempts),
        "created": microseconds(delivery.event_created_at for delivery in deliveries),
    }
    cursor = await conn.execute(_SETTLE, columns)
    row = await cursor.fetchone()
    lost, freed = row or ([], False)
    return Settled([attempts[place - 1] for place in lost], freed)


async def release(
    conn: AsyncConnection, deliveries: Iterable[Delivery], *, after: float = 0, begun: bool = False
) -> int:
    """Give claimed deliveries back untried, due in `after` seconds. Returns how many were still ours.

    `begun`: their POSTs were cut off, with an outcome that nobody knows.
    """
    given = list(deliveries)
    cursor = await conn.execute(
        _RELEASE,
        {
            "event": array(delivery.webhook_id for delivery in given),
            "config": array(delivery.config_id for delivery in given),
            "number": numbers(delivery.attempt for delivery in given),
            "after": after,
            "begun": begun,
        },
    )
    return cursor.rowcount
