"""/livez and /readyz for whoever watches the process. It answers from memory and asks no database."""

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


async def serve(app: web.Application, listen: tuple[str, int]) -> web.AppRunner:
    """Serve the application on host and port; OutboxError when the address can not be had."""
    # Unpacking is done as the body comes, for whoever sends it, signed in or not: a MB can take the loop two seconds.
    runner = web.AppRunner(app, access_log=None, logger=_connection_log(), auto_decompress=False)
    await runner.setup()
    try:
        await web.TCPSite(runner, *listen).start()
    except OSError as error:
        await runner.cleanup()
        raise OutboxError(
            f"OUTBOX_LISTEN: {listen[0]}:{listen[1]} can not be listened on: {error.strerror}."
        ) from error
    return runner
