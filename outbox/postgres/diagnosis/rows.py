"""How the checks read."""

from collections.abc import Mapping
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import dict_row


async def rows(conn: AsyncConnection, query: str, values: Mapping[str, object] | None = None) -> list[dict[str, Any]]:
    """Return the rows by name. Never a prepared statement: a pooler would give it to another connection."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(query.encode(), values, prepare=False)
        return await cursor.fetchall()
