"""What each benchmark stands on: a PostgreSQL of its own, a receiver process, a daemon process, and the record."""

import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psycopg

from outbox import __version__
from outbox.cli.options import run_async
from outbox.demo.contacts import DDL
from outbox.demo.embedded import EmbeddedPostgres
from outbox.postgres.migrations import migrate
from tests.certificates import Identity

RESULTS = Path(__file__).parent / "results"
LOCATION = "23948sdnfia1129i9asf92"


class ReceiverProcess:
    """A receiver in a process of its own; `delay`: seconds before each answer; `tls`: what it shows its clients."""

    def __init__(self, *, delay: float = 0.0, keep_times: bool = False, tls: Identity | None = None) -> None:
        arguments = [sys.executable, "-m", "benchmarks.receiver", str(delay), "times" if keep_times else "-"]
        arguments += [str(tls.certificate), str(tls.key)] if tls else []
        self.process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603 - ourselves
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self._line()}/postback"

    def _line(self) -> str:
        assert self.process.stdout is not None  # noqa: S101 - for the type checker
        return self.process.stdout.readline().strip()

    def ask(self, what: str) -> Any:  # noqa: ANN401 - JSON
        """Ask for `count`, `connections`, `span` or `times`."""
        assert self.process.stdin is not None  # noqa: S101 - for the type checker
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return json.loads(self._line())

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None  # noqa: S101 - for the type checker
        assert self.process.stdout is not None  # noqa: S101 - for the type checker
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


@contextmanager
def receiver(*, delay: float = 0.0, keep_times: bool = False, tls: Identity | None = None) -> Iterator[ReceiverProcess]:
    """Run a receiver."""
    started = ReceiverProcess(delay=delay, keep_times=keep_times, tls=tls)
    try:
        yield started
    finally:
        started.close()


@contextmanager
def server(**settings: str) -> Iterator[EmbeddedPostgres]:
    """Run a PostgreSQL with our schema and an attached, empty table of contacts."""
    with EmbeddedPostgres(settings={"shared_buffers": "256MB", **settings}) as started:
        run_async(migrate(started.dsn))
        with psycopg.connect(started.dsn, autocommit=True) as conn:
            conn.execute(DDL)
            conn.execute("select outbox.attach('public.contacts', 'contact')")
        yield started


@contextmanager
def database(**settings: str) -> Iterator[str]:
    """Run a `server`; give its DSN."""
    with server(**settings) as started:
        yield started.dsn


def add_config(conn: psycopg.Connection, url: str, **fields: Any) -> None:  # noqa: ANN401 - any column's value
    """Subscribe a URL to the contacts of LOCATION."""
    columns = {"location_id": LOCATION, "resource": "contact", "url": url, **fields}
    names, marks = ", ".join(columns), ", ".join(["%s"] * len(columns))
    query = f"insert into outbox.postback_configs ({names}) values ({marks})"  # noqa: S608 - our own names
    conn.execute(query.encode(), list(columns.values()))


def add_contacts(conn: psycopg.Connection, count: int) -> None:
    """Create contacts in one statement; each is captured."""
    conn.execute(
        "insert into public.contacts (location_id, last_name, first_name, email, address, city) "
        "select %s, 'Jones ' || i, 'Zoë', 'zoe' || i || '@example.com', '1 Main St & Co', 'Örebro' "
        "from generate_series(1, %s) i",
        [LOCATION, count],
    )


def memory(pid: int, which: str = "VmHWM") -> float:
    """Return a process's resident memory in MB: VmHWM is its peak, VmRSS what it is now; 0 when it has ended."""
    _, _, value = Path(f"/proc/{pid}/status").read_text().partition(f"{which}:")
    return int(value.split()[0]) / 1024 if value else 0.0


class Daemon:
    """`outbox run` in a process of its own, with what the kernel says of it."""

    _running = 0

    def __init__(self, dsn: str, *arguments: str, **settings: str) -> None:
        RESULTS.mkdir(exist_ok=True)
        self._file = RESULTS / f"daemon{Daemon._running or ''}.tmp"
        Daemon._running += 1
        environment = os.environ | {"OUTBOX_DSN": dsn, "OUTBOX_ALLOW_NETWORKS": "127.0.0.0/8"} | settings
        self._log = self._file.open("wb")
        self.process = subprocess.Popen(  # noqa: S603 - ourselves
            [sys.executable, "-m", "outbox", "run", *arguments], env=environment, stderr=self._log
        )
        self.started = time.monotonic()

    def wait_until_started(self) -> None:
        """Wait until it looks for work."""
        while b"daemon.started" not in self._file.read_bytes():
            time.sleep(0.02)
        time.sleep(0.5)

    def memory(self, which: str = "VmHWM") -> float:
        """Return MB: VmHWM is the peak of the resident memory, VmRSS what it is now."""
        return memory(self.process.pid, which)

    def cpu_seconds(self) -> float:
        """Return the processor time that it used so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        """Drain and end it."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()
        self._log.close()
        Daemon._running -= 1


@contextmanager
def daemon(dsn: str, *arguments: str, **settings: str) -> Iterator[Daemon]:
    """Run a daemon."""
    started = Daemon(dsn, *arguments, **settings)
    try:
        yield started
    finally:
        started.stop()


def statements(conn: psycopg.Connection) -> float:
    """Return how many statements the database has seen: each of the daemon's is a transaction of its own.

    Those of a connection are certain to be in when it is closed.
    """
    conn.execute("select pg_stat_clear_snapshot()")
    row = conn.execute(
        "select sum(pg_stat_get_db_xact_commit(d.oid)) from pg_database d where d.datname = current_database()"
    ).fetchone()
    return float(row[0]) if row else 0.0


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_for(port: int) -> None:
    """Wait until somebody listens there."""
    while True:
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.01)


def record(
    name: str, figures: dict[str, Any], settings: dict[str, Any], versions: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Print the figures and write them to results/ with the machine and the versions, `versions` beside our own."""
    RESULTS.mkdir(exist_ok=True)
    cpu = next((x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")), "")
    whole = {
        "benchmark": name,
        "figures": figures,
        "settings": settings,
        "machine": {"cores": os.cpu_count(), "cpu": cpu.partition(":")[2].strip(), "system": platform.platform()},
        "versions": {"outbox": __version__, "python": platform.python_version(), "psycopg": psycopg.__version__}
        | dict(versions),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    print(f"\n{name}")
    for key, value in figures.items():
        print(f"  {key:<44}{value:>14,.3f}" if isinstance(value, float) else f"  {key:<44}{value!s:>14}")
