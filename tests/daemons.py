"""Daemons for tests: in this process for most, as a real command where signals and exits are the point."""

import asyncio
import contextlib
import ipaddress
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg

from outbox.daemon.dispatcher import Dispatcher
from outbox.daemon.outage import Outage
from outbox.daemon.run import run_daemon
from outbox.daemon.targets import Targets
from outbox.http.sender import Sender
from outbox.secrets import SecretBox
from outbox.settings import Settings

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)
POLL_SECONDS = 0.01


@contextlib.asynccontextmanager
async def running(dsn: str, **settings: Any) -> AsyncIterator[asyncio.Event]:  # noqa: ANN401 - any setting's value
    """Run a daemon in this loop; it drains at the end, and what it raises is raised."""
    chosen = {"poll_interval": 0.1, "allow_networks": LOOPBACK, "request_timeout": 5.0, **settings}
    stop = asyncio.Event()
    task = asyncio.create_task(run_daemon(Settings(dsn=dsn, **chosen), stop=stop))
    try:
        yield stop
    finally:
        stop.set()
        await task


async def until_empty(dsn: str, **settings: Any) -> int:  # noqa: ANN401 - any setting's value
    """Work off what is due; return how many died."""
    chosen = {"poll_interval": 0.1, "allow_networks": LOOPBACK, "request_timeout": 5.0, **settings}
    return await run_daemon(Settings(dsn=dsn, **chosen), stop=asyncio.Event(), until_empty=True)


@contextlib.asynccontextmanager
async def dispatching(db: str, **chosen: Any) -> AsyncIterator[Dispatcher]:  # noqa: ANN401 - any setting's value
    """Give a dispatcher that does not run. What is tested is a moment in the middle of its work."""
    settings = Settings(dsn=db, **chosen)
    async with Sender.of(settings, connections=1) as sender:
        dispatcher = Dispatcher(settings, sender, Targets(SecretBox(())), Outage())
        try:
            yield dispatcher
        finally:
            await dispatcher._senders.finish(0.0)  # noqa: SLF001
            for link in dispatcher._links:  # noqa: SLF001
                await link.drop()


async def eventually(holds: Callable[[], bool], *, within: float = 30.0) -> None:
    """Poll until it holds; AssertionError when it does not."""
    deadline = time.monotonic() + within
    while not holds():
        assert time.monotonic() < deadline, f"not within {within} s"
        await asyncio.sleep(POLL_SECONDS)


def eventually_true(holds: Callable[[], bool], *, within: float = 30.0) -> None:
    """Do as `eventually` does, in a test without a loop."""
    asyncio.run(eventually(holds, within=within))


class DaemonProcess:
    """`outbox run` as a process of its own, with its log as events."""

    def __init__(self, dsn: str, log: Path, *arguments: str, **settings: str) -> None:
        self._log = log
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OUTBOX_")}
        environment |= {"OUTBOX_DSN": dsn, "OUTBOX_ALLOW_NETWORKS": "127.0.0.0/8", "OUTBOX_POLL_INTERVAL": "100ms"}
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "outbox", "run", *arguments],
                env=environment | {f"OUTBOX_{name.upper()}": value for name, value in settings.items()},
                stderr=stderr,
                stdout=stderr,
            )

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the log's lines of this event so far."""
        lines = self._log.read_text().splitlines()
        found = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
        return [line for line in found if line["event"] == name]

    @property
    def output(self) -> str:
        """All that it printed so far."""
        return self._log.read_text()

    def wait_for_event(self, name: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait until the log has this event."""
        eventually_true(lambda: len(self.events(name)) >= count or self.process.poll() is not None)
        found = self.events(name)
        assert len(found) >= count, self.output
        return found

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the exit code."""
        self.process.send_signal(signum)
        return self.process.wait(timeout=60)


@contextlib.contextmanager
def daemon_process(dsn: str, *arguments: str, **settings: str) -> Iterator[DaemonProcess]:
    """Run a daemon process; whatever is left of it at the end is killed."""
    with tempfile.TemporaryDirectory() as folder:
        started = DaemonProcess(dsn, Path(folder) / "log", *arguments, **settings)
        try:
            yield started
        finally:
            if started.process.poll() is None:
                started.process.kill()
                started.process.wait()


def attach_contacts(conn: psycopg.Connection) -> None:
    """Create and attach a small table of contacts."""
    conn.execute("create table contacts (id int primary key, location_id text default 'L', name text)")
    conn.execute("select outbox.attach('contacts', 'contact')")


def add_contacts(conn: psycopg.Connection, first: int, count: int) -> None:
    """Create contacts of location L in one statement, numbered from `first` on."""
    conn.execute("insert into contacts select i from generate_series(%s::int, %s::int) i", [first, first + count - 1])


def add_config(conn: psycopg.Connection, url: str, **fields: object) -> UUID:
    """Subscribe a URL to the contacts of location L."""
    columns = {"location_id": "L", "resource": "contact", "url": url, **fields}
    names, marks = ", ".join(columns), ", ".join(["%s"] * len(columns))
    query = f"insert into outbox.postback_configs ({names}) values ({marks}) returning id"  # noqa: S608 - our own names
    row = conn.execute(query.encode(), list(columns.values())).fetchone()
    assert row is not None
    return UUID(str(row[0]))


def doorbell_is_up(conn: psycopg.Connection) -> bool:
    """Tell whether a daemon sleeps, and the next captured change wakes it."""
    return conn.execute("select last_value from outbox.doorbell").fetchone() == (2,)


def captured(conn: psycopg.Connection) -> int:
    """Return how many changes wait in the outbox."""
    row = conn.execute("select count(*) from outbox.outbox").fetchone()
    assert row is not None
    return int(row[0])


def owed(conn: psycopg.Connection) -> list[tuple[str, int, bool]]:
    """Return state, attempts and lease of each delivery that is owed, in the order of their events."""
    return conn.execute("select state, attempts, leased from outbox.deliveries order by event_id, config_id").fetchall()


def make_due(conn: psycopg.Connection) -> None:
    """Let everything that waits be due now."""
    conn.execute("update outbox.deliveries set due_at = now() where state = 'pending'")
