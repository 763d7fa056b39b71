"""Attach and detach: which tables are captured. The SQL functions do it; here their errors become messages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import class_row

from outbox.errors import OutboxError, UsageError

_WRONG_REQUEST = (
    psycopg.errors.InvalidParameterValue,
    psycopg.errors.WrongObjectType,
    psycopg.errors.InvalidTableDefinition,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.InvalidFunctionDefinition,
    psycopg.errors.DuplicateObject,
    psycopg.errors.FeatureNotSupported,
)


@dataclass(frozen=True, slots=True)
class Attachment:
    """A table that is captured, and how."""

    relation: str
    """As SQL writes it, with a schema where the search_path does not find it without."""
    resource: str
    key: str
    """The key's columns, separated by commas."""
    location: str | None
    product_transaction: str | None
    serializer: str | None
    columns: list[str] | None
    """The only ones that are sent, in the table's order; None for all."""
    condition: str | None
    function: str


_ATTACHMENTS = """
select relation::text, resource, key, location, product_transaction, serializer, columns, condition, function
from outbox.attachments as a
where %(relation)s::oid is null or a.relation = %(relation)s::oid::regclass
order by a.relation::text
"""


async def attach(
    conn: AsyncConnection,
    table: str,
    resource: str,
    *,
    key: str | None = None,
    location: str | None = None,
    product_transaction: str | None = None,
    serializer: str | None = None,
    columns: Sequence[str] | None = None,
    condition: str | None = None,
) -> Attachment:
    """Capture each change of the table as an event of the resource; on an attached table, change its options.

    Names are written as in SQL, but those of `columns` as they are. None takes the default of the SQL function, an
    empty column name means none. `condition`: SQL over the row's columns; only rows that fulfil it are captured.
    Raises UsageError where the table, a column, the serializer or the condition is not fit, OutboxError where the
    database refuses.
    """
    relation = await _relation(conn, table)
    function = None if serializer is None else await _function(conn, serializer)
    await _run(
        conn,
        "select outbox.attach(%(relation)s::oid::regclass, %(resource)s, %(key)s, %(location)s,"
        " %(product_transaction)s, %(function)s::oid::regproc, %(columns)s::text[], %(condition)s)",
        {
            "relation": relation, "resource": resource, "key": key, "location": location,
            "product_transaction": product_transaction, "function": function,
            "columns": None if columns is None else list(columns), "condition": condition,
        },
    )  # fmt: skip
    found = await _attachments(conn, relation)
    if not found:
        raise OutboxError(f"{table} was detached in this moment.")
    return found[0]


async def detach(conn: AsyncConnection, table: str) -> bool:
    """Stop capturing the table and its partitions; return whether it was captured. Captured events stay."""
    relation = await _relation(conn, table)
    return bool(await _run(conn, "select outbox.detach(%(relation)s::oid::regclass)", {"relation": relation}))


async def attachments(conn: AsyncConnection) -> list[Attachment]:
    """Return the tables that are captured, partitions by themselves."""
    return await _attachments(conn, None)


async def _attachments(conn: AsyncConnection, relation: int | None) -> list[Attachment]:
    async with conn.cursor(row_factory=class_row(Attachment)) as cursor:
        await cursor.execute(_ATTACHMENTS.encode(), {"relation": relation})
        return await cursor.fetchall()


async def _relation(conn: AsyncConnection, table: str) -> int:
    found = await _look_up(conn, "select to_regclass(%(name)s)::oid, current_schemas(false)", table)
    if found[0] is None:
        raise UsageError(
            f"There is no table {table} (searched without a schema: {', '.join(found[1]) or 'none'}). Name it with its "
            'schema, as in SQL: public.contacts, or public."Contacts" where it has capitals.'
        )
    return int(found[0])


async def _function(conn: AsyncConnection, name: str) -> int:
    found = await _look_up(conn, "select to_regproc(%(name)s)::oid, current_schemas(false)", name)
    if found[0] is None:
        raise UsageError(
            f"serializer: there is not exactly one function {name} (searched without a schema: "
            f"{', '.join(found[1]) or 'none'}). Name it with its schema and without arguments: public.contact_json."
        )
    return int(found[0])


async def _look_up(conn: AsyncConnection, query: str, name: str) -> tuple[int | None, list[str]]:
    try:
        row = await (await conn.execute(query.encode(), {"name": name})).fetchone()
    except (
        psycopg.errors.InvalidName,
        psycopg.errors.SyntaxError,
        psycopg.errors.FeatureNotSupported,
        psycopg.DataError,
    ) as error:
        raise UsageError(f"{name!r} is no name: {error.diag.message_primary or error}.") from error
    assert row is not None  # noqa: S101 - a select without a table has one row
    return row[0], row[1]


async def _run(conn: AsyncConnection, query: str, parameters: Mapping[str, object]) -> object:
    try:
        row = await (await conn.execute(query.encode(), parameters)).fetchone()
    except _WRONG_REQUEST as error:
        raise UsageError(_message(error)) from error
    except psycopg.errors.LockNotAvailable as error:
        raise OutboxError("Another transaction held a lock on the table for too long. Try again.") from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise OutboxError(_message(error)) from error
    return row[0] if row else None


def _message(error: psycopg.Error) -> str:
    parts = [error.diag.message_primary or str(error), error.diag.message_hint]
    return " ".join(part if part.endswith(".") else f"{part}." for part in parts if part)
