"""The process that owns an embedded Postgres: it outlives its owner by the moment that cleaning up takes.

Started by embedded.py as a plain file, so it imports the standard library and nothing of outbox. Requests and
replies are JSON, one a line, on stdin and stdout; the end of stdin means that the owner is gone, however it went.
"""

import json
import os
import pwd
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SUPERUSER = "postgres"
_SOCKET_PATH_LIMIT = 104  # bytes, macOS; Linux allows 108
_STDIN = 0
_INITDB_SECONDS = 120.0
_START_SECONDS = 120.0  # crash recovery after a bulk load takes a while on a slow disk
_STOP_SECONDS = 60.0
_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_LAST_ORDERS = ((signal.SIGINT, 5.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))


class Refused(Exception):  # noqa: N818 - the message is the reply, not a fault of this process
    """A request that could not be done; the message is for the owner."""


class OwnerGone(Exception):  # noqa: N818 - an event, not an error
    """Stdin ended while something was awaited."""


def main() -> None:
    """Obey the owner until its end of the pipe closes, then stop Postgres and remove its directory."""
    os.umask(0o077)
    # Handlers rather than SIG_IGN: an ignored signal would be inherited by Postgres.
    signal.signal(signal.SIGINT, _ignore)
    signal.signal(signal.SIGHUP, _ignore)
    signal.signal(signal.SIGTERM, _hang_up)
    server = Server()
    try:
        for request in _requests():
            _reply(_answer(server, request))
    except (OwnerGone, BrokenPipeError):
        pass
    finally:
        server.clean_up()


def _ignore(_signum: int, _frame: object) -> None:
    """Stay: only the end of stdin ends this process."""


def _hang_up(_signum: int, _frame: object) -> None:
    """Make SIGTERM look like the end of stdin, so that there is one way out and no half-done step."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, _STDIN)
    os.close(null)


def _requests() -> Iterator[dict[str, Any]]:
    unread = b""
    while chunk := os.read(_STDIN, 65536):
        unread += chunk
        while b"\n" in unread:
            line, unread = unread.split(b"\n", 1)
            yield json.loads(line)


def _reply(reply: dict[str, Any]) -> None:
    os.write(1, json.dumps(reply).encode() + b"\n")


def _pause(seconds: float = 0.01) -> None:
    """Wait a little. The owner sends nothing before it has its reply, so readable means gone."""
    if select.select([_STDIN], [], [], seconds)[0]:
        raise OwnerGone


def _answer(server: "Server", request: dict[str, Any]) -> dict[str, Any]:
    try:
        match request.pop("do"):
            case "create":
                server.create(**request)
            case "start":
                server.start()
            case "stop":
                server.stop(**request)
    except (Refused, OSError, subprocess.SubprocessError) as error:
        return {"error": str(error)}
    return {"directory": str(server.home), "port": server.port, "pid": server.pid}


class Server:
    """One data directory and the `initdb` or `postgres` that runs on it."""

    def __init__(self) -> None:
        self.home: Path | None = None
        self.port = 5432
        self._child: subprocess.Popen[bytes] | None = None
        self._bin = Path()
        # Postgres refuses to run as root; who is not root cannot and need not change the user.
        self._account: dict[str, Any] = {}
        if os.geteuid() == 0:
            try:
                nobody = pwd.getpwnam("nobody")
            except KeyError:
                raise Refused("PostgreSQL does not run as root, and there is no user 'nobody' here") from None
            self._account = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}

    @property
    def pid(self) -> int | None:
        """The postmaster's process id while it runs."""
        return self._child.pid if self._child and self._child.poll() is None else None

    def _runs(self) -> bool:
        return self.pid is not None

    def create(self, bin_dir: str, version: int, settings: dict[str, str], password: str, *, tcp: bool) -> None:
        """Make the temporary directory and a data directory in it."""
        home = self._make_home()
        self._bin = self._reachable(Path(bin_dir), home)
        settings = {"unix_socket_directories": str(home), "listen_addresses": "", **settings}
        arguments = [
            f"--pgdata={home / 'data'}",
            f"--username={SUPERUSER}",
            "--encoding=UTF8",
            "--no-locale",  # C exists everywhere; macOS has no C.UTF-8
            "--no-sync",
            "--auth-local=trust",  # nobody else can enter the directory of the socket
            "--auth-host=scram-sha-256",
        ]
        if version >= 17:  # noqa: PLR2004 - the release that brought the builtin provider
            arguments += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        if tcp:
            self.port = free_port()
            settings |= {"listen_addresses": "127.0.0.1", "password_encryption": "scram-sha-256"}
            secret = home / "password"
            secret.write_text(password)
            self._give(secret)
            arguments.append(f"--pwfile={secret}")
        self._run("initdb", arguments)
        deadline = time.monotonic() + _INITDB_SECONDS
        while self._runs():
            if time.monotonic() > deadline:
                raise Refused(f"initdb did not end within {_INITDB_SECONDS:.0f} s{self._log_tail()}")
            _pause()
        if self._child and self._child.returncode:
            raise Refused(f"initdb failed{self._log_tail()}")
        (home / "password").unlink(missing_ok=True)
        with (home / "data" / "postgresql.conf").open("a") as conf:
            conf.writelines(f"{name} = {_quoted(value)}\n" for name, value in settings.items())
            conf.write(f"port = {self.port}\n")

    def start(self) -> None:
        """Start `postgres` and wait until it accepts connections."""
        if self.home is None or self._runs():
            return
        deadline = time.monotonic() + _START_SECONDS
        while True:
            log_before = (self.home / "server.log").stat().st_size
            self._run("postgres", ["-D", str(self.home / "data")])
            while self._runs():
                if self._is_ready():
                    return
                if time.monotonic() > deadline:
                    raise Refused(f"PostgreSQL was not ready within {_START_SECONDS:.0f} s{self._log_tail()}")
                _pause()
            # After a kill -9 of the postmaster its orphans live on for a moment and bar the way.
            with (self.home / "server.log").open("rb") as log:
                log.seek(log_before)
                barred = b"pre-existing shared memory block" in log.read()
            if not barred or time.monotonic() > deadline:
                raise Refused(f"PostgreSQL did not start{self._log_tail()}")
            _pause(0.05)

    def stop(self, mode: str) -> None:
        """Stop `postgres` in one of its three ways and wait for its end; do nothing when it does not run."""
        if not (self._child and self._runs()):
            return
        self._child.send_signal(_SIGNALS[mode])
        deadline = time.monotonic() + _STOP_SECONDS
        while self._runs():
            if time.monotonic() > deadline:
                raise Refused(f"PostgreSQL did not stop ({mode}) within {_STOP_SECONDS:.0f} s{self._log_tail()}")
            _pause()

    def clean_up(self) -> None:
        """End the child, more firmly each time, and remove the directory."""
        for signum, patience in _LAST_ORDERS:
            if not (self._child and self._runs()):
                break
            self._child.send_signal(signum)
            self._child.send_signal(signal.SIGCONT)  # a stopped process heeds nothing but SIGKILL
            try:
                self._child.wait(patience)
            except subprocess.TimeoutExpired:
                continue
        deadline = time.monotonic() + 10.0
        while self.home and self.home.exists() and time.monotonic() < deadline:
            # Orphans of a killed postmaster may still create files: once more until none is left.
            shutil.rmtree(self.home, ignore_errors=True)
            if self.home.exists():
                time.sleep(0.05)

    def _make_home(self) -> Path:
        """Make a private directory whose socket path is short enough and that the server's user can reach."""
        for parent in dict.fromkeys((Path(tempfile.gettempdir()).resolve(), Path("/tmp").resolve())):  # noqa: S108
            sample = parent / "outbox-pg-12345678" / ".s.PGSQL.12345"
            if len(os.fsencode(sample)) >= _SOCKET_PATH_LIMIT:
                continue
            if self._account and not all(each.stat().st_mode & 0o001 for each in (parent, *parent.parents)):
                continue
            self.home = home = Path(tempfile.mkdtemp(prefix="outbox-pg-", dir=parent))
            self._give(home)
            (home / "server.log").touch()
            return home
        raise Refused("no temporary directory is short enough and reachable: set TMPDIR")

    def _give(self, path: Path) -> None:
        if self._account:
            os.chown(path, self._account["user"], self._account["group"])

    def _reachable(self, bin_dir: Path, home: Path) -> Path:
        """Return where the server's user can run the programs: as they are, or copied out of a 0700 home."""
        if not self._account:
            return bin_dir
        try:
            trial = subprocess.run(  # noqa: S603 - the program that we were told to run
                [bin_dir / "postgres", "--version"],
                capture_output=True,
                check=False,
                cwd="/",
                **self._account,
            )
        except PermissionError:
            pass
        else:
            if trial.returncode == 0:
                return bin_dir
        # The wheel's programs find share/ and their repaired libraries (auditwheel's, delocate's) relative to
        # themselves: keep the distances.
        install = bin_dir.parent
        package = install.parent
        copy = home / "programs" / package.name
        shutil.copytree(install, copy / install.name, symlinks=True, ignore=shutil.ignore_patterns("include", "*.a"))
        for libraries, target in (
            (package / ".dylibs", copy / ".dylibs"),
            (package.parent / f"{package.name}.libs", copy.parent / f"{package.name}.libs"),
        ):
            if libraries.is_dir():
                shutil.copytree(libraries, target, symlinks=True)
        for path in (copy.parent, *copy.parent.rglob("*")):
            if not path.is_symlink():
                self._give(path)
        return copy / install.name / bin_dir.name

    def _run(self, program: str, arguments: list[str]) -> None:
        if self.home is None:
            raise Refused("not created")
        # PGDATA, PGPORT, PGOPTIONS … of the owner's environment are meant for another server. UTC spares
        # initdb the search for the local time zone's name; LC_ALL keeps macOS from starting threads.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        with (self.home / "server.log").open("ab") as log:
            self._child = subprocess.Popen(  # noqa: S603 - the program that we were told to run
                [self._bin / program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=environment | {"LC_ALL": "C", "TZ": "UTC"},
                **self._account,
            )

    def _is_ready(self) -> bool:
        """Read what `pg_ctl -w` reads in postmaster.pid: the pid on line 1 and the state on line 8."""
        if self.home is None:
            return False
        try:
            lines = (self.home / "data" / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0].strip() == str(self.pid) and lines[7].strip() == "ready"  # noqa: PLR2004

    def _log_tail(self) -> str:
        log = (self.home / "server.log").read_text(errors="replace") if self.home else ""
        return ":\n" + "\n".join(log.splitlines()[-15:])


def free_port() -> int:
    """Return a loopback port below the ephemeral range: no client's socket takes it during a restart."""
    for port in random.sample(range(20000, 32768), 200):
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise Refused("no free port on 127.0.0.1 between 20000 and 32767")


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


if __name__ == "__main__":
    try:
        main()
    except Refused as refusal:
        _reply({"error": str(refusal)})
        sys.exit(1)
