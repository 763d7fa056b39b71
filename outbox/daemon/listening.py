"""Where a daemon listens: its health and its figures over HTTP, and the listening itself.

Only who listens imports it: a web server takes 10 MB of memory.
"""

import asyncio
import functools
import logging
from collections.abc import Callable

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from outbox.errors import OutboxError
from outbox.metrics.page import add_page
from outbox.metrics.reading import Readings
from outbox.settings import Settings

log = structlog.get_logger("outbox")

MOST_CONNECTIONS = 512
IDLE_SECONDS = 75.0
"""How long a connection may wait for a whole head, the first too: longer than proxies keep theirs, a minute mostly."""
FAREWELL_SECONDS = 5.0


async def serve_daemon(
    settings: Settings,
    application: web.Application | None,
    *,
    problems: Callable[[], list[str]],
    readings: Callable[[], Readings],
    several: bool,
) -> web.AppRunner:
    """Serve /livez, /readyz and /metrics of a daemon at `settings.listen`, which must be set, beside an application.

    `problems`: what keeps it from being ready. `readings` and `several`: see metrics.page.add_page. Raises OutboxError
    when the address can not be had.
    """
    app = web.Application() if application is None else application
    _add_health(app, problems)
    add_page(
        app,
        settings.dsn or "",
        worst=settings.metrics_configs,
        pooling=settings.pooling,
        readings=readings,
        several=several,
    )
    assert settings.listen is not None  # noqa: S101 - as said above
    return await serve(app, settings.listen)


def _add_health(app: web.Application, problems: Callable[[], list[str]]) -> None:
    async def live(_request: web.Request) -> web.Response:
        return web.json_response({"live": True})

    async def ready(_request: web.Request) -> web.Response:
        found = problems()
        return web.json_response({"ready": not found, "problems": found}, status=503 if found else 200)

    app.router.add_get("/livez", live)
    app.router.add_get("/readyz", ready)


class _ToOurLog(logging.Handler):
    """What aiohttp says of a connection, as events of ours: one line, without what was sent."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError | web.RequestPayloadError):
            log.info("request.broken", error=type(error).__name__)
        else:
            log.error("request.failed", exc_info=error)


def _connection_log() -> logging.Logger:
    logger = logging.Logger("outbox.connections", logging.WARNING)  # noqa: LOG001 - it is nobody else's
    logger.addHandler(_ToOurLog())
    return logger


async def serve(
    app: web.Application,
    listen: tuple[str, int],
    *,
    most: int = MOST_CONNECTIONS,
    idle: float = IDLE_SECONDS,
    farewell: float = FAREWELL_SECONDS,
) -> web.AppRunner:
    """Serve the application on host and port until the runner's cleanup.

    `most` connections at a time; `idle`: seconds that one may wait for a whole head; `farewell`: seconds that answers
    under way may take at the end. Raises OutboxError when the address can not be had.
    """
    listening: list[asyncio.Server] = []

    async def listen_no_more(_app: web.Application) -> None:
        for each in listening:
            each.close()

    app.on_shutdown.append(listen_no_more)
    runner = web.AppRunner(
        app, access_log=None, logger=_connection_log(), keepalive_timeout=idle, shutdown_timeout=farewell,
        # What is packed is refused. To unpack what somebody sends before he has signed in would be his to command.
        auto_decompress=False,
    )  # fmt: skip
    await runner.setup()
    assert runner.server is not None  # noqa: S101 - it was set up
    meet = functools.partial(_meet, runner.server, most)
    try:
        listening.append(await asyncio.get_running_loop().create_server(meet, *listen))
    except OSError as error:
        await runner.cleanup()
        raise OutboxError(
            f"OUTBOX_LISTEN: {listen[0]}:{listen[1]} can not be listened on: {error.strerror}."
        ) from error
    return runner


def _meet(server: web.Server, most: int) -> web.RequestHandler:
    """Return the protocol of a new connection. Where there are too many, the oldest end.

    The tempting refusal of the new one would let whoever holds so many idle ones keep all others out, and without a
    limit he takes the descriptors that deliveries need.
    """
    held = server.connections
    for each in held[: max(0, len(held) - most + 1)]:
        # Not close(): that waits for an answer that nobody may ever read.
        if each.transport is not None:
            each.transport.abort()
    return server()
