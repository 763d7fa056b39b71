"""`outbox user …`, `outbox serve` and `outbox run --serve`: real commands in processes of their own."""

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable

import aiohttp
import psycopg
import pytest

from tests.daemons import POLL_SECONDS

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def environment(db: str) -> dict[str, str]:
    """The environment of a command that works on `db`."""
    return {name: value for name, value in os.environ.items() if not name.startswith("OUTBOX_")} | {"OUTBOX_DSN": db}


@pytest.fixture
def outbox(environment: dict[str, str]) -> Run:
    """Run `outbox user` with arguments."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "outbox", "user", *arguments],
            env=environment, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    return run


def test_a_key_is_told_once_and_only_its_hash_is_kept(outbox: Run, conn: psycopg.Connection) -> None:
    """From the first key over another one to the end of a user."""
    added = json.loads(outbox("add", "Shop", "--location", "L1", "--location", "L2", "--json").stdout)
    assert list(added) == ["user_id", "user_api_key"]
    told = {"user_id": added["user_id"], "name": "Shop", "location_ids": ["L1", "L2"], "is_operator": False}
    assert json.loads(outbox("list", "--json").stdout) == [told]
    stored = "select key_hash from outbox.users"
    assert conn.execute(stored).fetchall() == [(hashlib.sha256(added["user_api_key"].encode()).digest(),)]
    rotated = json.loads(outbox("rotate", added["user_id"], "--json").stdout)
    assert rotated["user_api_key"] != added["user_api_key"]
    assert conn.execute(stored).fetchall() == [(hashlib.sha256(rotated["user_api_key"].encode()).digest(),)]
    assert outbox("remove", added["user_id"]).returncode == 0
    assert outbox("list").stdout == "There is no user. Make one with: outbox user add\n"
    gone = outbox("rotate", added["user_id"])
    assert (gone.returncode, added["user_id"] in gone.stderr) == (1, True)


def test_people_read_lines(outbox: Run) -> None:
    """Without --json: the two headers to send, and a table of users."""
    done = outbox("add", "Boss", "--operator")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["user-id", "user-api-key"]
    heading, row = outbox("list").stdout.splitlines()
    assert (heading.split(), row.split()[1:]) == (["ID", "NAME", "LOCATIONS"], ["Boss", "all"])


@pytest.mark.parametrize(
    "arguments",
    [
        ("A",),
        ("A", "--operator", "--location", "L"),
        ("A", "--location", ""),
        ("", "--operator"),
        ("A" * 129, "--operator"),
    ],
)
def test_a_user_that_makes_no_sense_is_refused(outbox: Run, arguments: tuple[str, ...]) -> None:
    """No locations, locations of an operator, empty or long names: exit 2, and nobody is added."""
    done = outbox("add", *arguments)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert json.loads(outbox("list", "--json").stdout) == []


@pytest.mark.parametrize("command", [("serve",), ("run", "--serve")], ids=" ".join)
async def test_the_api_and_the_health_share_an_address(
    command: tuple[str, ...], environment: dict[str, str], unused_tcp_port: int
) -> None:
    """Both commands serve them until SIGTERM, and end with 0."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "outbox", *command, "--listen", f"127.0.0.1:{unused_tcp_port}",
        env=environment, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        async for line in process.stderr:
            if json.loads(line)["event"] in ("server.started", "daemon.started"):
                break
        async with asyncio.timeout(30), aiohttp.ClientSession(f"http://127.0.0.1:{unused_tcp_port}") as session:
            # A daemon is ready after its first turn.
            while (await session.get("/readyz")).status != 200:  # noqa: ASYNC110 - another process, no event of ours
                await asyncio.sleep(POLL_SECONDS)
            statuses = [(await session.get(path)).status for path in ("/livez", "/v2/postbackconfigs")]
    finally:
        process.send_signal(signal.SIGTERM)
        await process.communicate()
    assert statuses == [200, 401]
    assert process.returncode == 0


def test_one_worker_serves(environment: dict[str, str]) -> None:
    """Workers share no API: wrong usage, said so."""
    done = subprocess.run(
        [sys.executable, "-m", "outbox", "run", "--serve", "--workers", "2"],
        env=environment, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, "outbox serve" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    "arguments",
    [
        ("user", "add", "\udcff", "--operator"),
        ("user", "add", "me", "--location", "\udcff"),
        ("config", "list", "--location-id", "\udcff"),
        ("attach", "\udcff", "--resource", "contact"),
        ("status", "--dsn", "postgresql://me:\udcffplanted@127.0.0.1:1/x"),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_bytes_that_are_no_text_are_refused_in_a_sentence(
    environment: dict[str, str], arguments: tuple[str, ...]
) -> None:
    """No command has a traceback for them, nor repeats them."""
    done = subprocess.run(
        [sys.executable, "-m", "outbox", *arguments],
        env=environment, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        2,
        "Error: An argument or a variable has bytes that are no UTF-8.",
    )
    assert "planted" not in done.stdout + done.stderr


def test_no_command_leaves_a_core(environment: dict[str, str]) -> None:
    """A process that crashes writes no memory to a disk: its environment has the keys."""
    script = (
        "import resource; from outbox.cli.main import main\n"
        "hard = resource.getrlimit(resource.RLIMIT_CORE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))\n"
        "main(['secrets', 'make-key'], standalone_mode=False)\n"
        "print(resource.getrlimit(resource.RLIMIT_CORE)[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "0"
