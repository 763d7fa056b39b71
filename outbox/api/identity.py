"""Who asks: headers `user-id` and `user-api-key`, or the two as HTTP Basic. Keys are never logged."""

import asyncio
import base64
import contextlib
import hmac
import math
import time
from collections.abc import AsyncIterator
from uuid import UUID
from weakref import WeakValueDictionary

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler
from psycopg import AsyncConnection

from outbox.api.errors import RefusedError
from outbox.api.keys import LINKS, TURN, USER
from outbox.api.limits import Buckets
from outbox.core.model import User
from outbox.postgres import users
from outbox.postgres.pool import Links

USER_RATE, USER_BURST = 2000.0, 4000.0
"""Requests of one user: a second, and at once."""
USER_TURNS = 8
"""Connections that requests of one user have at a time: two are left, so that others wait for none of his."""
FAILURE_RATE, FAILURE_BURST = 10 / 60, 10.0
"""Failed sign-ins from one address: a second, and at once."""
REMEMBERED_SECONDS = 5.0
"""How long a user that was looked up is known, so also how long a removed one or an old key still may pass."""

_NAMES = ("user-id", "user-api-key", "developer-id")
_PROTECTED = "/v2/"
_SHOWN = 100
_MANY = 10_000

log = structlog.get_logger("outbox")


class SignIn:
    """The sign-in of one application, as a middleware: `middleware` sets request[USER] below /v2/.

    `user_rate` and `user_burst`: requests of one user, a second and at once. `failure_burst`: failed sign-ins from one
    address at once. `remembered`: seconds that a user who was looked up is known without being looked up again.
    """

    def __init__(
        self,
        *,
        user_rate: float = USER_RATE,
        user_burst: float = USER_BURST,
        failure_burst: float = FAILURE_BURST,
        remembered: float = REMEMBERED_SECONDS,
    ) -> None:
        self._remembered = remembered
        self._known: dict[UUID, tuple[float, tuple[User, bytes] | None]] = {}
        self._requests: Buckets[UUID] = Buckets(rate=user_rate, burst=user_burst)
        self._failures: Buckets[str] = Buckets(rate=FAILURE_RATE, burst=failure_burst)
        self._turns: WeakValueDictionary[UUID, asyncio.Semaphore] = WeakValueDictionary()

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Pass the request on with its user; raises RefusedError 400, 401 or 429."""
        if not request.path.startswith(_PROTECTED):
            return await handler(request)
        if given := [name for name in _NAMES if name in request.query]:
            raise RefusedError(
                400,
                f"{given[0]} is not accepted in the query, because URLs are logged on their way: send it as a header.",
                field=given[0],
            )
        if request.headers.get("Sec-Fetch-Site", "none") not in {"none", "same-origin"}:
            # A browser remembers HTTP Basic, and signs in whoever has it send a form: a replay needs no more than that.
            raise RefusedError(400, "A page of another site had your browser send this: it is not answered.")
        user = request[USER] = await self._user(request)
        if wait := self._requests.take(user.id, time.monotonic()):
            raise _too_many("You ask too often.", wait)
        bound = {"user_id": str(user.id)}
        if developer := request.headers.get("developer-id"):
            bound["developer_id"] = developer[:_SHOWN]
        request[TURN] = self._turns.setdefault(user.id, asyncio.Semaphore(USER_TURNS))
        with structlog.contextvars.bound_contextvars(**bound):
            return await handler(request)

    async def _user(self, request: web.Request) -> User:
        user_id, key = _given(request)
        # A key that does not fit is asked for anew: what is remembered may be the key before a rotation.
        for anew in (False, True):
            if user_id is None or not key:
                break
            found = await self._find(request.app[LINKS], user_id, anew=anew)
            stored = found[1] if found else bytes(32)
            if hmac.compare_digest(stored, users.hash_of(key)) and found:
                return found[0]
        # Only what fails is counted by address: behind a proxy all have one, and nobody may lock out the others.
        address = request.remote or ""
        if wait := self._failures.take(address, time.monotonic()):
            raise _too_many("Too many failed sign-ins from your address.", wait)
        log.warning("signin.failed", user_id=None if user_id is None else str(user_id), address=address)
        raise RefusedError(
            401,
            "Send the headers user-id and user-api-key, or user-id:user-api-key as HTTP Basic, of a user.",
            field="user-id",
            headers={"WWW-Authenticate": 'Basic realm="outbox", charset="UTF-8"'},
        )

    async def _find(self, links: Links, user_id: UUID, *, anew: bool) -> tuple[User, bytes] | None:
        now = time.monotonic()
        until, found = self._known.get(user_id, (0.0, None))
        if until <= now or (anew and found):
            async with links.connection() as conn:
                found = await users.find(conn, user_id)
            if len(self._known) >= _MANY:
                self._known.clear()
            self._known[user_id] = (now + self._remembered, found)
        return found


@contextlib.asynccontextmanager
async def connection(request: web.Request) -> AsyncIterator[AsyncConnection]:
    """Lend a connection to the user who asks, when it is his turn. Not for as long as his body takes to come."""
    async with request[TURN], request.app[LINKS].connection() as lent:
        yield lent


def _given(request: web.Request) -> tuple[UUID | None, str]:
    """Return the user id and the key; what is no id is None, and not kept: it may be a key in the wrong place."""
    user_id, key = _texts(request)
    try:
        return UUID(user_id), key
    except ValueError:
        return None, key


def _texts(request: web.Request) -> tuple[str, str]:
    """Return the user id and the key as sent, empty where there is none. The headers win over HTTP Basic."""
    headers = request.headers
    if "user-id" in headers or "user-api-key" in headers:
        return headers.get("user-id", ""), headers.get("user-api-key", "")
    scheme, _, encoded = headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return "", ""
    try:
        user_id, _, key = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
    except ValueError:
        return "", ""
    return user_id, key


def _too_many(message: str, wait: float) -> RefusedError:
    return RefusedError(429, message, headers={"Retry-After": str(max(1, math.ceil(wait)))})
