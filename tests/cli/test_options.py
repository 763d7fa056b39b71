"""What commands take from the settings, and what their help says of it."""

import os
import re
import subprocess
import sys

import pytest

from outbox.settings import BY_NAME, variable

NOBODY = "00000000-0000-0000-0000-000000000000"
ENVIRONMENT_ONLY = {variable(name) for name, each in BY_NAME.items() if each.metadata["secret"]}


def outbox(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command with these environment variables, and no other of ours."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OUTBOX_")}
    return subprocess.run(
        [sys.executable, "-m", "outbox", *arguments],
        env={**clean, "OUTBOX_DSN": "postgresql://127.0.0.1:1/nowhere", "COLUMNS": "400", **variables},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def described(shown: str) -> str:
    """Return what a help says of the command, above its options, on one line."""
    return " ".join(shown.partition("Options:")[0].split())


@pytest.mark.parametrize(
    "arguments",
    [
        ("run",),
        ("doctor",),
        ("serve",),
        ("status",),
        ("secrets", "rotate"),
        ("config", "add"),
        ("config", "edit", NOBODY),
        ("config", "list"),
        ("config", "secret", NOBODY),
        ("config", "test", NOBODY),
    ],
    ids=lambda arguments: " ".join(arguments).removesuffix(f" {NOBODY}"),
)
def test_the_help_tells_what_is_read_from_the_environment_only(arguments: tuple[str, ...]) -> None:
    """Those, and only those, that the command refuses when they are wrong; each with its meaning, none as a flag."""
    refused = outbox(*arguments, **dict.fromkeys(ENVIRONMENT_ONLY, "wrong")).stderr
    read = {name for name in ENVIRONMENT_ONLY if f"{name}: " in refused}
    shown = outbox(*arguments, "--help").stdout
    told = described(shown).partition("Read from the environment only, because a process list shows flags: ")[2]
    assert set(re.findall(r"(OUTBOX_\w+) \(\w+", told)) == read, shown
    for name in ENVIRONMENT_ONLY:
        assert f"env var: {name}]" not in shown


def test_the_help_of_the_daemon_tells_of_both_in_one_sentence() -> None:
    """The sentence as it is read, at the end of what the command does."""
    assert described(outbox("run", "--help").stdout).endswith(
        " one that it does not know. Read from the environment only, because a process list shows flags: OUTBOX_PROXY "
        "(a forward proxy for all POSTs: http://user:password@host:port) and OUTBOX_SECRET_KEY (keys that encrypt what "
        "configs keep secret, newest first, separated by commas)."
    )
