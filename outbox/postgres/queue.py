"""The queue: route, claim, settle, release. Each handles many rows in one statement; each says why it is so.

Only the database's now() decides when something is due. No statement here holds a transaction open over a POST.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, assert_never
from uuid import UUID

from psycopg import AsyncConnection

from outbox.core.model import Attempt, Dead, Delivered, Delivery, Outcome, Retry

# Route: outbox rows become events and their deliveries, in one statement, so that a crash loses or doubles nothing.
#
# The tempting `delete … where seq in (select … limit n for update skip locked)` may run its subquery twice and take
# more than n: the materialized CTE is run once. `low` skips what was taken since: while somebody holds a snapshot
# open, all taken rows are still in the index, and a scan from its beginning would read them each time.
#
# The event's id carries seq in its first 60 bits (ids sort by capture) and 62 random ones (never the same id twice,
# also after a restored backup set the sequence back). The first `slots` deliveries, at most `room` per config, are
# leased at once and come back ready to send: the happy path is insert, delete, log, and no update.
_ROUTE = """
with taken as materialized (
    select o.seq from outbox.outbox as o
    where o.seq > %(low)s order by o.seq limit %(rows)s
    for no key update skip locked
), removed as (
    delete from outbox.outbox as o using taken as t where o.seq = t.seq
    returning o.seq, o.created_at, o.type, o.resource, o.resource_id, o.location_id, o.product_transaction_id, o.data
), named as materialized (
    select r.*, (
        lpad(to_hex(r.seq >> 12), 12, '0') || '8' || lpad(to_hex(r.seq & 4095), 3, '0')
        || substr(gen_random_uuid()::text, 20)
    )::uuid as id
    from removed as r
), kept as (
    insert into outbox.events
        (id, created_at, type, resource, resource_id, location_id, product_transaction_id, data)
    select n.id, n.created_at, n.type, n.resource, n.resource_id, n.location_id, n.product_transaction_id, n.data
    from named as n
), matched as materialized (
    select n.seq, n.id as event_id, c.id as config_id, n.created_at, c.revision, c.paused_at is null as sends,
        row_number() over (partition by c.id order by n.seq) as place
    from named as n
    cross join lateral (
        select c.id, c.revision, c.paused_at from outbox.postback_configs as c
        where c.resource = n.resource and c.is_active and c.deleted_at is null
            and (c.location_id is null or c.location_id = n.location_id)
            and (c.product_transaction_id is null or c.product_transaction_id = n.product_transaction_id)
            and case n.type when 'CREATE' then c.on_create when 'UPDATE' then c.on_update else c.on_delete end
    ) as c
), leased as materialized (
    select m.event_id, m.config_id from matched as m
    left join unnest(%(busy)s::uuid[], %(rooms)s::integer[]) as b (config_id, room) using (config_id)
    where m.sends and m.place <= coalesce(b.room, %(room)s)
    order by m.place, m.seq limit %(slots)s
), owed as (
    insert into outbox.deliveries (event_id, config_id, event_created_at, attempts, leased, due_at)
    select m.event_id, m.config_id, m.created_at, (l.event_id is not null)::integer, l.event_id is not null,
        now() + case when l.event_id is null then interval '0' else make_interval(secs => %(lease)s) end
    from matched as m left join leased as l using (event_id, config_id)
    order by m.event_id, m.config_id
)
select (select count(*) from named)::integer as routed, (select max(seq) from named) as seq,
    l.event_id, l.config_id, 1 as attempts, 0 as attempts_uncounted, n.created_at, m.revision, n.type,
    n.resource, n.data::text
from (select 1) as one
left join leased as l on true
left join matched as m using (event_id, config_id)
left join named as n on n.id = l.event_id
"""

# Claim: due deliveries, fair over configs.
#
# The tempting query, `order by due_at limit n … and config_id <> all (busy)`, reads through all that the busy configs
# owe before it finds another's. This one walks the partial index config by config: one probe for each that owes
# anything, then a few rows of each. It begins after the config that was served last, and what it does not need is
# never read, so its cost follows the number of indebted configs and not the size of the debt.
_CLAIM = """
with recursive indebted (config_id) as (
    (
        select d.config_id from outbox.deliveries as d
        where d.state = 'pending' and d.config_id > %(after)s order by d.config_id limit 1
    )
    union all
    select (
        select d.config_id from outbox.deliveries as d
        where d.state = 'pending' and d.config_id > i.config_id order by d.config_id limit 1
    )
    from indebted as i where i.config_id is not null
), picked as materialized (
    select d.event_id, d.config_id, c.revision
    from indebted as i
    join outbox.postback_configs as c
        on c.id = i.config_id and c.is_active and c.paused_at is null and c.deleted_at is null
    cross join lateral (
        select d.event_id, d.config_id from outbox.deliveries as d
        where d.state = 'pending' and d.config_id = i.config_id and d.due_at <= now()
        order by d.due_at
        limit (
            select coalesce(
                (
                    select b.room from unnest(%(busy)s::uuid[], %(rooms)s::integer[]) as b (id, room)
                    where b.id = i.config_id
                ), %(room)s
            )
        )
        for no key update skip locked
    ) as d
    limit %(slots)s
), claimed as (
    update outbox.deliveries as d
    set attempts = d.attempts + 1, leased = true, due_at = now() + make_interval(secs => %(lease)s),
        -- Still leased: its claimer died. The outcome of that try is unknown, so it is repeated and uses up nothing.
        attempts_uncounted = d.attempts_uncounted + d.leased::integer
    from picked as p where d.event_id = p.event_id and d.config_id = p.config_id
    returning d.event_id, d.config_id, d.event_created_at, d.attempts, d.attempts_uncounted, p.revision
)
select event_id, config_id, attempts, attempts_uncounted, event_created_at, revision, type, resource, data from (
    select c.*, e.type, e.resource, e.data::text as data
    from claimed as c
    left join lateral (
        select e.type, e.resource, e.data from outbox.events as e
        where e.id = c.event_id and e.created_at = c.event_created_at
    ) as e on true
) as ready
"""

# Settle: many outcomes in one statement. Each is fenced by its attempt: a delivery that was claimed again since has
# another number, and nothing of it is changed; the try is logged all the same. Rows are locked in the order of their
# key, so that two that settle can not wait for each other.
_SETTLE = """
with outcome as materialized (
    select * from unnest(
        %(event)s::uuid[], %(config)s::uuid[], %(number)s::integer[], %(outcome)s::text[], %(after)s::integer[],
        %(reason)s::text[], %(status)s::smallint[], %(answer)s::text[], %(duration)s::integer[],
        %(age)s::float8[], %(created)s::timestamptz[]
    ) as o (event_id, config_id, number, outcome, after, reason, status, answer, duration_ms, age, created_at)
), held as materialized (
    -- The wait counts from the end of the try, also when the database was away since.
    select d.event_id, d.config_id, o.outcome, o.reason,
        now() + make_interval(secs => o.after - o.age + o.duration_ms / 1000.0) as due_at
    from outcome as o join outbox.deliveries as d
        on d.event_id = o.event_id and d.config_id = o.config_id and d.attempts = o.number and d.state = 'pending'
    order by d.event_id, d.config_id
    for no key update of d
), acknowledged as (
    delete from outbox.deliveries as d using held as h
    where d.event_id = h.event_id and d.config_id = h.config_id and h.outcome = 'delivered'
), repeated as (
    update outbox.deliveries as d
    set due_at = h.due_at, last_error = h.reason, leased = false,
        state = case when h.outcome = 'dead' then 'dead' else 'pending' end,
        died_at = case when h.outcome = 'dead' then now() end
    from held as h
    where d.event_id = h.event_id and d.config_id = h.config_id and h.outcome <> 'delivered'
), logged as (
    insert into outbox.attempts
        (event_id, config_id, number, at, event_created_at, duration_ms, outcome, status, error, answer)
    select o.event_id, o.config_id, o.number, now() - make_interval(secs => o.age),
        o.created_at, o.duration_ms, o.outcome, o.status, o.reason, o.answer
    from outcome as o
)
select o.event_id, o.config_id, o.number from outcome as o
where not exists (select from held as h where h.event_id = o.event_id and h.config_id = o.config_id)
"""

# Release: gives claimed deliveries back, untried. Fenced like a settle.
_RELEASE = """
update outbox.deliveries as d
set attempts = d.attempts - 1, leased = false, due_at = now() + make_interval(secs => %(after)s)
from unnest(%(event)s::uuid[], %(config)s::uuid[], %(number)s::integer[]) as r (event_id, config_id, number)
where d.event_id = r.event_id and d.config_id = r.config_id and d.attempts = r.number and d.state = 'pending'
"""


async def route(
    conn: AsyncConnection,
    *,
    low: int,
    rows: int,
    slots: int,
    room: int,
    rooms: Mapping[UUID, int],
    lease: float,
) -> tuple[int, int | None, list[Delivery]]:
    """Turn up to `rows` outbox rows above `low` into events and deliveries.

    Returns how many were routed, the highest seq among them, and the deliveries leased to us: at most `slots`,
    at most `rooms[config]` or else `room` of one config, for `lease` seconds.
    """
    cursor = await conn.execute(
        _ROUTE.encode(),
        {
            "low": low, "rows": rows, "slots": slots, "room": room, "lease": lease,
            "busy": list(rooms), "rooms": list(rooms.values()),
        },
    )  # fmt: skip
    found = await cursor.fetchall()
    routed, seq = found[0][:2]
    return routed, seq, [Delivery(*row[2:]) for row in found if row[2] is not None]


async def claim(
    conn: AsyncConnection, *, after: UUID, slots: int, room: int, rooms: Mapping[UUID, int], lease: float
) -> list[Delivery]:
    """Lease up to `slots` due deliveries for `lease` seconds, walking the configs whose id is above `after`."""
    cursor = await conn.execute(
        _CLAIM.encode(),
        {
            "after": after, "slots": slots, "room": room, "lease": lease,
            "busy": list(rooms), "rooms": list(rooms.values()),
        },
    )  # fmt: skip
    return [Delivery(*row) for row in await cursor.fetchall()]


async def settle(conn: AsyncConnection, attempts: Sequence[Attempt], *, clock: float) -> list[tuple[UUID, UUID, int]]:
    """Record finished tries. `clock`: the monotonic clock now.

    Returns those whose lease was lost (event, config, attempt): they changed no delivery.
    """
    columns: dict[str, list[Any]] = {
        "event": [], "config": [], "number": [], "outcome": [], "after": [], "reason": [],
        "status": [], "answer": [], "duration": [], "age": [], "created": [],
    }  # fmt: skip
    for attempt in attempts:
        name, after, reason = _outcome_columns(attempt.outcome)
        columns["event"].append(attempt.delivery.event_id)
        columns["config"].append(attempt.delivery.config_id)
        columns["number"].append(attempt.delivery.attempt)
        columns["outcome"].append(name)
        columns["after"].append(after)
        columns["reason"].append(_storable(reason))
        columns["status"].append(attempt.status)
        columns["answer"].append(_storable(attempt.answer.decode("utf-8", "replace")) or None)
        columns["duration"].append(attempt.duration_ms)
        columns["created"].append(attempt.delivery.event_created_at)
        columns["age"].append(clock - attempt.started_at)
    cursor = await conn.execute(_SETTLE.encode(), columns)
    return await cursor.fetchall()


async def release(conn: AsyncConnection, deliveries: Iterable[Delivery], *, after: float = 0) -> int:
    """Give claimed deliveries back untried, due in `after` seconds. Returns how many were still ours."""
    given = list(deliveries)
    cursor = await conn.execute(
        _RELEASE.encode(),
        {
            "event": [delivery.event_id for delivery in given],
            "config": [delivery.config_id for delivery in given],
            "number": [delivery.attempt for delivery in given],
            "after": after,
        },
    )
    return cursor.rowcount


def _outcome_columns(outcome: Outcome) -> tuple[str, int, str | None]:
    match outcome:
        case Delivered():
            return "delivered", 0, None
        case Retry():
            return "retry", outcome.after, outcome.reason
        case Dead():
            return "dead", 0, outcome.reason
        case _:
            assert_never(outcome)


def _storable(text: str | None) -> str | None:
    """Replace what PostgreSQL's text can not hold; a subscriber chooses these bytes."""
    return None if text is None else text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
