"""`outbox run` as people start it: its signals, its exits, its health, its messages."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from outbox.demo.supervisor import free_port
from tests.daemons import (
    add_config,
    add_contacts,
    attach_contacts,
    daemon_process,
    eventually_true,
    make_due,
    owed,
)
from tests.receiver import Gate, Receiver, Status
from tests.servers import StartServer


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "outbox", *arguments],
        env={"PATH": "/usr/bin:/bin", **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@contextlib.contextmanager
def hang_up_is(handler: signal.Handlers) -> Iterator[None]:
    """Have what is started meanwhile begin with that: a test under nohup would let it ignore SIGHUP."""
    before = signal.signal(signal.SIGHUP, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_drains_and_exits_0(conn: psycopg.Connection, db: str, signum: int) -> None:
    """What is in flight finishes and is settled before the process ends."""
    attach_contacts(conn)
    gate = Gate()
    with hang_up_is(signal.SIG_DFL), Receiver(default=gate) as receiver:
        add_config(conn, receiver.url)
        with daemon_process(db) as daemon:
            daemon.wait_for_event("daemon.started")
            add_contacts(conn, 1, 1)
            eventually_true(lambda: gate.waiting == 1)
            daemon.process.send_signal(signum)
            daemon.wait_for_event("daemon.stopping")
            gate.open()
            assert daemon.process.wait(timeout=30) == 0
            [attempt] = daemon.events("delivery.attempted")
            assert attempt["outcome"] == "delivered"
            assert set(attempt) >= {"event_id", "config_id", "attempt", "status", "duration_ms", "outcome"}
        assert owed(conn) == []


def test_what_was_started_with_nohup_outlives_its_terminal(conn: psycopg.Connection, db: str) -> None:
    """It was asked to."""
    attach_contacts(conn)
    with hang_up_is(signal.SIG_IGN), Receiver() as receiver, daemon_process(db) as daemon:
        add_config(conn, receiver.url)
        daemon.wait_for_event("daemon.started")
        daemon.process.send_signal(signal.SIGHUP)
        add_contacts(conn, 1, 1)
        eventually_true(lambda: len(receiver.requests) == 1)
        assert daemon.events("daemon.stopping") == []
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(timeout=30) == 0


def test_until_empty_says_whether_something_died(conn: psycopg.Connection, db: str) -> None:
    """0 when all that was due was delivered or waits for its next try, 1 when a delivery died."""
    attach_contacts(conn)
    with Receiver(default=Status(500)) as receiver:
        add_config(conn, receiver.url, number_of_attempts=2)
        add_contacts(conn, 1, 3)
        with daemon_process(db, "--until-empty") as daemon:
            assert daemon.process.wait(timeout=30) == 0
        make_due(conn)
        with daemon_process(db, "--until-empty") as daemon:
            assert daemon.process.wait(timeout=30) == 1
            assert "3 deliveries died" in daemon.output


def test_with_warnings_only_a_try_is_no_line(conn: psycopg.Connection, db: str) -> None:
    """What fails is in the table of tries all the same; a wrong level is refused with those that there are."""
    attach_contacts(conn)
    with Receiver(default=Status(500)) as receiver:
        add_config(conn, receiver.url, number_of_attempts=1)
        add_contacts(conn, 1, 3)
        with daemon_process(db, "--until-empty", log_level="warning") as daemon:
            assert daemon.process.wait(timeout=30) == 1
            assert daemon.events("delivery.attempted") == daemon.events("daemon.started") == []
            assert len(daemon.events("config.exhausted")) == 1
    assert conn.execute("select count(*) from outbox.attempts").fetchone() == (3,)
    wrong = run("run", "--log-level", "loud", OUTBOX_DSN=db)
    assert wrong.returncode == 2
    assert wrong.stderr == "Error: OUTBOX_LOG_LEVEL: 'loud' is not one of info, warning, error.\n"


def _answer(url: str) -> tuple[int, dict[str, object]]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - our own address
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.mark.parametrize("options", [[], ["--serve"]], ids=["alone", "with the API"])
def test_health_follows_the_database_and_the_outage_is_said_once(own_server: StartServer, options: list[str]) -> None:
    """Alive throughout; ready only while the database can be reached; lost and returned are one line each."""
    server = own_server()
    assert run("migrate", OUTBOX_DSN=server.dsn).returncode == 0
    port = free_port()
    with daemon_process(server.dsn, *options, "--listen", f"127.0.0.1:{port}") as daemon:
        daemon.wait_for_event("daemon.started")
        url = f"http://127.0.0.1:{port}"
        eventually_true(lambda: _answer(f"{url}/readyz") == (200, {"ready": True, "problems": []}))
        server.stop_server("immediate")
        eventually_true(lambda: _answer(f"{url}/readyz")[0] == 503)
        assert _answer(f"{url}/livez") == (200, {"live": True})
        server.start_server()
        eventually_true(lambda: _answer(f"{url}/readyz")[0] == 200)
        assert len(daemon.events("database.lost")) == 1
        assert len(daemon.wait_for_event("database.returned")) == 1
        assert daemon.stop() == 0


def test_what_is_no_http_is_one_line_of_the_log(db: str) -> None:
    """No traceback, and nothing of what was sent: the header that is broken may be a key."""
    port = free_port()
    with daemon_process(db, "--serve", "--listen", f"127.0.0.1:{port}") as daemon:
        daemon.wait_for_event("daemon.started")
        for broken in (
            b"GET / HTTP/1.1\r\nHost: h\r\nuser-api-key: hidden\0\r\n\r\n",
            b"GET /?hidden\xff HTTP/1.1\r\n\r\n",
        ):
            with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
                connection.sendall(broken)
                assert connection.recv(12).endswith(b" 400")
        assert len(daemon.wait_for_event("request.broken", count=2)) == 2
        assert daemon.stop() == 0
        assert "Traceback" not in daemon.output
        assert "hidden" not in daemon.output


def test_two_workers_share_the_work_and_end_together(conn: psycopg.Connection, db: str) -> None:
    """`--workers 2` is two processes that one signal ends."""
    attach_contacts(conn)
    with Receiver() as receiver:
        add_config(conn, receiver.url)
        with daemon_process(db, "--workers", "2") as daemon:
            daemon.wait_for_event("daemon.started", count=2)
            add_contacts(conn, 1, 200)
            receiver.wait_for(200)
            eventually_true(lambda: not owed(conn))
            assert daemon.stop() == 0
            assert len(daemon.events("daemon.drained")) == 2
        assert len(receiver.requests) == 200


def test_workers_do_not_outlive_their_parent(db: str) -> None:
    """Killed, the parent takes its workers with it: they drain and end."""
    with daemon_process(db, "--workers", "2") as daemon:
        daemon.wait_for_event("daemon.started", count=2)
        daemon.process.kill()
        daemon.process.wait()
        eventually_true(lambda: len(daemon.events("daemon.drained")) == 2)


@pytest.mark.parametrize(
    ("variables", "code", "words"),
    [
        ({}, 2, "OUTBOX_DSN is not set"),
        ({"OUTBOX_DSN": "postgresql://nobody@127.0.0.1:1/none"}, 1, "Postgres: "),
        ({"OUTBOX_DSN": "no dsn at all"}, 2, "OUTBOX_DSN: what it holds is not a libpq URL"),
        ({"OUTBOX_DSN": "x=y", "OUTBOX_CONCURRENCY": "many", "OUTBOX_LISTEN": "nowhere"}, 2, "OUTBOX_LISTEN"),
    ],
)
def test_a_wrong_setting_is_one_message(variables: dict[str, str], code: int, words: str) -> None:
    """Wrong use exits 2, failure 1, both without a traceback; all wrong settings are named at once."""
    done = run("run", **variables)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    for name in variables.keys() - {"OUTBOX_DSN"}:
        assert name in done.stderr


def test_a_database_that_does_not_fit_is_refused(empty_db: str, db: str, own_server: StartServer) -> None:
    """No schema, a schema from the future, a wrong password: one clear message, exit 1."""
    missing = run("run", OUTBOX_DSN=empty_db)
    assert missing.returncode == 1
    assert "Run: outbox migrate" in missing.stderr
    with psycopg.connect(db, autocommit=True) as conn:
        conn.execute("insert into outbox.migrations (version, name, checksum) values (99, 'x', repeat('0', 64))")
        try:
            ahead = run("run", OUTBOX_DSN=db)
        finally:
            conn.execute("delete from outbox.migrations where version = 99")
    assert ahead.returncode == 1
    assert "version 99" in ahead.stderr
    server = own_server(tcp=True)
    with psycopg.connect(server.dsn, autocommit=True) as conn:
        conn.execute("create database latin template template0 encoding 'LATIN1' locale_provider libc locale 'C'")
    latin = run("run", OUTBOX_DSN=make_conninfo(server.dsn, dbname="latin"))
    assert latin.returncode == 1
    assert "LATIN1" in latin.stderr
    denied = run("run", OUTBOX_DSN=make_conninfo(server.tcp_dsn, password="wrong"))
    assert denied.returncode == 1
    assert "password authentication failed" in denied.stderr
    assert "wrong" not in denied.stderr.replace("authentication", "")
    for done in (missing, ahead, latin, denied):
        assert "Traceback" not in done.stderr
