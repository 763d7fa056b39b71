"""Statements that keep the tables in order; none of them makes a writer wait."""

from psycopg import AsyncConnection

# What was routed to a config in the moment in which it was deleted. Skip locked: a daemon may be settling it. Never a
# prepared statement: a generic plan could not use the partial indexes.
_PURGE_DELETED = """
with doomed as materialized (
    select d.event_id, d.config_id from outbox.postback_configs as c
    cross join lateral (
        select d.event_id, d.config_id from outbox.deliveries as d
        where d.config_id = c.id and d.state = %(state)s limit %(rows)s for update skip locked
    ) as d
    where c.deleted_at is not null limit %(rows)s
)
delete from outbox.deliveries as d using doomed as x where d.event_id = x.event_id and d.config_id = x.config_id
"""
_ROWS = 10_000


async def make_partitions(conn: AsyncConnection) -> int:
    """Make the daily partitions of the coming week; returns how many there were to make."""
    row = await (await conn.execute("select outbox.make_partitions()")).fetchone()
    return int(row[0]) if row else 0


async def purge_deleted(conn: AsyncConnection) -> int:
    """Forget what deleted configs are still owed, in batches of 10,000; returns how many deliveries."""
    purged = 0
    for state in ("pending", "dead"):
        while True:
            batch = (await conn.execute(_PURGE_DELETED, {"state": state, "rows": _ROWS}, prepare=False)).rowcount
            purged += batch
            if batch < _ROWS:
                break
    return purged
