"""Replay: what died or was delivered is owed once more, the same event with a fresh budget of tries.

The counter of tries goes on, and all tries so far are uncounted. What is pending is never touched, so that no
delivery is ever pending twice.
"""

from dataclasses import replace
from typing import LiteralString

from psycopg import AsyncConnection

from outbox.postgres.history import now
from outbox.postgres.selection import Filter, Position, State, selection

REPLAYABLE = (State.DELIVERED, State.DEAD)
"""In the order in which they are replayed: a dead change waits for the delivered ones of its record."""

_BATCH = 2000
"""Deliveries in one transaction: a replay that is broken off keeps what it did, and holds no lock for long."""

# Only what can be sent: its config was not deleted, its event is still kept.
_SENDABLE: tuple[LiteralString, ...] = (
    """exists (
        select from outbox.events as e where e.id = d.event_id and e.created_at = d.event_created_at offset 0
    )""",
    """exists (
        select from outbox.postback_configs as c where c.id = d.config_id and c.deleted_at is null offset 0
    )""",
)

# The configs one by one, so that each batch is read from one config's index where the last one ended. The tempting
# `… where state = 'dead' limit 2000` until nothing is left reads, each time, past all that it replayed before.
_CONFIGS = """
select c.id from outbox.postback_configs as c
where c.deleted_at is null and (%(config)s::uuid is null or c.id = %(config)s)
    and (%(locations)s::text[] is null or c.location_id = any(%(locations)s::text[]))
order by c.id
"""

# Locked in the order of the key, as a settle does, so that neither waits for the other in a ring. The state is asked
# again: another replay may have been faster.
_REVIVE = """
with held as materialized (
    select d.event_id, d.config_id
    from unnest(%(events)s::uuid[], %(configs)s::uuid[]) as asked (event_id, config_id)
    join outbox.deliveries as d on d.event_id = asked.event_id and d.config_id = asked.config_id
    where d.state = 'dead' and d.died_at < %(until)s
    order by d.event_id, d.config_id
    for no key update of d
)
update outbox.deliveries as d
set state = 'pending', due_at = now(), died_at = null, leased = false, attempts_uncounted = d.attempts
from held as h where d.event_id = h.event_id and d.config_id = h.config_id
"""

# The highest number in the log is the last that was given out: the settle that removed the row logged it with that.
# The tempting `attempts = 0` would let a late settle of the first try fit the replayed one.
_OWE_AGAIN = """
insert into outbox.deliveries (event_id, config_id, event_created_at, attempts, attempts_uncounted, order_key)
select asked.event_id, asked.config_id, asked.created_at, t.number, t.number, (
    select hashtextextended(e.resource_id, 0) from outbox.postback_configs as c
    join outbox.events as e on e.id = asked.event_id and e.created_at = asked.created_at
    where c.id = asked.config_id and c.strict_order <> 'off'
)
from unnest(%(events)s::uuid[], %(configs)s::uuid[], %(created)s::timestamptz[])
    as asked (event_id, config_id, created_at)
cross join lateral (
    select max(a.number) as number from outbox.attempts as a
    where a.event_id = asked.event_id and a.config_id = asked.config_id
) as t
where t.number is not null
order by asked.event_id, asked.config_id
on conflict (event_id, config_id) do nothing
"""


async def replay(conn: AsyncConnection, chosen: Filter, *, dry_run: bool = False) -> int:
    """Make the chosen dead and delivered deliveries pending and due; return how many, or with `dry_run` how many would.

    `conn` is in autocommit: each batch is its own transaction, oldest first, and what a broken replay has done stays
    done. Deliveries of deleted configs and of events that are no longer kept are left out. Those of a paused or
    inactive config are held until it is resumed.
    """
    # What is replayed may die again meanwhile: without this end the replay would meet it again, for ever.
    start = await now(conn)
    chosen = replace(chosen, until=start if chosen.until is None else min(chosen.until, start))
    scopes = [chosen]
    if chosen.event is None and chosen.record is None:
        locations = None if chosen.locations is None else list(chosen.locations)
        asked = {"config": chosen.config, "locations": locations}
        rows = await (await conn.execute(_CONFIGS.encode(), asked)).fetchall()
        scopes = [replace(chosen, config=config) for (config,) in rows]
    done = 0
    for state in REPLAYABLE:
        if state in chosen.states:
            for scope in scopes:
                done += await _replay_state(conn, replace(scope, states=(state,)), state, dry_run=dry_run)
    if done and not dry_run:
        # A hint for a daemon that sleeps long; it would find them at its next poll as well.
        await conn.execute("select pg_notify('outbox', '')")
    return done


async def _replay_state(conn: AsyncConnection, chosen: Filter, state: State, *, dry_run: bool) -> int:
    done = 0
    after: Position | None = None
    while True:
        query, parameters = selection(chosen, limit=_BATCH, after=after, oldest_first=True, conditions=_SENDABLE)
        found = await (await conn.execute(query, parameters, prepare=False)).fetchall()
        if found and dry_run:
            done += len(found)
        elif found:
            statement = _REVIVE if state is State.DEAD else _OWE_AGAIN
            batch = {
                "events": [row[1] for row in found], "configs": [row[2] for row in found],
                "created": [row[3] for row in found], "until": chosen.until,
            }  # fmt: skip
            done += (await conn.execute(statement.encode(), batch)).rowcount
        if len(found) < _BATCH:
            return done
        _, event, config, _, state_at = found[-1]
        after = Position(state_at, event, config)
