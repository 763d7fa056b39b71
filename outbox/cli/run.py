"""`outbox run`: the daemon in the foreground, ended by SIGTERM, SIGINT or SIGHUP."""

import asyncio
import dataclasses
import gc
from typing import Any

import click

from outbox import logs, signals
from outbox.cli import options
from outbox.daemon.run import run_daemon
from outbox.daemon.workers import REPORT_TO, REPORTS_FROM, WITH_PARENT, end_with_parent, run_workers
from outbox.errors import OutboxError, UsageError
from outbox.settings import Settings


@click.command()
@options.settings(*options.DAEMON)
@click.option("--until-empty", is_flag=True, help="Work off what is due and exit: 0, or 1 when a delivery died.")
@click.option("--serve", is_flag=True, help="Serve the HTTP API too, on 127.0.0.1:8080 unless OUTBOX_LISTEN is set.")
@click.option(WITH_PARENT, is_flag=True, hidden=True)
@click.option(REPORT_TO, type=int, hidden=True)
@click.option(REPORTS_FROM, default="", hidden=True)
def run(
    settings: Settings, *, until_empty: bool, serve: bool, with_parent: bool, report_to: int | None, reports_from: str
) -> None:
    """Dispatch: route what was captured, send it, settle it, until SIGTERM, SIGINT or SIGHUP.

    The daemon never changes the schema; it refuses one that it does not know.
    """
    logs.configure(level=settings.log_level, with_context=serve)
    _calm_the_collector()
    if serve and settings.workers > 1:
        raise UsageError("--serve is for one worker: run `outbox serve` beside --workers.")
    if settings.workers > 1:
        code = run_workers(settings.workers, listens=settings.listen is not None)
        if code:
            raise click.exceptions.Exit(code)
        return
    sockets = [int(fd) for fd in reports_from.split(",") if fd]
    died = options.run_async(
        _run(
            settings,
            until_empty=until_empty,
            serve=serve,
            with_parent=with_parent,
            report_to=report_to,
            reports_from=sockets,
        )
    )
    if until_empty and died:
        raise OutboxError(f"{died} deliveries died. See: outbox deliveries list --state dead")


def _calm_the_collector() -> None:
    # What was imported stays: looking through it again and again took a tenth of the daemon's time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


async def _run(settings: Settings, *, serve: bool, with_parent: bool, **how: Any) -> int:  # noqa: ANN401 - as run_daemon has it
    stop = asyncio.Event()
    if with_parent:
        end_with_parent(stop)
    for signum in signals.ending():
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    if not serve:
        return await run_daemon(settings, stop=stop, **how)
    from outbox.api import server  # noqa: PLC0415 - 10 MB of memory, for who serves it

    settings = dataclasses.replace(settings, listen=settings.listen or options.DEFAULT_LISTEN)
    return await run_daemon(settings, stop=stop, application=server.application(settings), **how)
