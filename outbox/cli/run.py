"""`outbox run`: the daemon in the foreground, ended by SIGTERM or SIGINT."""

import asyncio
import gc
import signal

import click

from outbox import logs
from outbox.cli import options
from outbox.daemon.run import run_daemon
from outbox.daemon.workers import run_workers
from outbox.errors import OutboxError
from outbox.settings import Settings

_SETTINGS = (
    "dsn",
    "concurrency",
    "max_in_flight_per_config",
    "poll_interval",
    "request_timeout",
    "drain_timeout",
    "workers",
    "allow_networks",
    "secret_key",
    "listen",
)


@click.command()
@options.settings(*_SETTINGS)
@click.option("--until-empty", is_flag=True, help="Work off what is due and exit: 0, or 1 when a delivery died.")
def run(settings: Settings, *, until_empty: bool) -> None:
    """Dispatch: route what was captured, send it, settle it, until SIGTERM or SIGINT.

    The daemon never changes the schema; it refuses one that it does not know. OUTBOX_SECRET_KEY is read from the
    environment only.
    """
    logs.configure()
    _calm_the_collector()
    if settings.workers > 1:
        code = run_workers(settings.workers)
        if code:
            raise click.exceptions.Exit(code)
        return
    died = options.run_async(_run(settings, until_empty=until_empty))
    if until_empty and died:
        raise OutboxError(f"{died} deliveries died. See: outbox deliveries list --state dead")


def _calm_the_collector() -> None:
    # What was imported stays: looking through it again and again took a tenth of the daemon's time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


async def _run(settings: Settings, *, until_empty: bool) -> int:
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    return await run_daemon(settings, stop=stop, until_empty=until_empty)
