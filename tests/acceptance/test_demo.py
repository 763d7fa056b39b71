"""`outbox demo` as its users run it: the walk passes, and however it ends, nothing of it is left."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from outbox.demo.embedded import embedded_binaries

pytestmark = [
    pytest.mark.skipif(not embedded_binaries(), reason="needs: pip install '.[demo]'"),
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc"),
]

OUTBOX = Path(sys.executable).with_name("outbox")
FIRST_LINE, LAST_STEP, GOES_ON = "PostgreSQL ", "The walk took ", "It goes on"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for all files of the demo: short, because of the socket, and open to the user it runs Postgres as."""
    made = Path(tempfile.mkdtemp(prefix="o", dir="/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@contextlib.contextmanager
def running_demo(folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    # Whoever runs the tests under nohup ignores SIGHUP, and a child inherits that.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with subprocess.Popen(
        [OUTBOX, "demo", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"TMPDIR": str(folder), "PYTHONUTF8": "1"},
        text=True,
        encoding="utf-8",
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[str], beginning: str) -> str:
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if line.startswith(beginning):
            return seen
    raise AssertionError(f"no line that begins with {beginning!r} in:\n{seen}")


def processes_of(folder: Path) -> list[int]:
    """Each process that was started with the folder as TMPDIR, names it in its command, or works in it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        # One that ended meanwhile, or that is not ours.
        with contextlib.suppress(OSError):
            told = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
            if os.fsencode(folder) in told or (entry / "cwd").readlink().is_relative_to(folder):
                found.append(int(entry.name))
    return found


def nothing_is_left(folder: Path) -> bool:
    deadline = time.monotonic() + 60
    while processes_of(folder) or any(folder.iterdir()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_once_walks_and_exits_0_with_nothing_left(folder: Path) -> None:
    """Each step is told and passes; afterwards no process and no file is there."""
    with running_demo(folder, "--once") as process:
        output, _ = process.communicate()
    assert process.returncode == 0, output
    assert [int(number) for number in re.findall(r"^ ?(\d+)  ", output, re.MULTILINE)] == list(range(1, 12))
    assert "WRONG" not in output
    for told in (
        "type = CREATE", "resource = contact", "number_of_attempts = 1", 'data = {"id":', "webhook-id: ",
        "UPDATE 'Zoë Jones'", "DELETE 'Zoë Jones'", "nothing was captured", "'Lue', try 2, answered 500",
        "'Lue', try 3, answered 200", "dead after 1 try", "one delivery was replayed", "'Patient', try 2, answered 200",
        "no delivery is owed", LAST_STEP,
    ):  # fmt: skip
        assert told in output, told
    # The supervisor is waited for, so that what it cleans is clean by now.
    assert list(folder.iterdir()) == []
    assert processes_of(folder) == []


def test_without_verbose_the_log_is_silent(folder: Path) -> None:
    """The daemon's log lines do not drown the walk, and can be asked for."""
    with running_demo(folder, "--once") as process:
        quiet, _ = process.communicate()
    with running_demo(folder, "--once", "--verbose") as process:
        verbose, _ = process.communicate()
    assert "delivery.attempted" not in quiet
    assert "delivery.attempted" in verbose


def test_ctrl_c_after_the_walk_is_the_regular_end(folder: Path) -> None:
    """It goes on with changes until Ctrl-C, which a terminal sends to the whole group; the exit code is 0."""
    with running_demo(folder) as process:
        read_until(process, GOES_ON)
        read_until(process, "    ok  CREATE")
        assert len(processes_of(folder)) > 2
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate()
        assert process.returncode == 0, output
    assert "Traceback" not in output
    assert nothing_is_left(folder)


def test_ctrl_c_before_the_end_of_the_walk_is_no_success(folder: Path) -> None:
    """Who stops it before everything was checked is told so, with exit code 1 and no traceback."""
    with running_demo(folder) as process:
        read_until(process, FIRST_LINE)
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate()
        assert process.returncode == 1
    assert output.endswith("Error: Stopped before the walk was done.\n")
    assert nothing_is_left(folder)


@pytest.mark.parametrize("moment", [FIRST_LINE, GOES_ON])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL, signal.SIGHUP])
def test_a_killed_demo_leaves_nothing(folder: Path, signum: signal.Signals, moment: str) -> None:
    """However and whenever it is killed, its processes end and its files go."""
    with running_demo(folder) as process:
        read_until(process, moment)
        assert len(processes_of(folder)) > 2
        process.send_signal(signum)
        assert nothing_is_left(folder)


def test_a_demo_killed_while_its_server_starts_leaves_nothing(folder: Path) -> None:
    """Between the making of its directory and the first connection it can be killed as well."""
    with running_demo(folder) as process:
        while not list(folder.iterdir()):
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
        assert nothing_is_left(folder)


def test_a_demo_whose_server_dies_says_so(folder: Path) -> None:
    """When Postgres itself is killed, the demo ends with a message and leaves nothing."""
    with running_demo(folder) as process:
        read_until(process, GOES_ON)
        read_until(process, "    ok  CREATE")  # nothing is awaited now: the next change finds no server
        [pid_file] = folder.glob("outbox-pg-*/data/postmaster.pid")
        os.kill(int(pid_file.read_text().split()[0]), signal.SIGKILL)
        output, _ = process.communicate()
        assert process.returncode == 1
    assert "Error: " in output
    assert "Traceback" not in output
    assert nothing_is_left(folder)
