"""Puts a daemon together: checks the database, starts the parts, waits for the end, stops them in order."""

import asyncio
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import structlog

from outbox import __version__
from outbox.core.buffer import AHEAD
from outbox.daemon.dispatcher import Dispatcher
from outbox.daemon.health import Health
from outbox.daemon.housekeeping import Housekeeper
from outbox.daemon.listener import LOOK_AFTER_SECONDS, listen
from outbox.daemon.outage import Outage
from outbox.daemon.reports import Reports, report
from outbox.daemon.targets import Targets
from outbox.errors import SchemaError
from outbox.http.sender import Sender
from outbox.otel import begin_tracing
from outbox.postgres import housekeeping, migrations
from outbox.postgres.pool import ANSWER_SECONDS, Link, connected
from outbox.secrets import SecretBox
from outbox.settings import Pooling, Settings

if TYPE_CHECKING:
    from aiohttp import web

log = structlog.get_logger("outbox")


async def run_daemon(
    settings: Settings,
    *,
    stop: asyncio.Event,
    until_empty: bool = False,
    application: "web.Application | None" = None,
    report_to: int | None = None,
    reports_from: Sequence[int] = (),
) -> int:
    """Dispatch until `stop` is set and all is drained, or with `until_empty` until nothing is due.

    `application` is served beside the health, where there is a `listen`. `report_to` is the socket on which a worker
    says what it has done, `reports_from` are those on which the listening one hears it.

    Returns how many deliveries died. Raises SchemaError for a schema that this program does not know, and
    psycopg.Error when the database can not be reached at the start; later it waits for it.
    """
    dsn = settings.dsn or ""
    if not await _prepared(dsn, settings.pooling, stop):
        return 0
    link = functools.partial(Link, dsn, settings=None, pooling=settings.pooling)
    outage = Outage()
    async with Sender.of(settings, connections=settings.concurrency) as sender:
        tracing = begin_tracing() if settings.tracing else None
        targets = Targets(SecretBox(settings.secret_key), in_hand=settings.concurrency + AHEAD)
        dispatcher = Dispatcher(settings, sender, targets, outage, tracing)
        health = Health(dispatcher, outage, poll_interval=settings.poll_interval)
        reports = Reports(reports_from)
        runner = None
        if settings.listen:
            from outbox.daemon import listening  # noqa: PLC0415 - a web server: 10 MB of memory, for who wants it

            runner = await listening.serve_daemon(
                settings,
                application,
                problems=health.problems,
                readings=lambda: reports.with_own(health.reading()),
                several=bool(reports_from),
            )
        log.info("daemon.started", version=__version__, concurrency=settings.concurrency)
        listening_link = link("listen", deadline=LOOK_AFTER_SECONDS + ANSWER_SECONDS)
        house = asyncio.create_task(Housekeeper(settings, health.tell_schema_fits).keep_house(), name="keep house")
        others = [
            asyncio.create_task(listen(listening_link, dispatcher.ring), name="listen"),
            house,
            asyncio.create_task(_stop_when(stop, dispatcher, house), name="stop"),
            asyncio.create_task(reports.hear(), name="hear reports"),
        ]
        if report_to is not None:
            others.append(asyncio.create_task(report(report_to, health.reading), name="report"))
        for task in others:
            task.add_done_callback(_tell_of_a_bug)
        try:
            await dispatcher.run(until_empty=until_empty)
        finally:
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            if runner:
                await runner.cleanup()
            if tracing:
                # In a thread: a collector that is away may not hold up what the loop still has to do.
                await asyncio.to_thread(tracing.close)
    return dispatcher.died


def _tell_of_a_bug(task: "asyncio.Task[None]") -> None:
    """Say that a task ended which has no end: what fails for want of the database it waits for itself."""
    if not task.cancelled() and (error := task.exception()):
        log.error("task.failed", task=task.get_name(), exc_info=error)


async def _stop_when(stop: asyncio.Event, dispatcher: Dispatcher, house: "asyncio.Task[None]") -> None:
    await stop.wait()
    log.info("daemon.stopping")
    # At once and not after the drain: what it does can wait, what is in flight can not wait for a lock of its.
    house.cancel()
    dispatcher.stop()


async def _prepared(dsn: str, pooling: Pooling, stop: asyncio.Event) -> bool:
    """Return whether the database is ready, or False when the end was asked for meanwhile."""
    preparing, stopping = asyncio.create_task(_prepare(dsn, pooling)), asyncio.create_task(stop.wait())
    await asyncio.wait({preparing, stopping}, return_when=asyncio.FIRST_COMPLETED)
    is_ready = preparing.done()
    for task in (preparing, stopping):
        task.cancel()
    await asyncio.gather(preparing, stopping, return_exceptions=True)
    if is_ready:
        await preparing
    return is_ready


async def _prepare(dsn: str, pooling: Pooling) -> None:
    async with connected(dsn, "start", pooling=pooling, deadline=ANSWER_SECONDS) as conn:
        encoding = conn.info.parameter_status("server_encoding")
        if encoding != "UTF8":
            raise SchemaError(f"The database's encoding is {encoding}; outbox needs UTF8, in which records are sent.")
        problems = migrations.differences(await migrations.applied(conn), migrations.known_migrations())
        if problems:
            raise SchemaError("\n".join(problems))
        # Before the first event is routed: what comes earlier lands in the default partition, and so does its day.
        await housekeeping.make_partitions(conn)
