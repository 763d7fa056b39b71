"""Expands that are registered, for who subscribes. By the catalog, which everybody may read, not by the view."""

from psycopg import AsyncConnection

from outbox.core import expansions

_REGISTERED = """
select json_object_keys(substring(p.prosrc, '^-- ([^\\n]*)\\n')::json -> 'expands')
from pg_proc as p
join pg_namespace as s on s.oid = p.pronamespace and s.nspname = 'outbox'
where p.proname ~ '^expand_[0-9a-f]{32}$'
    and substring(p.prosrc, '^-- ([^\\n]*)\\n')::json ->> 'resource' = %(resource)s
"""


async def unregistered(conn: AsyncConnection, resource: str, expands: str) -> list[str]:
    """Return those names of a config's `expands` that nothing is registered for: they are embedded nowhere."""
    cursor = await conn.execute(_REGISTERED.encode(), {"resource": resource})
    registered = {name for (name,) in await cursor.fetchall()}
    return [name for name in expansions.names(expands) if name not in registered]
