"""The API for tests: the real application on loopback, with a real client, and users to ask with."""

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import psycopg
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from outbox.api.identity import SignIn
from outbox.api.server import application
from outbox.postgres import users
from outbox.settings import Settings

Client = TestClient[web.Request, web.Application]


@contextlib.asynccontextmanager
async def serving(
    settings: Settings,
    prepare: Callable[[web.Application], object] = lambda _: None,
    *,
    sign_in: SignIn | None = None,
) -> AsyncIterator[Client]:
    """Serve the application, `prepare`d with more routes, and give a client of it."""
    app = application(settings, sign_in=sign_in)
    prepare(app)
    server = TestServer(app)
    await server.start_server(auto_decompress=False)  # as listening.serve does
    async with TestClient(server) as client:
        yield client


async def new_user(dsn: str, *location_ids: str) -> dict[str, str]:
    """Add a user of these locations, without any an operator; returns the headers it signs in with."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        user, key = await users.add(conn, "somebody", location_ids or None)
    return {"user-id": str(user.id), "user-api-key": key}


def resolved(described: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema that a reference of the OpenAPI document names, or the schema itself."""
    if "$ref" not in schema:
        return schema
    found: dict[str, Any] = described["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return found
