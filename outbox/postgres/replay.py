"""Replay: what died or was delivered is owed once more, the same event with a fresh budget of tries.

The counter of tries goes on, and all tries so far are uncounted. What is pending is never touched, so that no
delivery is ever pending twice.
"""

from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import LiteralString

from psycopg import AsyncConnection
from psycopg.sql import SQL

from outbox.postgres.history import now
from outbox.postgres.routing import ring
from outbox.postgres.selection import Filter, Position, State, selection, several

REPLAYABLE = (State.DELIVERED, State.DEAD)
"""In the order in which they are replayed: a dead change waits for the delivered ones of its record."""

NARROWING = ("config", "event", "record", "since", "created_since")
"""Fields of a filter, of which one at least must be given where what was delivered is meant: else it is all of it."""

BATCH = 5000
"""Deliveries in one transaction, some 0.2 s: what is broken off keeps what it did, and no lock is held for long."""

# Only what may be sent: its event is still kept, its config was not deleted, and sees the event's location. Of a config
# that was moved to a location, the log has what it was sent in another one, and whoever replays may change the URL.
# The tempting join of the two takes half as long again.
_SENDABLE: tuple[LiteralString, ...] = (
    """exists (
        select from outbox.events as e
        where e.id = d.event_id and e.created_at = d.event_created_at and (
            select c.location_id is null or c.location_id = e.location_id from outbox.postback_configs as c
            where c.id = d.config_id and c.deleted_at is null
        ) offset 0
    )""",
)

# The configs one by one, so that each batch is read from one config's index where the last one ended. The tempting
# `… where state = 'dead' limit 2000` until nothing is left reads, each time, past all that it replayed before. Only
# those that have anything: one probe each, where the search for their first batch would have to be planned.
_CONFIGS: LiteralString = """
select c.id from outbox.postback_configs as c
where c.deleted_at is null and (%(config)s::uuid[] is null or c.id = any(%(config)s::uuid[]))
    and (%(locations)s::text[] is null or c.location_id = any(%(locations)s::text[]))
    and exists ({any} offset 0)
order by c.id
"""
_ANY: dict[State, LiteralString] = {
    State.DEAD: "select from outbox.deliveries as d where d.config_id = c.id and d.state = 'dead'",
    State.DELIVERED: "select from outbox.attempts as a where a.config_id = c.id and a.outcome = 'delivered'",
}

# What is chosen and what is done to it is one statement, so that whose it is and what may be sent holds in the moment
# in which it is done. The tempting way, to fetch the keys and hand them back, asks twice and sends each key to and fro.
_BATCH_OF: LiteralString = """
with chosen as materialized ({selection}), {action}
select (select count(*) from chosen), (select count(*) from done), l.state_at, l.event_id, l.config_id
from (select 1) as one
left join (
    select state_at, event_id, config_id from chosen
    order by state_at desc, event_id desc, config_id desc limit 1
) as l on true
"""

_COUNT_ONLY: LiteralString = "done as materialized (select from chosen)"

# Locked in the order of the key, as a settle does, so that neither waits for the other in a ring. The state is asked
# again: another replay may have been faster.
#
# The tempting join of `chosen` with `deliveries` has the planner read the whole table for each batch where it is of
# middling size. Each row is looked for by its key; and as a row that we have locked stays where it is, it is written
# by its place. One that changed after the statement began is not met there, and should not be: it was replayed.
_REVIVE: LiteralString = """held as materialized (
    select d.place from (select event_id, config_id from chosen order by event_id, config_id) as s
    cross join lateral (
        select d.ctid as place from outbox.deliveries as d
        where d.event_id = s.event_id and d.config_id = s.config_id and d.state = 'dead' and d.died_at < %(until)s
        for no key update of d
    ) as d
), done as (
    update outbox.deliveries as d
    set state = 'pending', due_at = now(), died_at = null, leased = false, attempts_uncounted = d.attempts
    from held as h where d.ctid = h.place
    returning 1
)"""

# The highest number in the log is the last that was given out: the settle that removed the row logged it with that.
# The tempting `attempts = 0` would let a late settle of the first try fit the replayed one.
_OWE_AGAIN: LiteralString = """done as (
    insert into outbox.deliveries (event_id, config_id, event_created_at, attempts, attempts_uncounted, order_key)
    select s.event_id, s.config_id, s.event_created_at, t.number, t.number, (
        select hashtextextended(e.resource_id, 0) from outbox.postback_configs as c
        join outbox.events as e on e.id = s.event_id and e.created_at = s.event_created_at
        where c.id = s.config_id and c.strict_order <> 'off'
    )
    from (select * from chosen order by event_id, config_id) as s
    cross join lateral (
        select max(a.number) as number from outbox.attempts as a
        where a.event_id = s.event_id and a.config_id = s.config_id
    ) as t
    where t.number is not null
    on conflict (event_id, config_id) do nothing
    returning 1
)"""

# A probe for each row looks dear to the planner, all the more with many days: compiled it would only be slower, and a
# table read whole and hashed for each batch would be, too.
SETTINGS: LiteralString = """
select set_config('jit', 'off', true), set_config('enable_hashjoin', 'off', true),
    set_config('enable_mergejoin', 'off', true)
"""

# Who makes old events owed takes turns. A statement that began before another one's commit does not see that its
# delivery is owed again, was delivered meanwhile and is gone: no key would conflict, and it went out twice. And
# retention, which takes turns with them, would not see that the event is owed, and would let it go.
TURN: LiteralString = "select pg_advisory_xact_lock(hashtextextended('outbox.replay', 0))"

_COUNT_DEAD = """
select count(*) from outbox.postback_configs as c
cross join lateral (
    select from outbox.deliveries as d
    where d.config_id = c.id and d.state = 'dead' and d.died_at < %(until)s
        and (%(since)s::timestamptz is null or d.died_at >= %(since)s)
    offset 0
) as d
where c.deleted_at is null and (%(config)s::uuid[] is null or c.id = any(%(config)s::uuid[]))
    and (%(locations)s::text[] is null or c.location_id = any(%(locations)s::text[]))
"""


@dataclass(frozen=True, slots=True)
class _Done:
    looked_at: int
    count: int
    last: Position | None


async def replay(conn: AsyncConnection, chosen: Filter, *, dry_run: bool = False) -> int:
    """Make the chosen dead and delivered deliveries pending and due; return how many, or with `dry_run` how many would.

    As `batches`, to the end.
    """
    chosen = await ending(conn, chosen)
    return sum([count async for count in batches(conn, chosen, dry_run=dry_run)])


async def ending(conn: AsyncConnection, chosen: Filter) -> Filter:
    """Return the filter with an end, now at the latest.

    What is replayed may die or be delivered again meanwhile: without an end the replay would meet it again, for ever.
    With the same end a replay that was broken off goes on with exactly what is left.
    """
    start = await now(conn)
    return replace(chosen, until=start if chosen.until is None else min(chosen.until, start))


async def total(conn: AsyncConnection, chosen: Filter) -> int | None:
    """Return about how many a replay of the filter will make pending; None where that can not be counted cheaply.

    Dead ones have an index that is counted; what is narrowed by more than config and time is found only on the way.
    """
    others = (chosen.event, chosen.record, chosen.resource, chosen.created_since, chosen.created_until)
    if set(chosen.states) != {State.DEAD} or any(each is not None for each in others):
        return None
    asked = _whose(chosen) | {"since": chosen.since, "until": chosen.until}
    row = await (await conn.execute(_COUNT_DEAD.encode(), asked, prepare=False)).fetchone()
    return row[0] if row else None


async def batches(
    conn: AsyncConnection, chosen: Filter, *, size: int = BATCH, dry_run: bool = False
) -> AsyncGenerator[int]:
    """Replay the filter, which has an `ending`, in batches of up to `size`; yield after each how many became pending.

    `conn` is in autocommit: each batch is its own transaction, oldest first, config by config, and what was done when
    the caller stops stays done. Deliveries of deleted configs and of events that are no longer kept are left out. Those
    of a paused or inactive config are held until it is resumed.
    """
    if chosen.until is None:
        raise ValueError
    for state in REPLAYABLE:
        if state not in chosen.states:
            continue
        for scope in await _scopes(conn, replace(chosen, states=(state,)), state):
            after: Position | None = None
            while True:
                done = await _batch(conn, scope, state, size, after, dry_run=dry_run)
                if done.count and not dry_run:
                    # A hint for a daemon that sleeps long; it would find them at its next poll as well.
                    await ring(conn)
                yield done.count
                if done.looked_at < size:
                    break
                after = done.last


async def _scopes(conn: AsyncConnection, chosen: Filter, state: State) -> list[Filter]:
    if not chosen.by_config:
        return [chosen]
    query = SQL(_CONFIGS).format(any=SQL(_ANY[state]))
    rows = await (await conn.execute(query, _whose(chosen), prepare=False)).fetchall()
    return [replace(chosen, config=config) for (config,) in rows]


async def _batch(
    conn: AsyncConnection, chosen: Filter, state: State, size: int, after: Position | None, *, dry_run: bool
) -> _Done:
    keys, parameters = selection(chosen, limit=size, after=after, oldest_first=True, conditions=_SENDABLE)
    action = _COUNT_ONLY if dry_run else _REVIVE if state is State.DEAD else _OWE_AGAIN
    query = SQL(_BATCH_OF).format(selection=keys, action=SQL(action))
    async with conn.transaction():
        await conn.execute(SETTINGS)
        if action is not _COUNT_ONLY:
            await conn.execute(TURN)
        row = await (await conn.execute(query, parameters, prepare=False)).fetchone()
    assert row is not None  # noqa: S101 - it always has one
    looked_at, count, at, event, config = row
    return _Done(looked_at, count, Position(at, event, config) if looked_at else None)


def _whose(chosen: Filter) -> dict[str, object]:
    return {"config": several(chosen.config), "locations": None if chosen.locations is None else list(chosen.locations)}
