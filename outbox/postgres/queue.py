"""The queue: route, claim, settle, release. Each handles many rows in one statement; each says why it is so.

Only the database's now() decides when something is due. No statement here holds a transaction open over a POST.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import LiteralString
from uuid import UUID

from psycopg import AsyncConnection

from outbox.core.model import Attempt, Delivery, Retry

# An event's id begins with its seq: 60 bits, and the version between them, so that ids sort in the order of capture.
ID_BEGINS: LiteralString = "encode(int8send((({seq} >> 12) << 16) | 32768 | ({seq} & 4095)), 'hex')"

# Route: outbox rows become events and their deliveries, in one statement, so that a crash loses or doubles nothing.
#
# The tempting `delete … where seq in (select … limit n for update skip locked)` may run its subquery twice and take
# more than n: the materialized CTE is run once. `low` skips what was taken since: while somebody holds a snapshot
# open, all taken rows are still in the index, and a scan from its beginning would read them each time.
#
# The event's id carries seq in its first 60 bits (ids sort by capture) and 60 that nobody can guess (never the same id
# twice, also after a restored backup set the sequence back; who knows one knows no other). They are made of one random
# value for the statement: asked for row by row, it is three system calls each where PostgreSQL has no OpenSSL. The
# first `slots` deliveries, at most `room` per config, are leased at once and come back ready to send: the happy path
# is insert, delete, log, and no update.
_TAKE_THE_FIRST: LiteralString = """
taken as materialized (
    select o.seq from outbox.outbox as o
    where o.seq > %(low)s order by o.seq limit %(rows)s
    for no key update skip locked
)
"""

# Overtake: takes no more of a flood, but what stands behind it and is wanted by another config. It reads on
# from where it came to (`low`), so that each row of a flood is read once, and not each is matched with the configs but
# each kind of row among `scan`. What a config with strict order wants keeps its place, and so does what a config of the
# flood wants from its own location: of the changes of one record it should not see the last one first.
_TAKE_FROM_BEHIND: LiteralString = """
seen as materialized (
    select o.seq, o.type::text as type, o.resource, o.location_id, o.product_transaction_id
    from outbox.outbox as o where o.seq > %(low)s order by o.seq limit %(scan)s
), wanted as materialized (
    select k.* from (select distinct s.type, s.resource, s.location_id, s.product_transaction_id from seen as s) as k
    where (
        select bool_or(c.sends and not c.floods)
            and bool_and(c.strict_order = 'off' and (c.location_id is null or not c.floods))
        from (select m.*, m.id = any(%(flood)s::uuid[]) as floods from ({matching}) as m) as c
    )
), chosen as materialized (
    select s.seq from seen as s
    where (s.type, s.resource, coalesce(s.location_id, ''), coalesce(s.product_transaction_id, '')) in (
        select w.type, w.resource, coalesce(w.location_id, ''), coalesce(w.product_transaction_id, '') from wanted as w
    )
    order by s.seq limit %(rows)s
), taken as materialized (
    select o.seq from chosen as c
    cross join lateral (select o.seq from outbox.outbox as o where o.seq = c.seq for no key update skip locked) as o
)
"""
_COME_TO: LiteralString = """
select case when (select count(*) from chosen) < %(rows)s then (select max(seq) from seen) else max(c.seq) end
from chosen as c
"""
_TO_THE_END: LiteralString = """
(select count(*) from seen) < %(scan)s and (select count(*) from chosen) < %(rows)s
"""

# Two looks into the index: the tempting `location_id is null or …` may compare each event with each config.
_MATCHING: LiteralString = """
        select c.id, c.location_id, c.revision, c.paused_at is null and not c.governed as sends, c.strict_order
        from (
            select c.* from outbox.postback_configs as c
            where c.resource = {row}.resource and c.location_id = {row}.location_id
                and c.is_active and c.deleted_at is null
            union all
            select c.* from outbox.postback_configs as c
            where c.resource = {row}.resource and c.location_id is null and c.is_active and c.deleted_at is null
        ) as c
        where (c.product_transaction_id is null or c.product_transaction_id = {row}.product_transaction_id)
            and case {row}.type when 'CREATE' then c.on_create when 'UPDATE' then c.on_update else c.on_delete end
"""

_ROUTED: LiteralString = """
with {taken}, removed as (
    delete from outbox.outbox as o using taken as t where o.seq = t.seq
    returning o.seq, o.created_at, o.type::text as type, o.resource, o.resource_id, o.location_id,
        o.product_transaction_id, o.data, o.expansions, o.traceparent
), named as materialized (
    select r.*, (
        {id_begins} || '8' || left(encode(sha256(((select gen_random_uuid()::text) || r.seq)::bytea), 'hex'), 15)
    )::uuid as id
    from removed as r
), kept as (
    insert into outbox.events (
        id, created_at, type, resource, resource_id, location_id, product_transaction_id, data, expansions, traceparent
    )
    select n.id, n.created_at, n.type, n.resource, n.resource_id, n.location_id, n.product_transaction_id, n.data,
        n.expansions, n.traceparent
    from named as n
), matched as materialized (
    select n.*, c.id as config_id, c.revision,
        case when c.sends then row_number() over (partition by c.id order by n.seq) end as place,
        case when c.strict_order <> 'off' then hashtextextended(n.resource_id, 0) end as order_key
    from named as n
    cross join lateral (
        -- What a governed config is owed waits for claim_governed, which knows its rules.
{matching}    ) as c
), ranked as materialized (
    -- The first of each config come before the second of any: one that is owed much leaves slots to the others.
    select m.*, fits and row_number() over (order by fits desc, m.place, m.seq) <= %(slots)s as leased
    from (
        -- Not a join: without hashing it reads all that are busy for each row, at five times the price.
        select m.*, coalesce(m.place <= coalesce(
            (%(rooms)s::integer[])[array_position(%(busy)s::uuid[], m.config_id)], %(room)s
        ), false) as fits
        from matched as m
    ) as m
), owed as (
    insert into outbox.deliveries (event_id, config_id, event_created_at, order_key, attempts, leased, due_at)
    select r.id, r.config_id, r.created_at, r.order_key, r.leased::integer, r.leased,
        now() + case when r.leased then make_interval(secs => %(lease)s) else interval '0' end
    from ranked as r
    order by r.id, r.config_id
)
select now(), (select count(*) from named)::integer as routed, ({come_to}) as seq, {to_the_end} as to_the_end,
    (select count(*) from ranked)::integer as created,
    r.id::text, r.config_id, 1 as attempts, 0 as attempts_uncounted, r.created_at, r.revision, r.type, r.resource,
    r.data::text, r.expansions::text, r.traceparent
from (select 1) as one
left join ranked as r on r.leased
"""


def _routed(taken: LiteralString, *, come_to: LiteralString, to_the_end: LiteralString) -> bytes:
    """Return the statement that routes what `taken` chooses; `come_to`: up to where it looked; `to_the_end`: if so."""
    whole = _ROUTED.replace("{taken}", taken.replace("{matching}", _MATCHING.replace("{row}", "k")))
    whole = whole.replace("{matching}", _MATCHING.replace("{row}", "n")).replace("{come_to}", come_to)
    whole = whole.replace("{to_the_end}", to_the_end)
    return whole.replace("{id_begins}", ID_BEGINS.replace("{seq}", "r.seq")).encode()


_ROUTE = _routed(
    _TAKE_THE_FIRST, come_to="select max(seq) from named", to_the_end="(select count(*) from taken) < %(rows)s"
)
_OVERTAKE = _routed(_TAKE_FROM_BEHIND, come_to=_COME_TO, to_the_end=_TO_THE_END)

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
_CLAIM = """
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
select now(), was_due_at, event_id::text, config_id, attempts, attempts_uncounted, event_created_at, revision, type,
    resource, data, expansions, traceparent
from (
    select c.*, e.type, e.resource, e.data::text as data, e.expansions::text as expansions, e.traceparent
    from claimed as c
    left join lateral (
        select e.type, e.resource, e.data, e.expansions, e.traceparent from outbox.events as e
        where e.id = c.event_id and e.created_at = c.event_created_at
    ) as e on true
) as ready
"""

# Settle: many outcomes in one statement. Each is fenced by its attempt and its lease: a delivery that was claimed,
# released or replayed since has another number or no lease, and nothing of it is changed; the try is logged all the
# same. Rows are locked in the order of their key, so that two that settle can not wait for each other. A settle whose
# answer was lost is repeated as it was: the second time changes nothing.
_SETTLE = """
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
    -- The next change of the same record may go, unless it waits for a retry of its own.
    --
    -- The tempting `config_id = … and order_key = … and state = 'pending' and event_id > … order by event_id limit 1`
    -- would let a planner that has seen one hot record take the key of the table, and read all later deliveries for a
    -- record that has none. Only one index has the order that is asked for here. Skipping what is locked keeps the
    -- order of the locks: it is being claimed, parked or deleted, and is looked at again soon by itself.
    select d.row from held as h
    cross join lateral (
        select n.event_id, n.config_id, n.order_key, n.state from outbox.deliveries as n
        where n.order_key is not null
            and (n.config_id, n.order_key, n.state, n.event_id) > (h.config_id, h.order_key, 'pending', h.event_id)
        order by n.config_id, n.order_key, n.state, n.event_id limit 1
    ) as n
    cross join lateral (
        select d.ctid as row from outbox.deliveries as d
        where d.event_id = n.event_id and d.config_id = n.config_id
            and not d.leased and d.attempts = d.attempts_uncounted and d.due_at > now()
        for no key update of d skip locked
    ) as d
    where h.order_key is not null and h.outcome <> 'retry'
        and n.config_id = h.config_id and n.order_key = h.order_key and n.state = 'pending'
), freed as (
    update outbox.deliveries as d set due_at = now() from following as f where d.ctid = f.row
), logged as (
    insert into outbox.attempts
        (event_id, config_id, number, at, event_created_at, duration_ms, outcome, status, error, answer)
    select h.event_id, h.config_id, h.number, h.at, h.created_at, h.duration_ms, h.outcome, h.status, h.reason, h.answer
    from held as h
), logged_without as (
    -- Only what is not held any more may stand there already, from the settle that this one repeats. For all of them,
    -- `on conflict` would cost a second look into the index.
    insert into outbox.attempts
        (event_id, config_id, number, at, event_created_at, duration_ms, outcome, status, error, answer)
    select o.event_id, o.config_id, o.number, o.at, o.created_at, o.duration_ms, o.outcome, o.status, o.reason, o.answer
    from outcome as o
    where o.place not in (select h.place from held as h)
    on conflict do nothing
)
select h.place from held as h
"""

# Release: gives claimed deliveries back, untried. Fenced and ordered like a settle.
_RELEASE = """
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
set attempts = d.attempts - 1, leased = false, due_at = now() + make_interval(secs => %(after)s)
from held as h where d.ctid = h.row
"""


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

_FROM_THE_FIRST: Mapping[UUID, datetime] = {}


@dataclass(frozen=True, slots=True)
class Claimed:
    """What a route or a claim leased to us."""

    deliveries: list[Delivery]
    now: datetime | None
    """The database's time of the lease; None when there is nothing."""
    reached: Mapping[UUID, datetime] = field(default_factory=dict, kw_only=True)
    """Up to what was due when a claim came with each of these configs."""


@dataclass(frozen=True, slots=True)
class Routed(Claimed):
    """What a route did."""

    rows: int
    """Outbox rows that became events."""
    top: int | None
    """The highest seq that it came to; None where there was nothing to look at."""
    to_the_end: bool
    """Whether there was no more to look at."""
    created: int
    """Deliveries that they are owed, those that were not leased to us included."""


async def route(
    conn: AsyncConnection, *, low: int, rows: int, slots: int, room: int, rooms: Mapping[UUID, int], lease: float
) -> Routed:
    """Turn up to `rows` outbox rows above `low` into events and deliveries.

    Leases to us at most `slots` of them, at most `rooms[config]` or else `room` of one config, for `lease` seconds.
    """
    limits = {"low": low, "rows": rows, "slots": slots, "room": room, "lease": lease}
    return await _route(conn, _ROUTE, rooms, limits)


async def overtake(
    conn: AsyncConnection,
    *,
    low: int,
    scan: int,
    flood: Collection[UUID],
    rows: int,
    slots: int,
    room: int,
    rooms: Mapping[UUID, int],
    lease: float,
) -> Routed:
    """Route as `route` does what another config than those of the `flood` wants; looks at `scan` rows above `low`.

    The result's `top` is where the next look goes on.
    """
    limits = {"low": low, "scan": scan, "rows": rows, "slots": slots, "room": room, "lease": lease}
    return await _route(conn, _OVERTAKE, rooms, limits | {"flood": list(flood)})


async def _route(
    conn: AsyncConnection, statement: bytes, rooms: Mapping[UUID, int], others: Mapping[str, object]
) -> Routed:
    parameters = {**others, "busy": list(rooms), "rooms": list(rooms.values())}
    found = await (await conn.execute(statement, parameters, binary=True)).fetchall()
    now, routed, top, to_the_end, created = found[0][:5]
    deliveries = [Delivery._make(row[5:]) for row in found if row[5] is not None]
    return Routed(deliveries, now, routed, top, to_the_end, created)


async def claim(
    conn: AsyncConnection,
    *,
    after: UUID,
    slots: int,
    room: int,
    rooms: Mapping[UUID, int],
    lease: float,
    since: Mapping[UUID, datetime] = _FROM_THE_FIRST,
) -> Claimed:
    """Lease up to `slots` due deliveries for `lease` seconds, walking the configs whose id is above `after`.

    Of those in `rooms` nothing is looked for that was due before `since[config]`.
    """
    served = sorted(config_id for config_id in rooms if config_id > after)
    cursor = await conn.execute(
        _CLAIM.encode(),
        {
            "after": after, "slots": slots, "room": room, "lease": lease, "served": served,
            "rooms": [rooms[config_id] for config_id in served],
            "since": [since.get(config_id) for config_id in served],
        },
        binary=True,
    )  # fmt: skip
    found = await cursor.fetchall()
    deliveries = [Delivery._make(row[2:]) for row in found]
    reached = {delivery.config_id: row[1] for delivery, row in zip(deliveries, found, strict=True)}
    return Claimed(deliveries, found[0][0] if found else None, reached=reached)


async def settle(conn: AsyncConnection, attempts: Sequence[Attempt]) -> list[Attempt]:
    """Record finished tries, each once, however often it is repeated.

    Returns those whose lease was lost: they changed no delivery.
    """
    deliveries = [attempt.delivery for attempt in attempts]
    outcomes = [attempt.outcome for attempt in attempts]
    columns = {
        "event": _array(delivery.webhook_id for delivery in deliveries),
        "config": _array(delivery.config_id.hex for delivery in deliveries),
        "number": _array(str(delivery.attempt) for delivery in deliveries),
        "outcome": _array(outcome.name for outcome in outcomes),
        "after": _array(str(outcome.after) if isinstance(outcome, Retry) else "0" for outcome in outcomes),
        "reason": _texts(outcome.reason for outcome in outcomes),
        "status": _array("null" if attempt.status is None else str(attempt.status) for attempt in attempts),
        "answer": _texts(attempt.answer.decode("utf-8", "replace") or None for attempt in attempts),
        "duration": _array(str(attempt.duration_ms) for attempt in attempts),
        "at": _times(attempt.at for attempt in attempts),
        "created": _times(delivery.event_created_at for delivery in deliveries),
    }
    cursor = await conn.execute(_SETTLE.encode(), columns)
    settled = {place for (place,) in await cursor.fetchall()}
    return [attempt for place, attempt in enumerate(attempts, start=1) if place not in settled]


async def release(conn: AsyncConnection, deliveries: Iterable[Delivery], *, after: float = 0) -> int:
    """Give claimed deliveries back untried, due in `after` seconds. Returns how many were still ours."""
    given = list(deliveries)
    cursor = await conn.execute(
        _RELEASE.encode(),
        {
            "event": [delivery.webhook_id for delivery in given],
            "config": [delivery.config_id for delivery in given],
            "number": [delivery.attempt for delivery in given],
            "after": after,
        },
    )
    return cursor.rowcount


def _array(words: Iterable[str]) -> str:
    """Return an array's text form. For words that need no quotes: it takes a third of the time of psycopg's own."""
    return "{" + ",".join(words) + "}"


def _texts(texts: Iterable[str | None]) -> str:
    """Return an array of any texts; what PostgreSQL's text can not hold is replaced: a subscriber chooses them."""
    return _array("null" if text is None else f'"{_storable(text)}"' for text in texts)


def _storable(text: str) -> str:
    text = text.replace("\\", r"\\").replace('"', r"\"").replace("\0", "\ufffd")
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _times(times: Iterable[datetime]) -> str:
    """Return an array of microseconds since 1970: a time's own text takes five times as long to make and to read."""
    return _array(str((time - _EPOCH) // _MICROSECOND) for time in times)


# The doorbell: raised before sleeping, cleared by the first capture after. Read first, because each setval is WAL.
_RAISE_DOORBELL = """
select setval('outbox.doorbell', 2) from outbox.doorbell where last_value <> 2
"""


async def raise_doorbell(conn: AsyncConnection) -> bool:
    """Ask to be notified of the next capture. Returns whether nobody had asked: then look once more before sleeping."""
    cursor = await conn.execute(_RAISE_DOORBELL.encode())
    return await cursor.fetchone() is not None
