"""Postback configs: add, find, edit, pause, remove. What a config may hold is decided in core/config_rules.py.

Clear text of basic auth comes in and is sealed here; nothing else of it ever reaches a statement.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from uuid import UUID

from psycopg import AsyncConnection, sql
from psycopg.rows import class_row

from outbox.core.config_rules import FIELDS, Value
from outbox.core.model import PostbackConfig
from outbox.errors import OutboxError
from outbox.postgres.routing import ring
from outbox.secrets import SecretBox

_COLUMNS = sql.SQL(", ").join(sql.Identifier(field.name) for field in dataclasses.fields(PostbackConfig))
_SEALED = ("basic_auth_username", "basic_auth_password")

_ADD = sql.SQL("insert into outbox.postback_configs ({names}) values ({values}) returning {columns}")

_LOAD = sql.SQL("select {columns} from outbox.postback_configs where id = any(%s)").format(columns=_COLUMNS)

_NUMBER = "select count(*) from outbox.postback_configs where location_id = %s and deleted_at is null"

_FIND = sql.SQL("""
select {columns} from outbox.postback_configs
where deleted_at is null
    and (%(location_id)s::text is null or location_id = %(location_id)s)
    and (%(resource)s::text is null or resource = %(resource)s)
    and (%(is_active)s::boolean is null or is_active = %(is_active)s)
order by created_at, id limit %(limit)s
""").format(columns=_COLUMNS)

# The location stands in the statement that acts. The tempting look first and `where id = …` after would change a config
# that was given to another location in between.
_WITHIN = sql.SQL("(%(locations)s::text[] is null or location_id = any(%(locations)s::text[]))")

# Who switches a config on, again or anew, wants it tried: what is held against it is forgotten.
_EDIT = sql.SQL("""
with forgiven as (
    update outbox.config_state set failures = 0, troubles = 0, failing_since = null
    where config_id = %(id)s and %(forgives)s
        and exists (select from outbox.postback_configs where id = %(id)s and {within})
)
update outbox.postback_configs
set {changes}, revision = revision + 1, modified_at = now()
where id = %(id)s and deleted_at is null and {within}
returning {columns}
""")

_FORGET_TROUBLES = sql.SQL("disabled_at = null, disabled_reason = null, circuit_opened_at = null")

# A config that is paused already keeps the time since when it is.
_PAUSE = sql.SQL("""
update outbox.postback_configs
set paused_at = coalesce(paused_at, now()), revision = revision + 1, modified_at = now()
where id = %(id)s and deleted_at is null
returning {columns}
""").format(columns=_COLUMNS)

_RESUME = sql.SQL("""
update outbox.postback_configs
set paused_at = null, revision = revision + 1, modified_at = now()
where id = %(id)s and deleted_at is null
returning {columns}
""").format(columns=_COLUMNS)

# The row stays, so that its id answers "deleted"; what it kept secret is of no more use to anybody but a thief.
_REMOVE = sql.SQL("""
update outbox.postback_configs
set deleted_at = now(), basic_auth_username = null, basic_auth_password = null, signing_secrets = null,
    revision = revision + 1, modified_at = now()
where id = %(id)s and deleted_at is null and {within}
""").format(within=_WITHIN)

# The tempting `where config_id = … limit n` fits neither partial index and reads the whole table: each state is asked
# for by its literal. Rows are locked in the order of their key, as settles do, so that the two can not deadlock.
_FORGET = """
with picked as materialized (
    (select event_id from outbox.deliveries where state = 'pending' and config_id = %(id)s limit %(rows)s)
    union all
    (select event_id from outbox.deliveries where state = 'dead' and config_id = %(id)s limit %(rows)s)
    limit %(rows)s
), locked as materialized (
    select d.event_id, d.config_id from picked as p
    join outbox.deliveries as d on d.event_id = p.event_id and d.config_id = %(id)s
    order by d.event_id
    for update of d
)
delete from outbox.deliveries as d using locked as l where d.event_id = l.event_id and d.config_id = l.config_id
"""


# What deleted configs are still owed: it was routed in the moment in which they were deleted, or the deletion was
# interrupted. Asked state by state, as above.
_DELETED_AND_OWED = """
select c.id from outbox.postback_configs as c
where c.deleted_at is not null and (
    exists (select from outbox.deliveries as d where d.config_id = c.id and d.state = 'pending' offset 0)
    or exists (select from outbox.deliveries as d where d.config_id = c.id and d.state = 'dead' offset 0)
)
"""


class UnknownConfigError(OutboxError):
    """There is no config with this id."""


class DeletedConfigError(OutboxError):
    """The config was deleted: it can not be shown or changed any more."""


async def add(conn: AsyncConnection, fields: Mapping[str, Value], secrets: SecretBox) -> PostbackConfig:
    """Store a new config from validated fields and return it. UsageError when a password has no key to be sealed."""
    names = _names(fields)
    query = _ADD.format(
        names=sql.SQL(", ").join(map(sql.Identifier, names)),
        values=sql.SQL(", ").join(map(sql.Placeholder, names)),
        columns=_COLUMNS,
    )
    async with conn.cursor(row_factory=class_row(PostbackConfig)) as cursor:
        await cursor.execute(query, _stored(fields, names, secrets))
        [config] = await cursor.fetchall()
    return config


async def number_of(conn: AsyncConnection, location_id: str) -> int:
    """Return how many configs a location has, those that are switched off included."""
    row = await (await conn.execute(_NUMBER, [location_id])).fetchone()
    return int(row[0]) if row else 0


async def get(conn: AsyncConnection, config_id: UUID) -> PostbackConfig:
    """Return the config; UnknownConfigError, DeletedConfigError."""
    found = await load(conn, [config_id])
    if not found or found[0].deleted_at is not None:
        raise _absent(config_id, found)
    return found[0]


async def load(conn: AsyncConnection, ids: Sequence[UUID]) -> list[PostbackConfig]:
    """Return the configs with these ids in any state, deleted ones too, in no order."""
    async with conn.cursor(row_factory=class_row(PostbackConfig)) as cursor:
        await cursor.execute(_LOAD, [list(ids)])
        return await cursor.fetchall()


async def find(
    conn: AsyncConnection,
    *,
    location_id: str | None = None,
    resource: str | None = None,
    is_active: bool | None = None,
    limit: int,
) -> list[PostbackConfig]:
    """Return up to `limit` configs, oldest first, without deleted ones; a filter that is None lets all through."""
    async with conn.cursor(row_factory=class_row(PostbackConfig)) as cursor:
        await cursor.execute(
            _FIND, {"location_id": location_id, "resource": resource, "is_active": is_active, "limit": limit}
        )
        return await cursor.fetchall()


async def edit(
    conn: AsyncConnection,
    config_id: UUID,
    changes: Mapping[str, Value],
    secrets: SecretBox,
    *,
    locations: Sequence[str] | None = None,
) -> PostbackConfig:
    """Store validated changes, of one field at least, and return the config as it is now.

    `locations`: whose configs may be changed, None for all. Raises UnknownConfigError, for another location's as well,
    DeletedConfigError, and as `add` does.
    """
    names = _names(changes)
    query = _EDIT.format(
        changes=sql.SQL(", ").join(
            [
                *(sql.SQL("{} = {}").format(sql.Identifier(n), sql.Placeholder(n)) for n in names),
                *([_FORGET_TROUBLES] if changes.get("is_active") is True else []),
            ]
        ),
        within=_WITHIN,
        columns=_COLUMNS,
    )
    values = {**_stored(changes, names, secrets), "forgives": changes.get("is_active") is True}
    return await _change(conn, query, config_id, values, locations)


async def pause(conn: AsyncConnection, config_id: UUID) -> PostbackConfig:
    """Let it collect what it is owed and send nothing. Raises as `get` does."""
    return await _change(conn, _PAUSE, config_id, {})


async def resume(conn: AsyncConnection, config_id: UUID) -> PostbackConfig:
    """Let a paused config send again. Raises as `get` does."""
    return await _change(conn, _RESUME, config_id, {})


async def remove(
    conn: AsyncConnection, config_id: UUID, *, locations: Sequence[str] | None = None, batch: int = 10_000
) -> int:
    """Delete the config softly, then all that it is owed; return how many deliveries that were.

    Each `batch` of rows is a transaction of its own, so the connection must not be in one. Again is no error: it
    finishes what was interrupted. `locations` as in `edit`. Raises UnknownConfigError.
    """
    async with conn.transaction():
        removed = (await conn.execute(_REMOVE, {"id": config_id, "locations": _array(locations)})).rowcount
        if not removed and not await _load_within(conn, config_id, locations):
            raise _absent(config_id, [])
    forgotten = 0
    while True:
        async with conn.transaction():
            rows = await forget(conn, config_id, rows=batch)
        if not rows:
            return forgotten
        forgotten += rows


async def forget(conn: AsyncConnection, config_id: UUID, *, rows: int) -> int:
    """Delete up to `rows` of what a deleted config is owed; return how many there were."""
    return (await conn.execute(_FORGET, {"id": config_id, "rows": rows})).rowcount


async def deleted_and_owed(conn: AsyncConnection) -> list[UUID]:
    """Return the deleted configs that are still owed something."""
    return [config for (config,) in await (await conn.execute(_DELETED_AND_OWED)).fetchall()]


async def _change(
    conn: AsyncConnection,
    query: sql.Composed,
    config_id: UUID,
    values: Mapping[str, Value],
    locations: Sequence[str] | None = None,
) -> PostbackConfig:
    async with conn.cursor(row_factory=class_row(PostbackConfig)) as cursor:
        await cursor.execute(query, {**values, "id": config_id, "locations": _array(locations)})
        changed = await cursor.fetchone()
    if changed is None:
        raise _absent(config_id, await _load_within(conn, config_id, locations))
    await ring(conn)  # what it is owed may be due now, or wanted no more
    return changed


async def _load_within(conn: AsyncConnection, config_id: UUID, locations: Sequence[str] | None) -> list[PostbackConfig]:
    found = await load(conn, [config_id])
    return [config for config in found if locations is None or config.location_id in locations]


def _array(locations: Sequence[str] | None) -> list[str] | None:
    return None if locations is None else list(locations)


def _names(fields: Mapping[str, Value]) -> list[str]:
    return [name for name in FIELDS if name in fields]


def _stored(fields: Mapping[str, Value], names: Sequence[str], secrets: SecretBox) -> dict[str, Value]:
    values = {name: fields[name] for name in names}
    for name in _SEALED:
        if isinstance(clear := values.get(name), str):
            values[name] = secrets.seal(clear)
    return values


def _absent(config_id: UUID, found: Sequence[PostbackConfig]) -> OutboxError:
    if found and found[0].deleted_at is not None:
        return DeletedConfigError(f"The config {config_id} was deleted at {found[0].deleted_at:%Y-%m-%d %H:%M:%S %Z}.")
    return UnknownConfigError(f"There is no config {config_id}.")
