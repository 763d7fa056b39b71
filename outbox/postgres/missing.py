"""What a config was never owed: deliveries of events that happened before it existed, was active or wanted their type.

What a config wants is what it wants now. What was once owed to it is not made again here: replay.py does that.
"""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.sql import SQL

from outbox.postgres.replay import BATCH, SETTINGS, TURN
from outbox.postgres.routing import WANTS, ring
from outbox.postgres.selection import OF_RECORD

# Walked in the order of their ids, which is that of capture: the key's index has it in each day, the days outside of
# the times are not looked at, and the next batch begins where this one ended. Of the tempting `where resource = …
# limit 5000` one statement would read a year to find the few of a rare resource; this one reads so many events,
# whatever they are of.
_ALL: LiteralString = """
    select e.id, e.created_at from outbox.events as e
    where e.id > %(after)s and e.created_at >= %(since)s and e.created_at < %(until)s
    order by e.id limit %(size)s
"""

# The record's few, by their own index: `offset 0` keeps the planner from the walk above.
_OF_RECORD: LiteralString = """
    select e.id, e.created_at from (
        select e.id, e.created_at from outbox.events as e
        where {of_record} and e.created_at >= %(since)s and e.created_at < %(until)s offset 0
    ) as e
    where e.id > %(after)s order by e.id limit %(size)s
""".replace("{of_record}", OF_RECORD.replace("{record}", "%(record)s"))

# As a route matches, except that an inactive config is owed too, and holds it.
#
# The tries prove that it was owed once; they are never of a day before their event's, so only days from then on are
# asked. A delivery and its tries are looked for in one statement: a settle takes the one away as it writes the other.
_MISSING: LiteralString = """
with walked as materialized ({walked}), found as materialized (
    select w.id, w.created_at, c.id as config_id,
        case when c.strict_order <> 'off' then hashtextextended(e.resource_id, 0) end as order_key
    from (select * from walked order by id) as w
    cross join lateral (
        select e.type, e.resource, e.resource_id, e.location_id, e.product_transaction_id from outbox.events as e
        where e.id = w.id and e.created_at = w.created_at offset 0
    ) as e
    join outbox.postback_configs as c on c.id = %(config)s and c.deleted_at is null
        and c.resource = e.resource
        and (c.location_id is null or c.location_id = e.location_id)
        and {wants}
    where not exists (
            select from outbox.deliveries as d where d.event_id = w.id and d.config_id = c.id offset 0
        )
        and not exists (
            select from outbox.attempts as a
            where a.event_id = w.id and a.config_id = c.id and a.at >= w.created_at offset 0
        )
    order by w.id limit %(most)s
), {action}
select (select count(*) from walked), (select count(*) from found), (select count(*) from done),
    (select id from walked order by id desc limit 1), (select id from found order by id desc limit 1)
"""
_INSERT: LiteralString = """done as (
    insert into outbox.deliveries (event_id, config_id, event_created_at, order_key)
    select f.id, f.config_id, f.created_at, f.order_key from found as f order by f.id
    on conflict (event_id, config_id) do nothing
    returning 1
)"""
_COUNT_ONLY: LiteralString = "done as materialized (select from found)"

# Read from the catalog: who may replay may not ask outbox.partitions().
_PERIOD: LiteralString = """
select now(), (
    select min((regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \\(''(.+?)''\\)'))[1]::timestamptz)
    from pg_inherits as i join pg_class as c on c.oid = i.inhrelid
    where i.inhparent = 'outbox.attempts'::regclass
)
"""

_CONFIG: LiteralString = "select from outbox.postback_configs where id = %(config)s and deleted_at is null"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Which events: those captured in a time that has an end, of one record or of all."""

    config: UUID
    since: datetime
    until: datetime
    record: str | None = None


async def period(
    conn: AsyncConnection, config: UUID, *, since: datetime | None, until: datetime | None, record: str | None = None
) -> Gap | None:
    """Return which events are walked through; None when there is no such config, or it was deleted.

    They begin where the log of tries does: an older event that is kept, because somebody is still owed it, may have
    been delivered to this config in a day whose tries are gone. They end now at the latest.
    """
    if await (await conn.execute(_CONFIG, {"config": config})).fetchone() is None:
        return None
    row = await (await conn.execute(_PERIOD)).fetchone()
    assert row is not None  # noqa: S101 - a select without a table has one row
    now, kept_since = row
    kept_since = now if kept_since is None else kept_since
    return Gap(
        config=config,
        since=kept_since if since is None else max(since, kept_since),
        until=now if until is None else min(until, now),
        record=record,
    )


async def batches(
    conn: AsyncConnection, gap: Gap, *, size: int = BATCH, most: int = BATCH, dry_run: bool = False
) -> AsyncGenerator[int]:
    """Make pending what the config is missing; yield after each batch how many it made, or with `dry_run` would.

    A batch walks through `size` events at most and makes `most` deliveries at most. `conn` is in autocommit: each batch
    is its own transaction, in the order of capture. What was made is no longer missing: broken off, it goes on with
    what is left when it is begun again. A delivery is missing where there is neither one that is owed nor a try.
    """
    query = SQL(_MISSING).format(
        walked=SQL(_ALL if gap.record is None else _OF_RECORD),
        wants=SQL(WANTS.replace("{row}", "e")),
        action=SQL(_COUNT_ONLY if dry_run else _INSERT),
    )
    asked: dict[str, Any] = {
        "config": gap.config, "since": gap.since, "until": gap.until, "record": gap.record, "size": size, "most": most,
        "after": UUID(int=0),
    }  # fmt: skip
    while True:
        async with conn.transaction():
            await conn.execute(SETTINGS)
            if not dry_run:
                await conn.execute(TURN)
            row = await (await conn.execute(query, asked, prepare=False)).fetchone()
        assert row is not None  # noqa: S101 - it always has one
        walked, found, done, last_walked, last_found = row
        if done and not dry_run:
            await ring(conn)
        yield done
        if found == most:
            asked["after"] = last_found
        elif walked == size:
            asked["after"] = last_walked
        else:
            return
