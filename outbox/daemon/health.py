"""/livez and /readyz for whoever watches the process, and the listening itself. It asks no database."""

import asyncio
import functools
import logging
import time

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from outbox.daemon.dispatcher import Dispatcher
from outbox.daemon.outage import Outage
from outbox.errors import OutboxError

log = structlog.get_logger("outbox")

LATE_SECONDS = 10.0
"""Beyond the poll interval: how long a turn of the fetch loop may take before the daemon is not ready."""

MOST_CONNECTIONS = 512
IDLE_SECONDS = 75.0
"""How long a connection may wait for a whole head, the first too: longer than proxies keep theirs, a minute mostly."""
FAREWELL_SECONDS = 5.0


class Health:
    """Whether the process lives, and whether it does its work.

    `poll_interval` and `late`: seconds; their sum is how long a turn of the fetch loop may take.
    """

    def __init__(
        self, dispatcher: Dispatcher, outage: Outage, *, poll_interval: float, late: float = LATE_SECONDS
    ) -> None:
        self._dispatcher = dispatcher
        self._outage = outage
        self._patience = poll_interval + late
        self.schema_fits = True

    def tell_schema_fits(self, fits: bool) -> None:  # noqa: FBT001 - the one thing that is told
        """Remember whether the database's ledger fits this program."""
        self.schema_fits = fits

    def problems(self) -> list[str]:
        """Return what keeps the daemon from being ready; empty when it is."""
        found = []
        if self._outage.lasts:
            found.append("the database can not be reached")
        elif time.monotonic() - self._dispatcher.turned_at > self._patience:
            found.append("the fetch loop did not turn lately")
        if not self.schema_fits:
            found.append("the schema is not the one that this program knows")
        return found

    def add_routes(self, app: web.Application) -> None:
        """Add the two answers to an application."""
        app.router.add_get("/livez", self._live)
        app.router.add_get("/readyz", self._ready)

    async def _live(self, _request: web.Request) -> web.Response:
        return web.json_response({"live": True})

    async def _ready(self, _request: web.Request) -> web.Response:
        problems = self.problems()
        return web.json_response({"ready": not problems, "problems": problems}, status=503 if problems else 200)


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
