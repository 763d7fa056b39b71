"""The application: what every request passes on its way to a resource and back. Resources stand in their own files."""

import time
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from uuid import uuid4

import psycopg
import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from outbox.api import openapi, postbackconfigs, postbacklogs, signing
from outbox.api.body import MAX_BYTES
from outbox.api.errors import RefusedError, error_answer
from outbox.api.identity import SignIn
from outbox.api.keys import LINKS, REQUEST_ID, SECRET_BOX, SETTINGS, USER
from outbox.core.config_rules import InvalidConfigError
from outbox.core.signing import SigningError
from outbox.errors import OutboxError, UsageError
from outbox.postgres import migrations
from outbox.postgres.configs import DeletedConfigError, UnknownConfigError
from outbox.postgres.pool import TRANSIENT, Links
from outbox.secrets import SecretBox, SecretError
from outbox.settings import Settings

CONNECTIONS = 10
"""To the database, at most."""
# Of the lists' queries, whose plans name each day, a compiled one would take ten times as long; and a bitmap reads all
# of a config's day before it gives out one row.
QUERY_SETTINGS = {"statement_timeout": "15s", "jit": "off", "enable_bitmapscan": "off"}
_RETRY_AFTER_SECONDS = "5"
# A cache on the way knows Authorization, but not user-id: it could give one user's answer, or a secret, to the next.
_FOR_NOBODY_ELSE = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Server": "outbox"}

log = structlog.get_logger("outbox")


def application(
    settings: Settings, *, connections: int = CONNECTIONS, sign_in: SignIn | None = None
) -> web.Application:
    """Return the API as an application of its own; `settings.dsn` must be set. It connects with the first request."""
    links = Links(settings.dsn or "", "api", count=connections, settings=QUERY_SETTINGS, pooling=settings.pooling)

    async def close_links(_app: web.Application) -> AsyncIterator[None]:
        yield
        await links.close()

    app = web.Application(
        client_max_size=MAX_BYTES, middlewares=[_answer_with_id, _answer_errors, (sign_in or SignIn()).middleware]
    )
    app[SETTINGS] = settings
    app[LINKS] = links
    app[SECRET_BOX] = SecretBox(settings.secret_key)
    app.cleanup_ctx.append(close_links)
    for resource in (postbackconfigs, signing, postbacklogs, openapi):
        resource.add_routes(app)
    return app


def add_health(app: web.Application) -> None:
    """Add /livez and /readyz, for a process that serves the API and dispatches nothing."""
    app.router.add_get("/livez", _live)
    app.router.add_get("/readyz", _ready)


async def _live(_request: web.Request) -> web.Response:
    return web.json_response({"live": True})


async def _ready(request: web.Request) -> web.Response:
    try:
        async with request.app[LINKS].connection() as conn:
            problems = migrations.differences(await migrations.applied(conn), migrations.known_migrations())
    except TRANSIENT:
        problems = ["the database can not be reached"]
    return web.json_response({"ready": not problems, "problems": problems}, status=503 if problems else 200)


_ASKED_ALL_DAY = ("/livez", "/readyz", "/metrics")


@web.middleware
async def _answer_with_id(request: web.Request, handler: Handler) -> web.StreamResponse:
    request_id = request[REQUEST_ID] = uuid4()
    began = time.monotonic()
    with structlog.contextvars.bound_contextvars(request_id=str(request_id)):
        answer = await handler(request)
        answer.headers["request-id"] = str(request_id)
        answer.headers.update(_FOR_NOBODY_ELSE)
        resource, user = request.match_info.route.resource, request.get(USER)
        # Not the path: ids of records, and whatever else somebody puts into a URL, are not for the log.
        route = resource.canonical if resource else None
        if route not in _ASKED_ALL_DAY or answer.status != HTTPStatus.OK:
            log.info(
                "request.answered",
                method=request.method,
                route=route,
                status=answer.status,
                duration_ms=round((time.monotonic() - began) * 1000),
                user_id=str(user.id) if user else None,
            )
    return answer


@web.middleware
async def _answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        _check_host(request)
        return await handler(request)
    except Exception as error:  # noqa: BLE001 - the one place where an error becomes an answer
        return _answer_to(error, request)


def _check_host(request: web.Request) -> None:
    # Links are made from it, wherever that happens.
    try:
        request.url.origin()
    except ValueError:
        raise RefusedError(400, "The header Host names no host.", field="host") from None


_OURS: Mapping[type[Exception], tuple[int, str]] = {
    UnknownConfigError: (404, "id"),
    DeletedConfigError: (409, "id"),
    SigningError: (409, "secret"),
    UsageError: (422, "request"),
}


def _answer_to(error: Exception, request: web.Request) -> web.Response:
    headers: Mapping[str, str] = {}
    match error:
        case RefusedError():
            status, errors, headers = error.status, error.errors, error.headers
        case InvalidConfigError():
            status, errors = 422, error.errors
        case OutboxError() if isinstance(error, tuple(_OURS)):
            status, field = next(_OURS[kind] for kind in _OURS if isinstance(error, kind))
            errors = {field: [str(error)]}
        case web.HTTPException():
            return _answer_to_http(error)
        case psycopg.DataError():
            status, errors = 400, {"request": ["The request has a value that can not be looked for or stored."]}
        case psycopg.Error() | OSError() if isinstance(error, TRANSIENT):
            log.warning("request.failed", reason="database", error=str(error).strip())
            status = 503
            errors = {"request": ["The database can not be reached now, or takes too long. Try again."]}
            headers = {"Retry-After": _RETRY_AFTER_SECONDS}
        case SecretError():
            # Not told as null: who sends a config back as he got it would take its credentials away.
            log.error("request.failed", reason="secret", error=str(error))
            status, errors = 500, {"secret": [f"{error} Whoever runs this server has to set the key."]}
        case _:
            log.error("request.failed", exc_info=error)
            status, errors = 500, {"request": [f"Something failed. Reference: {request[REQUEST_ID]}"]}
    return error_answer(status, errors, headers)


def _answer_to_http(error: web.HTTPException) -> web.Response:
    match error:
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            message = f"{error.method} is not possible here. Possible: {allowed}."
            return error_answer(405, {"request": [message]}, {"Allow": allowed})
        case web.HTTPRequestEntityTooLarge():
            return error_answer(413, {"body": [f"A body may have {MAX_BYTES} bytes at most."]})
        case web.HTTPNotFound():
            return error_answer(404, {"request": ["There is nothing at this address."]})
        case _:
            return error_answer(error.status, {"request": [f"{error.reason}."]})
