"""`outbox serve`: the HTTP API in the foreground, ended by SIGTERM, SIGINT or SIGHUP."""

import asyncio

import click
import structlog

from outbox import __version__, logs, signals
from outbox.api import server
from outbox.cli import options
from outbox.daemon import listening
from outbox.errors import SchemaError
from outbox.metrics.page import add_page
from outbox.postgres import migrations
from outbox.settings import Settings

log = structlog.get_logger("outbox")


@click.command()
@options.settings(
    "dsn", "secret_key", "min_attempt_interval", "listen", "metrics_configs", "log_level", *options.DESTINATIONS,
    texts={"listen": "host:port of the API, /livez, /readyz and /metrics. Default: 127.0.0.1:8080."},
)  # fmt: skip
def serve(settings: Settings) -> None:
    """Serve the HTTP API, on 127.0.0.1:8080 unless OUTBOX_LISTEN says otherwise, until SIGTERM, SIGINT or SIGHUP.

    It dispatches nothing: that is `outbox run`, and `outbox run --serve` is both in one process.
    """
    logs.configure(level=settings.log_level, with_context=True)
    options.run_async(_serve(settings))


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()
    for signum in signals.ending():
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    async with options.connect(settings) as conn:
        if problems := migrations.differences(await migrations.applied(conn), migrations.known_migrations()):
            raise SchemaError("\n".join(problems))
    app = server.application(settings)
    server.add_health(app)
    add_page(app, options.needed(settings.dsn), worst=settings.metrics_configs, pooling=settings.pooling)
    host, port = settings.listen or options.DEFAULT_LISTEN
    runner = await listening.serve(app, (host, port))
    log.info("server.started", version=__version__, host=host, port=port)
    await stop.wait()
    await runner.cleanup()
    log.info("server.stopped")
