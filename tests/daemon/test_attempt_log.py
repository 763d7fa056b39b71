"""The line of a try, which is put together by hand."""

import json
import logging
import subprocess
import sys

import pytest

SCRIPT = """
import datetime as dt, uuid
from outbox import logs
from outbox.core.model import Attempt, Dead, Delivered, Delivery, FailureKind, Retry
from outbox.daemon import attempt_log
logs.configure(colours={colours}, level={level})
now = dt.datetime.now(dt.UTC)
delivery = Delivery(str(uuid.UUID(int=1)), str(uuid.UUID(int=2)), 3, 0, now, 1, "CREATE", "contact", "{{}}")
for outcome, status in (
    (Delivered(), 204), (Retry(300, 'quo"te'), None), (Retry(1, "status 500"), 500), (Dead("é\\x9b\\u202e\\n\\\\"), 404)
):
    log = attempt_log.AttemptLog()
    for write in (log._write, None):
        log._write = write
        log.note(Attempt(delivery, outcome, status, b"", 5, now))
"""


def lines_of(*, colours: bool, level: int = logging.INFO) -> list[str]:
    """Run the script in a process of its own, as logging is set up once for each, and return what it logged."""
    script = SCRIPT.format(colours=colours, level=level)
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return done.stderr.splitlines()


def test_the_line_is_the_one_that_structlog_would_write() -> None:
    """Whoever reads the log finds no trace of how a line was made: keys, order, escapes and types are the same."""
    lines = lines_of(colours=False)
    assert len(lines) == 8
    for ours, theirs in zip(lines[::2], lines[1::2], strict=True):
        assert list(json.loads(ours)) == list(json.loads(theirs))
        assert ours.rpartition(', "timestamp"')[0] == theirs.rpartition(', "timestamp"')[0]
        assert ours.isprintable()


def test_a_person_gets_the_same_events() -> None:
    """Where lines are for people, the hand-made JSON is not used."""
    lines = lines_of(colours=True)
    assert len(lines) == 8
    assert all("delivery.attempted" in line and not line.startswith("{") for line in lines)


@pytest.mark.parametrize("colours", [False, True])
def test_nothing_is_written_where_only_warnings_are_wanted(*, colours: bool) -> None:
    """A try is of level info."""
    assert lines_of(colours=colours, level=logging.WARNING) == []
