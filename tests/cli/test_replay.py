"""`outbox replay` of very many: its pace, its end at a signal, what it says of the rest, and what was never owed."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from datetime import timedelta
from uuid import UUID, uuid4

import psycopg
import pytest

from outbox.cli import plain
from outbox.core.model import Dead, Delivered
from tests.daemons import eventually
from tests.tried import add_config, attach_contacts, outbox, route, try_all


@pytest.fixture(autouse=True)
def _contacts(conn: psycopg.Connection) -> None:
    attach_contacts(conn)


def begin(dsn: str, *arguments: str, stderr: int = subprocess.PIPE) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "outbox", "replay", *arguments],
        env={**os.environ, "OUTBOX_DSN": dsn}, stdout=subprocess.PIPE, stderr=stderr, text=True,
    )  # fmt: skip


def pending(conn: psycopg.Connection) -> int:
    row = conn.execute("select count(*) from outbox.deliveries where state = 'pending'").fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_it_after_the_batch_and_it_says_how_to_go_on(
    conn: psycopg.Connection, dconn: psycopg.AsyncConnection, db: str, signum: int
) -> None:
    """What was done is counted; the command that it names does the rest, and repeats nothing that ended again since."""
    config = add_config(conn)
    conn.execute("insert into contacts select i, 'L', 'x' from generate_series(1, 30) i")
    await try_all(dconn, Delivered())
    first = ("--config", str(config), "--state", "delivered", "--since", "1h")
    with begin(db, *first, "--rate", "4", "--json") as replaying:
        await eventually(lambda: pending(conn) >= 4)
        replaying.send_signal(signum)
        out, err = replaying.communicate(timeout=60)
    report, done = json.loads(out), pending(conn)
    assert replaying.returncode == 1
    assert 4 <= done < 30
    assert (report["replayed"], report["interrupted"]) == (done, True)
    assert f"Error: Interrupted after {done} deliveries." in err
    said = re.search(r"with --since (\S+) --until (\S+)\.\n", err)
    assert said is not None
    assert list(said.groups()) == [report["since"], report["until"]]
    assert len(await try_all(dconn, Delivered())) == done
    rest = outbox(db, "replay", *first[:-2], "--since", said[1], "--until", said[2])
    assert (rest.returncode, rest.stdout) == (0, f"Replayed {30 - done} deliveries.\n")


async def test_a_pace_is_kept(conn: psycopg.Connection, dconn: psycopg.AsyncConnection, db: str) -> None:
    """At no time have more become due than the rate times the seconds since the beginning, the current one included."""
    config = add_config(conn)
    conn.execute("insert into contacts select i, 'L', 'x' from generate_series(1, 9) i")
    await try_all(dconn, Dead("no"))
    row = conn.execute("select now()").fetchone()
    assert row is not None
    done = outbox(db, "replay", "--config", str(config), "--rate", "3")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Replayed 9 deliveries.\n", "")
    rows = conn.execute("select count(*), due_at from outbox.deliveries group by due_at order by due_at").fetchall()
    assert [count for count, _ in rows] == [3, 3, 3]
    for seconds, (_, due_at) in enumerate(rows):
        assert due_at >= row[0] + timedelta(seconds=seconds)


async def test_a_terminal_gets_a_bar_and_the_output_stays_clean(
    conn: psycopg.Connection, dconn: psycopg.AsyncConnection, db: str
) -> None:
    """On its error output, with how many of all; what is piped has JSON only."""
    config = add_config(conn)
    conn.execute("insert into contacts select i, 'L', 'x' from generate_series(1, 6) i")
    await try_all(dconn, Dead("no"))
    for more, words in (("", "3/6"), ("--missing", "Replaying")):
        terminal, its_end = pty.openpty()
        arguments = ["--config", str(config), "--rate", "3", "--json", *more.split()]
        with begin(db, *arguments, stderr=its_end) as replaying:
            os.close(its_end)
            shown = _read_all(terminal)
            assert replaying.stdout is not None
            report = json.loads(replaying.stdout.read())
        assert replaying.returncode == 0
        assert (report["replayed"], report["missing"]) == (0 if more else 6, bool(more))
        assert words in shown


def _read_all(terminal: int) -> str:
    shown = b""
    # At the end of the last process on a terminal Linux answers with an error.
    try:
        while part := os.read(terminal, 10_000):
            shown += part
    except OSError:
        pass
    os.close(terminal)
    return shown.decode()


async def test_what_was_never_owed_is_made(conn: psycopg.Connection, dconn: psycopg.AsyncConnection, db: str) -> None:
    """For a config that came later: a dry run counts, the second time nothing is left."""
    conn.execute("insert into contacts values (1, 'L', 'x'), (2, 'L', 'x'), (3, 'M', 'x')")
    await route(dconn)
    missing = ("replay", "--missing", "--config", str(add_config(conn)))
    assert outbox(db, *missing, "--dry-run").stdout == "2 deliveries would be made.\n"
    assert outbox(db, *missing, "--record", "1").stdout == "Made 1 delivery.\n"
    assert outbox(db, *missing, "--until", "1h").stdout == "Made 0 deliveries.\n"
    done = outbox(db, *missing, "--since", "9999d")
    assert (done.returncode, done.stdout) == (0, "Made 1 delivery.\n")
    assert "were left out: what was tried then is no longer kept." in done.stderr
    report = json.loads(outbox(db, *missing, "--json").stdout)
    assert (report["replayed"], report["missing"], report["dry_run"]) == (0, True, False)
    assert pending(conn) == 2


async def test_a_database_that_goes_away_costs_what_was_done_nothing(
    conn: psycopg.Connection, dconn: psycopg.AsyncConnection, db: str
) -> None:
    """It fails with how many had become pending, and the same command goes on."""
    config = add_config(conn)
    conn.execute("insert into contacts select i, 'L', 'x' from generate_series(1, 6) i")
    await try_all(dconn, Dead("no"))
    with begin(db, "--config", str(config), "--rate", "1") as replaying:
        await eventually(lambda: pending(conn) >= 1)
        conn.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'outbox command' "
            "and datname = current_database()"
        )
        out, err = replaying.communicate(timeout=60)
    assert (replaying.returncode, out) == (1, "")
    assert err.startswith("Error: Postgres: ")
    assert err.endswith("became pending before that, and stay so.\n")
    left = plain.count(6 - pending(conn), "delivery", "deliveries")
    assert outbox(db, "replay", "--config", str(config)).stdout == f"Replayed {left}.\n"


CONFIG = str(UUID(int=2))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--missing"], ["--config"]),
        (["--missing", "--since", "1h"], ["--config"]),
        (["--missing", "--config", CONFIG, "--state", "dead"], ["leave out --state"]),
        (["--missing", "--config", CONFIG, "--event", CONFIG], ["leave out --event"]),
        (["--missing", "--config", CONFIG, "--record", "1", "--resource", "contact"], ["leave out --resource"]),
        (["--missing", "--delivery", f"{CONFIG}.{CONFIG}"], ["leave out --delivery"]),
        (["--config", CONFIG, "--rate", "0"], ["x>=1"]),
        (["--rate", "5"], ["What is to be replayed?"]),
    ],
)
def test_what_makes_no_sense_exits_2(db: str, arguments: list[str], words: list[str]) -> None:
    """With what is accepted, and nothing is changed."""
    done = outbox(db, "replay", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    for word in words:
        assert word in done.stderr


def test_a_config_that_never_was_exits_1(db: str) -> None:
    """It is not the same as nothing to make."""
    config = uuid4()
    done = outbox(db, "replay", "--missing", "--config", str(config))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"Error: There is no config {config}, or it was removed. See: outbox config list\n"


def test_a_config_that_never_was_is_an_error(db: str, conn: psycopg.Connection) -> None:
    """It is a slip of the pen: what was meant was not replayed. One that was removed is owed nothing, and no slip."""
    never = outbox(db, "replay", "--config", "00000000-0000-4000-8000-000000000001", "--state", "dead")
    assert (never.returncode, never.stdout) == (1, "")
    assert never.stderr.startswith("Error: There never was a config 00000000-0000-4000-8000-000000000001.")
    config = add_config(conn)
    conn.execute("update outbox.postback_configs set deleted_at = now()")
    removed = outbox(db, "replay", "--config", str(config), "--state", "dead")
    assert (removed.returncode, removed.stderr) == (0, "")
