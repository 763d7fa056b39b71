"""Pages of configs for the API, and one config, always within a user's locations (None: all of them)."""

import dataclasses
from collections.abc import Mapping, Sequence
from uuid import UUID

from psycopg import AsyncConnection, sql
from psycopg.rows import class_row

from outbox.core.model import PostbackConfig
from outbox.postgres.configs import DeletedConfigError, UnknownConfigError

_PLAIN = (
    "location_id", "resource", "product_transaction_id", "url", "on_create", "on_update", "on_delete", "is_active",
    "format", "number_of_attempts", "attempt_interval", "expands", "backoff", "backoff_limit", "strict_order",
    "rate_limit",
)  # fmt: skip
_SECONDS = sql.SQL("floor(extract(epoch from {}))::bigint")
_FILTERS: Mapping[str, sql.Composable] = {
    "id": sql.Identifier("id"),
    **{name: sql.Identifier(name) for name in _PLAIN},
    "created_ts": _SECONDS.format(sql.Identifier("created_at")),
    "modified_ts": _SECONDS.format(sql.Identifier("modified_at")),
}
# What is null sorts first, as an empty text: a null would fall out of the comparison with the cursor.
_SORTS: Mapping[str, tuple[sql.Composable, sql.SQL]] = {
    "id": (sql.SQL("id"), sql.SQL("uuid")),
    **{name: (sql.SQL("coalesce({}::text, '')").format(sql.Identifier(name)), sql.SQL("text")) for name in _PLAIN},
    "number_of_attempts": (sql.SQL("number_of_attempts::int"), sql.SQL("int")),
    "attempt_interval": (sql.SQL("attempt_interval"), sql.SQL("int")),
    "backoff_limit": (sql.SQL("backoff_limit"), sql.SQL("int")),
    "rate_limit": (sql.SQL("coalesce(rate_limit, 0)"), sql.SQL("int")),
    "created_ts": (sql.SQL("created_at"), sql.SQL("timestamptz")),
    "modified_ts": (sql.SQL("modified_at"), sql.SQL("timestamptz")),
}
COLUMNS = tuple(_FILTERS)
"""What can be filtered and sorted by."""

_FIELDS = sql.SQL(", ").join(sql.Identifier(field.name) for field in dataclasses.fields(PostbackConfig))
_WITHIN = sql.SQL("(%(locations)s::text[] is null or location_id = any(%(locations)s))")
# Put together once: for each of a thousand reads a second it took a fifth of the time.
_ONE, _ONE_LOCKED = (
    sql.SQL("select {fields} from outbox.postback_configs where id = %(id)s and {within} {lock}")
    .format(fields=_FIELDS, within=_WITHIN, lock=sql.SQL(lock))
    .as_bytes(None)
    for lock in ("", "for update")
)
_COUNT = sql.SQL("select count(*) from outbox.postback_configs where {conditions}")
_PAGE = sql.SQL("""
select {fields} from outbox.postback_configs where {conditions}
order by {sort} {way}, id {way} limit %(limit)s offset %(offset)s
""")
_CURSOR = sql.SQL("select ({sort})::text from outbox.postback_configs where id = %(id)s")


async def visible(
    conn: AsyncConnection, config_id: UUID, locations: Sequence[str] | None, *, lock: bool = False
) -> PostbackConfig:
    """Return the config. Raises UnknownConfigError, for another location's as well, and DeletedConfigError."""
    async with conn.cursor(row_factory=class_row(PostbackConfig)) as cursor:
        await cursor.execute(_ONE_LOCKED if lock else _ONE, {"id": config_id, "locations": _array(locations)})
        found = await cursor.fetchone()
    if found is None:
        raise UnknownConfigError(f"There is no config {config_id}.")
    if found.deleted_at is not None:
        raise DeletedConfigError(f"The config {config_id} was deleted.")
    return found


async def page(
    conn: AsyncConnection,
    locations: Sequence[str] | None,
    filters: Mapping[str, Sequence[str]],
    *,
    sort: str,
    descending: bool,
    limit: int,
    offset: int = 0,
    after: Sequence[str] | None = None,
) -> tuple[list[PostbackConfig], int, tuple[str, str] | None]:
    """Return the page's configs, how many there are in all, and the cursor of the next page.

    `filters`: for each of COLUMNS the texts of which the value must be one. `after`: such a cursor.
    """
    conditions: list[sql.Composable] = [sql.SQL("deleted_at is null"), _WITHIN]
    values: dict[str, object] = {"locations": _array(locations), "limit": limit + 1, "offset": offset}
    for name, texts in filters.items():
        conditions.append(sql.SQL("{}::text = any({})").format(_FILTERS[name], sql.Placeholder(f"is_{name}")))
        values[f"is_{name}"] = list(texts)
    expression, kind = _SORTS[sort]
    whole = _COUNT.format(conditions=sql.SQL(" and ").join(conditions))
    total = await (await conn.execute(whole, values)).fetchone()
    if after is not None:
        conditions.append(
            sql.SQL("({}, id) {} (%(after)s::{}, %(after_id)s::uuid)").format(
                expression, sql.SQL("<" if descending else ">"), kind
            )
        )
        values["after"], values["after_id"] = after
    query = _PAGE.format(
        fields=_FIELDS,
        conditions=sql.SQL(" and ").join(conditions),
        sort=expression,
        way=sql.SQL("desc" if descending else "asc"),
    )
    async with conn.cursor(row_factory=class_row(PostbackConfig)) as cursor:
        await cursor.execute(query, values)
        found = await cursor.fetchall()
    following = None
    if len(found) > limit:
        last = found[limit - 1].id
        row = await (await conn.execute(_CURSOR.format(sort=expression), {"id": last})).fetchone()
        following = (str(row[0]), str(last)) if row else None
    return found[:limit], int(total[0]) if total else 0, following


def _array(locations: Sequence[str] | None) -> list[str] | None:
    return None if locations is None else list(locations)
