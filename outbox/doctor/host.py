"""Checks of the settings, and of the host on which they are to hold."""

import asyncio
import os
import resource

from outbox.core.finding import OK, PROBLEM, WARNING, Finding
from outbox.errors import UsageError
from outbox.http.sender import Sender
from outbox.otel import begin_tracing
from outbox.settings import Proxy, Settings

CONNECT_WITHIN = 5.0
"""Seconds for a connection to the proxy."""

OTHER_FILES = 64
"""Open files of a daemon that are no subscriber's connection: the database, the log, the loop, the API."""


async def settings_fit(settings: Settings) -> list[Finding]:
    """Whether the settings fit each other and this host."""
    found = []
    if settings.concurrency > 1 and settings.max_in_flight_per_config >= settings.concurrency:
        found.append(
            Finding(
                "settings", WARNING,
                f"OUTBOX_MAX_IN_FLIGHT_PER_CONFIG ({settings.max_in_flight_per_config}) is not less than "
                f"OUTBOX_CONCURRENCY ({settings.concurrency}): one slow subscriber can take every slot.",
                "Make it a fraction of the concurrency, such as a tenth.",
            )
        )  # fmt: skip
    if settings.drain_timeout < settings.request_timeout:
        found.append(
            Finding(
                "settings", WARNING,
                f"OUTBOX_DRAIN_TIMEOUT ({settings.drain_timeout:g} s) is less than OUTBOX_REQUEST_TIMEOUT "
                f"({settings.request_timeout:g} s): the end of a daemon cuts off POSTs, which are sent twice then.",
                "Make it longer, and the time that your supervisor waits before it kills longer still.",
            )
        )  # fmt: skip
    processors = os.cpu_count() or 1
    if settings.workers > processors:
        found.append(
            Finding(
                "settings", WARNING,
                f"OUTBOX_WORKERS ({settings.workers}) is more than this host's {processors} processors.",
                "One for each processor is the most that helps.",
            )
        )  # fmt: skip
    return found or [Finding("settings", OK, "They fit each other.")]


async def open_files(settings: Settings, *, limit: int | None = None) -> list[Finding]:
    """Whether a process may open as many files as it has connections. `limit`: this process's by default."""
    if limit is None:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    # As many in flight as there are slots, and as many that are kept for the next POST.
    least, enough = settings.concurrency + OTHER_FILES, 2 * settings.concurrency + OTHER_FILES
    if limit == resource.RLIM_INFINITY or limit >= enough:
        return [Finding("open files", OK, f"Enough for OUTBOX_CONCURRENCY ({settings.concurrency}).")]
    return [
        Finding(
            "open files", PROBLEM if limit < least else WARNING,
            f"A process may open {limit} files here; OUTBOX_CONCURRENCY ({settings.concurrency}) may need {enough}. "
            "Too few look like subscribers that cannot be connected to.",
            f"Where the daemon is started: ulimit -n {enough}, or LimitNOFILE={enough} in its systemd unit.",
        )
    ]  # fmt: skip


async def way_out(settings: Settings) -> list[Finding]:
    """Whether the files that POSTs need can be read, the proxy is there, and what spans need is installed."""
    found = []
    try:
        Sender.of(settings)
    except UsageError as error:
        found.append(Finding("way out", PROBLEM, f"No daemon starts: {error}", "Correct the setting or the file."))
    if settings.proxy is not None and (fault := await _unreachable(settings.proxy)):
        found.append(
            Finding(
                "way out", PROBLEM,
                f"The proxy {settings.proxy.host}:{settings.proxy.port} of OUTBOX_PROXY can not be reached: {fault}. "
                "Nothing is sent; what is due is given back untried.",
                "See that it runs, and that it lets this host connect.",
            )
        )  # fmt: skip
    if settings.tracing:
        try:
            # Nothing leaves: there is no span.
            begin_tracing().close()
        except UsageError as error:
            found.append(
                Finding(
                    "way out", PROBLEM, f"No daemon starts: {error}", "Put that right, or leave OUTBOX_TRACING off."
                )
            )
    through = "Directly." if settings.proxy is None else f"By the proxy {settings.proxy.host}:{settings.proxy.port}."
    return found or [Finding("way out", OK, through)]


async def _unreachable(proxy: Proxy) -> str | None:
    try:
        async with asyncio.timeout(CONNECT_WITHIN):
            _, writer = await asyncio.open_connection(proxy.host, proxy.port)
    except TimeoutError:
        return f"no connection within {CONNECT_WITHIN:g} s"
    except OSError as error:
        return (os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)).lower()
    writer.close()
    return None
