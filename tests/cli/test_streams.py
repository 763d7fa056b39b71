"""Whatever the standard streams are: closed, full, or of a terminal that can not show all letters."""

import json
import os
import subprocess
import sys

import psycopg
import pytest

from tests.tried import attach_contacts

COMMAND = [sys.executable, "-m", "outbox"]


def shell(line: str, dsn: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a line of the shell in which $outbox is the command."""
    return subprocess.run(
        ["/bin/sh", "-c", line],
        env={**os.environ, "outbox": " ".join(COMMAND), "OUTBOX_DSN": dsn, **variables},
        capture_output=True, text=True, encoding="latin-1", check=False, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("command", ["status", "run --until-empty"])
def test_what_is_closed_is_missed_by_nobody(db: str, closed: str, command: str) -> None:
    """The event loop would be given its number, and abort."""
    done = shell(f"$outbox {command} {closed}", db)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a device that is always full")  # noqa: PTH110
@pytest.mark.parametrize("command", ["status", "--help", "config list --help"])
def test_a_full_disk_is_one_message(db: str, command: str) -> None:
    """It exits 1."""
    done = shell(f"$outbox {command} > /dev/full", db)
    assert (done.returncode, done.stderr) == (1, "Error: The output can not be written: No space left on device.\n")


def test_a_terminal_without_the_letters_shows_their_numbers(db: str, conn: psycopg.Connection) -> None:
    """A report in an emergency is not cut off by a name; and JSON has escapes of its own."""
    attach_contacts(conn)
    conn.execute(
        "insert into outbox.postback_configs (resource, url) values ('контакт \U0001f600', 'http://127.0.0.1:9/é')"
    )
    plain = shell("$outbox config list", db, PYTHONIOENCODING="latin-1")
    assert (plain.returncode, plain.stderr) == (0, "")
    assert r"\u043a\u043e\u043d\u0442\u0430\u043a\u0442" in plain.stdout
    told = shell("$outbox config list --json", db, PYTHONIOENCODING="latin-1")
    [config] = json.loads(told.stdout)
    assert config["resource"] == "контакт \U0001f600"
    assert shell("$outbox doctor", db, PYTHONIOENCODING="latin-1").stderr == ""
