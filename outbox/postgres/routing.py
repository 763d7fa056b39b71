"""Route: what was captured becomes events and deliveries, many rows in one statement; each says why it is so."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import LiteralString

from psycopg import AsyncConnection

from outbox.core.low_water import Snapshot
from outbox.core.model import ConfigId, Delivery
from outbox.postgres.arrays import array, numbers
from outbox.postgres.queue import Claimed, in_utc
from outbox.postgres.statements import statement

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

# Overtake: takes no more of a flood, but what stands behind it and is wanted by another config. It reads on from where
# it came to (`low`), so that each row of a flood is read once, and not each is matched with the configs but each kind
# of row among `scan`. What a config with strict order wants keeps its place, and so does what a config of the flood
# wants from its own location: of the changes of one record it should not see the last one first.
_TAKE_FROM_BEHIND: LiteralString = """
seen as materialized (
    select o.seq, o.type::text as type, o.resource, o.location_id, o.product_transaction_id
    from outbox.outbox as o where o.seq > %(low)s and o.seq <= %(high)s order by o.seq limit %(scan)s
), wanted as materialized (
    -- Not distinct kinds, and then a join: without hashing it compares each row with each kind.
    select k.seqs, m.may_pass, m.in_order
    from (
        select s.type, s.resource, s.location_id, s.product_transaction_id, array_agg(s.seq) as seqs
        from seen as s group by s.type, s.resource, s.location_id, s.product_transaction_id
    ) as k
    cross join lateral (
        select bool_or(c.sends and not c.floods) as wanted, bool_or(c.sends and c.strict_order <> 'off') as in_order,
            bool_and(c.strict_order = 'off' and (c.location_id is null or not c.floods)) as may_pass
        from (select m.*, m.id = any(%(flood)s::uuid[]) as floods from ({matching}) as m) as c
    ) as m
    where m.wanted
), chosen as materialized (
    select s.seq from wanted as w cross join lateral unnest(w.seqs) as s (seq)
    where w.may_pass order by s.seq limit %(rows)s
), taken as materialized (
    select o.seq from chosen as c
    cross join lateral (select o.seq from outbox.outbox as o where o.seq = c.seq for no key update skip locked) as o
)
"""
# Whose change has a lower seq than one that was taken, and is not taken, is being routed by another daemon. Most often
# there is none, so they are counted first.
_LEFT_TO_OTHERS: LiteralString = """
(
    select case when (
            select count(*) from outbox.outbox as o where o.seq > %(low)s and o.seq <= u.seq
        ) > n.routed then (
            select min(l.seq) from (
                select o.seq from outbox.outbox as o where o.seq > %(low)s and o.seq <= u.seq
                except
                select t.seq from taken as t
            ) as l
        ) end
    from (select case when n.routed = %(rows)s then n.last else 9223372036854775807 end as seq) as u
)
"""
_IN_ORDER: LiteralString = "(select coalesce(bool_or(w.in_order), false) from wanted as w)"
_COME_TO: LiteralString = """
(
    select case when (select count(*) from chosen) < %(rows)s then (select max(seq) from seen) else max(c.seq) end
    from chosen as c
)
"""
_TO_THE_END: LiteralString = """
(select count(*) from seen) < %(scan)s and (select count(*) from chosen) < %(rows)s
"""

# What a config `c` wants of the resource and location that it watches.
WANTS: LiteralString = """
        (c.product_transaction_id is null or c.product_transaction_id = {row}.product_transaction_id)
        and case {row}.type when 'CREATE' then c.on_create when 'UPDATE' then c.on_update else c.on_delete end
"""

# Two looks into the index: the tempting `location_id is null or …` may compare each event with each config.
_MATCHING: LiteralString = """
        select c.id, c.location_id, c.revision, c.paused_at is null as sends, c.governed, c.strict_order
        from (
            select c.* from outbox.postback_configs as c
            where c.resource = {row}.resource and c.location_id = {row}.location_id
                and c.is_active and c.deleted_at is null
            union all
            select c.* from outbox.postback_configs as c
            where c.resource = {row}.resource and c.location_id is null and c.is_active and c.deleted_at is null
        ) as c
        where {wants}
""".replace("{wants}", WANTS)

_ROUTED: LiteralString = """
with {taken}, named as (
    delete from outbox.outbox as o using taken as t where o.seq = t.seq
    returning o.seq, o.created_at, o.type::text as type, o.resource, o.resource_id, o.location_id,
        o.product_transaction_id, o.data, o.expansions, o.traceparent, (
            {id_begins} || '8' || left(encode(sha256(((select gen_random_uuid()::text) || o.seq)::bytea), 'hex'), 15)
        )::uuid as id
), kept as (
    insert into outbox.events (
        id, created_at, type, resource, resource_id, location_id, product_transaction_id, data, expansions, traceparent
    )
    select n.id, n.created_at, n.type, n.resource, n.resource_id, n.location_id, n.product_transaction_id, n.data,
        n.expansions, n.traceparent
    from named as n
), matched as materialized (
    select n.*, c.id as config_id, c.revision,
        case when c.sends and not c.governed then row_number() over (partition by c.id order by n.seq) end as place,
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
), left_over as materialized (
    select r.config_id, count(*)::integer as number from ranked as r
    where r.place is not null and not r.leased group by r.config_id
), owed as (
    insert into outbox.deliveries (event_id, config_id, event_created_at, order_key, attempts, leased, due_at)
    select r.id, r.config_id, r.created_at, r.order_key, r.leased::integer, r.leased,
        now() + case when r.leased then make_interval(secs => %(lease)s) else interval '0' end
    from ranked as r
    order by r.id, r.config_id
)
-- Joined, because a subquery for each number would be a plan of its own, which takes time to set up: most routes are of
-- one row.
select now() as now, n.routed, n.first, {come_to} as seq, {to_the_end} as to_the_end,
    {left_to_others} as left_to_others, {in_order} as in_order, c.created, pg_current_snapshot()::text as snapshot,
    l.left_of, l.left_over,
    null as id, null as config_id, null as attempts, null as attempts_uncounted, null as created_at, null as revision,
    null as type, null as resource, null as data, null as expansions, null as traceparent
from (select count(*)::integer as routed, min(seq) as first, max(seq) as last from named) as n
cross join (select count(*)::integer as created from ranked) as c
cross join (select array_agg(config_id::text) as left_of, array_agg(number) as left_over from left_over) as l
union all
select null, null, null, null, null, null, null, null, null, null, null, r.id::text, r.config_id::text, 1, 0,
    r.created_at, r.revision, r.type, r.resource, r.data::text, r.expansions::text, r.traceparent
from ranked as r where r.leased
"""


def _routed(
    taken: LiteralString,
    *,
    come_to: LiteralString,
    to_the_end: LiteralString,
    left_to_others: LiteralString = "null::bigint",
    in_order: LiteralString = "false",
) -> bytes:
    """Return the statement that routes what `taken` chooses; `come_to`: up to where it looked; `to_the_end`: if so."""
    whole = _ROUTED.replace("{taken}", taken.replace("{matching}", _MATCHING.replace("{row}", "k")))
    whole = whole.replace("{matching}", _MATCHING.replace("{row}", "n")).replace("{come_to}", come_to)
    whole = whole.replace("{to_the_end}", to_the_end).replace("{left_to_others}", left_to_others)
    whole = whole.replace("{in_order}", in_order)
    return statement(whole.replace("{id_begins}", ID_BEGINS.replace("{seq}", "o.seq")))


_ROUTE = _routed(_TAKE_THE_FIRST, come_to="n.last", to_the_end="n.routed < %(rows)s")
_ROUTE_AND_TELL = _routed(
    _TAKE_THE_FIRST, come_to="n.last", to_the_end="n.routed < %(rows)s", left_to_others=_LEFT_TO_OTHERS
)
_OVERTAKE = _routed(_TAKE_FROM_BEHIND, come_to=_COME_TO, to_the_end=_TO_THE_END, in_order=_IN_ORDER)


@dataclass(frozen=True, slots=True)
class Routed(Claimed):
    """What a route did."""

    rows: int
    """Outbox rows that became events."""
    first: int | None
    """The lowest seq of them."""
    top: int | None
    """The highest seq that it came to; None where there was nothing to look at."""
    to_the_end: bool
    """Whether there was no more to look at."""
    left_to_others: int | None
    """The lowest seq that it saw and did not take, because another daemon is routing it; None where there is none, or
    it was not to tell."""
    in_order: bool
    """Whether what it passed by is wanted by a config with strict order, and waits for its turn."""
    created: int
    """Deliveries that they are owed, those that were not leased to us included."""
    left: Mapping[ConfigId, int]
    """How many of them were not leased of each config, for want of slots or of room."""
    snapshot: Snapshot
    """The transactions that were neither committed nor rolled back: what they captured was not seen."""


async def route(
    conn: AsyncConnection,
    *,
    low: int,
    rows: int,
    slots: int,
    room: int,
    rooms: Mapping[ConfigId, int],
    lease: float,
    tell_left: bool = False,
) -> Routed:
    """Turn up to `rows` outbox rows above `low` into events and deliveries.

    Leases to us at most `slots` of them, at most `rooms[config]` or else `room` of one config, for `lease` seconds.
    `tell_left`: whether to look for what is left to others, which reads once more all that was taken or is under way.
    """
    limits = {"low": low, "rows": rows, "slots": slots, "room": room, "lease": lease}
    return await _route(conn, _ROUTE_AND_TELL if tell_left else _ROUTE, rooms, limits)


async def overtake(
    conn: AsyncConnection,
    *,
    low: int,
    high: int,
    scan: int,
    flood: Collection[ConfigId],
    rows: int,
    slots: int,
    room: int,
    rooms: Mapping[ConfigId, int],
    lease: float,
) -> Routed:
    """Route as `route` does what another config than those of the `flood` wants.

    Looks at `scan` rows above `low`, up to `high`. The result's `top` is where the next look goes on.
    """
    limits = {"low": low, "high": high, "scan": scan, "rows": rows, "slots": slots, "room": room, "lease": lease}
    return await _route(conn, _OVERTAKE, rooms, limits | {"flood": array(flood)})


async def _route(
    conn: AsyncConnection, query: bytes, rooms: Mapping[ConfigId, int], others: Mapping[str, object]
) -> Routed:
    parameters = {**others, "busy": array(rooms), "rooms": numbers(rooms.values())}
    found = await (await conn.execute(query, parameters, binary=True)).fetchall()
    now, routed, first, top, to_the_end, left_to_others, in_order, created, snapshot, left_of, left_over = next(
        row[:11] for row in found if row[0] is not None
    )
    deliveries = [Delivery._make(row[11:]) for row in found if row[11] is not None]
    left = dict(zip(left_of or (), left_over or (), strict=True))
    _, end, under_way = snapshot.split(":")
    seen = Snapshot(int(end), frozenset(int(each) for each in under_way.split(",") if each))
    return Routed(
        deliveries, in_utc(now), routed, first, top, to_the_end, left_to_others, in_order, created, left, seen
    )


# Below the mark of the routes: whatever is there was committed after they had passed it, or is being routed by another
# daemon. One row says so, and it reads through whatever is under way.
_LOWEST = statement("select o.seq from outbox.outbox as o where o.seq <= %(up_to)s order by o.seq limit 1")


async def lowest(conn: AsyncConnection, *, up_to: int) -> int | None:
    """Return the lowest seq that waits in the outbox, if it is not above `up_to`; None where there is none."""
    row = await (await conn.execute(_LOWEST, {"up_to": up_to}, binary=True)).fetchone()
    return int(row[0]) if row else None


_LAST: LiteralString = "select case when s.is_called then s.last_value else 0 end from outbox.outbox_seq_seq as s"


async def last(conn: AsyncConnection) -> int:
    """Return the highest seq that was given to a change so far, committed or not; 0 where there was none."""
    row = await (await conn.execute(_LAST, binary=True)).fetchone()
    return int(row[0]) if row else 0


# The doorbell: raised before sleeping, cleared by the first capture after. Read first, because each setval is WAL. That
# it is on disk is not waited for: whoever lives through a crash of the database raises it anew. A capture takes its seq
# before it looks at the doorbell: whose seq comes after the one that is read here will ring. That one is read when the
# `case` comes to it, after the setval, and as the sequence is then, whatever the snapshot.
_RAISE_DOORBELL = statement(
    """
select case
    when set_config('synchronous_commit', 'off', true) = 'off' and setval('outbox.doorbell', 2) = 2 then ({last})
end
from outbox.doorbell where last_value <> 2
""".replace("{last}", _LAST)
)


async def raise_doorbell(conn: AsyncConnection) -> int | None:
    """Ask to be notified of the next capture. Returns the seq of the last one; None where somebody had asked before."""
    cursor = await conn.execute(_RAISE_DOORBELL)
    row = await cursor.fetchone()
    return int(row[0]) if row else None


async def ring(conn: AsyncConnection) -> None:
    """Wake the daemons, with the commit: for what falls due without being captured."""
    await conn.execute("select pg_notify('outbox', '')")
