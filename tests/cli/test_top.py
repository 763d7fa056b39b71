"""`outbox top` in a real terminal: it shows, it obeys keys, and it leaves the terminal as it was."""

import itertools
import json
import os
import re
import signal
from pathlib import Path

import psycopg
import pytest

from tests.daemons import add_config, add_contacts, attach_contacts, daemon_process, eventually_true
from tests.receiver import Receiver, Status
from tests.servers import fresh_database
from tests.terminals import LEFT, terminal
from tests.tried import outbox


def has_table(text: str) -> bool:
    return "q quit" in text


def rate_of(text: str, name: str) -> float:
    found = re.search(rf"{name} ([\d.]+)/s", text)
    return float(found[1]) if found else 0.0


def test_it_shows_what_a_daemon_does_and_pauses_a_config(db: str, conn: psycopg.Connection) -> None:
    """Rates in and out, tries that fail, the daemon; then a pause that is confirmed, real, and undone."""
    attach_contacts(conn)
    with Receiver() as receiver, daemon_process(db):
        receiver.answer("/bad", Status(500))
        good = add_config(conn, receiver.url)
        bad = add_config(conn, receiver.url_for("/bad"))
        with terminal(db, "top", "--interval", "0.2") as screen:
            screen.wait_for(lambda text: "daemons 1:" in text)
            numbers = itertools.count(1)

            def has_rates(text: str) -> bool:
                add_contacts(conn, next(numbers), 1)
                return all(rate_of(text, name) > 0 for name in ("in", "delivered", "failed"))

            screen.wait_for(has_rates)
            screen.type(b"f")
            screen.wait_for(lambda text: "by failing" in text)
            rows = [line for line in screen.lines if line[2:10] in (str(good)[:8], str(bad)[:8])]
            assert [row[2:10] for row in rows] == [str(bad)[:8], str(good)[:8]]
            assert rows[0].startswith("> ")
            screen.type(b"x\x1b[Bk")
            screen.wait_for(lambda text: "by dead" in text and str(bad) in screen.lines[-2])
            screen.type(b"?")
            screen.wait_for(lambda text: "sort by oldest" in text)
            screen.type(b" p")
            screen.wait_for(lambda text: f"Pause {bad}?" in text)
            screen.type(b"n")
            screen.wait_for(lambda text: "Nothing was changed." in text)
            assert not is_paused(conn, bad)
            screen.type(b"py")
            screen.wait_for(lambda text: f"Paused {bad}." in text)
            assert is_paused(conn, bad)
            assert not is_paused(conn, good)
            screen.wait_for(lambda text: re.search(rf"> {str(bad)[:8]}.* paused ", text))
            screen.type(b"py")
            screen.wait_for(lambda text: f"Resumed {bad}." in text)
            assert not is_paused(conn, bad)
            screen.type(b"q")
            assert screen.ended() == 0


def test_what_was_said_yes_to_is_done_by_who_leaves_at_once(db: str, conn: psycopg.Connection) -> None:
    """A pause that is under way is waited for."""
    config = add_config(conn, "http://127.0.0.1:9/")
    with terminal(db, "top") as screen:
        screen.wait_for(has_table)
        screen.type(b"pyq")
        assert screen.ended() == 0
    assert is_paused(conn, config)


def is_paused(conn: psycopg.Connection, config: object) -> bool:
    row = conn.execute("select paused_at is not null from outbox.postback_configs where id = %s", [config]).fetchone()
    assert row is not None
    return bool(row[0])


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        (lambda screen: screen.type(b"q"), 0),
        (lambda screen: screen.type(b"\x03"), 0),
        (lambda screen: screen.process.send_signal(signal.SIGTERM), 128 + signal.SIGTERM),
        (lambda screen: screen.process.send_signal(signal.SIGHUP), 128 + signal.SIGHUP),
    ],
    ids=["q", "Ctrl-C", "SIGTERM", "SIGHUP"],
)
def test_the_terminal_is_as_it_was(db: str, ends: object, code: int) -> None:
    """However it ends: echo, lines, cursor and page are back, and nothing is said."""
    assert callable(ends)
    with terminal(db, "top") as screen:
        screen.wait_for(has_table)
        assert not screen.is_restored()
        ends(screen)
        assert screen.ended() == code
        assert screen.is_restored()
        assert screen.output.endswith(LEFT)


def test_a_fault_is_told_on_the_restored_terminal(server_dsn: str) -> None:
    """What goes wrong for good ends it with its one message, which is not lost with the page."""
    with fresh_database(server_dsn) as dsn:
        assert outbox(dsn, "migrate").returncode == 0
        with terminal(dsn, "top", "--interval", "0.2") as screen:
            screen.wait_for(has_table)
            with psycopg.connect(dsn, autocommit=True) as conn:
                conn.execute("set client_min_messages = 'warning'")
                conn.execute("drop schema outbox cascade")
            assert screen.ended() == 1
            assert screen.is_restored()
            said = screen.output[screen.output.rindex(LEFT) + len(LEFT) :]
            assert said == "Error: The database has no outbox schema. Run: outbox migrate\r\n"


def test_what_is_wrong_from_the_start_is_told_without_a_page(empty_db: str) -> None:
    """The terminal is not taken for it."""
    with terminal(empty_db, "top") as screen:
        assert screen.ended() == 1
        assert screen.output == "Error: The database has no outbox schema. Run: outbox migrate\r\n"


def test_it_can_be_stopped_and_continued(db: str) -> None:
    """Ctrl-Z gives the shell its terminal, and fg takes it again."""
    with terminal(db, "top") as screen:
        screen.wait_for(has_table)
        screen.type(b"\x1a")
        stopped: list[int] = []

        def is_stopped() -> bool:
            pid, status = os.waitpid(screen.process.pid, os.WUNTRACED | os.WNOHANG)
            stopped.extend([status] if pid else [])
            return bool(stopped)

        eventually_true(is_stopped)
        assert os.WIFSTOPPED(stopped[0])
        assert screen.is_restored()
        shown = len(screen.output)
        screen.process.send_signal(signal.SIGCONT)
        screen.wait_for(lambda _: has_table(screen.output[shown:]))
        assert not screen.is_restored()
        screen.type(b"q")
        assert screen.ended() == 0
        assert screen.is_restored()


def test_a_closed_window_ends_it(db: str) -> None:
    """Nothing goes on asking the database for nobody."""
    with terminal(db, "top") as screen:
        screen.wait_for(has_table)
        screen.hang_up()
        assert screen.process.wait(timeout=30) != 0


def test_a_lost_connection_is_made_again(db: str, conn: psycopg.Connection) -> None:
    """What happened since is shown as soon as the database answers again."""
    with terminal(db, "top", "--interval", "0.2") as screen:
        screen.wait_for(has_table)
        conn.execute(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity where application_name = 'outbox command' "
            "and datname = current_database()"
        )
        config = add_config(conn, "http://127.0.0.1:9/")
        screen.wait_for(lambda text: str(config) in text and has_table(text))
        screen.type(b"q")
        assert screen.ended() == 0


def test_it_follows_the_size_of_its_window(db: str, conn: psycopg.Connection) -> None:
    """It draws anew when the window changes, and never more than fits."""
    for _ in range(40):
        add_config(conn, "http://127.0.0.1:9/")
    with terminal(db, "top", "--interval", "60") as screen:
        screen.wait_for(lambda text: has_table(text) and len(screen.lines) == 24)
        screen.resize(50, 6)
        screen.wait_for(lambda _: len(screen.lines) == 6)
        assert [line for line in screen.lines if len(line) >= 50] == []
        screen.resize(3, 2)
        screen.wait_for(lambda text: text == "to")
        screen.type(b"q")
        assert screen.ended() == 0


def test_strangers_text_and_no_colour(db: str, conn: psycopg.Connection) -> None:
    """No colour where NO_COLOR asks for none, and what others wrote moves no cursor."""
    add_config(conn, "http://127.0.0.1:9/\x1b[2Jx", location_id="\x1b]0;x\x07", resource="[blink]")
    with terminal(db, "top", NO_COLOR="1") as screen:
        screen.wait_for(has_table)
        text = screen.text
        assert r"http://127.0.0.1:9/\x1b[2Jx" in text
        assert "[blink]" in text
        assert "\x1b]0" not in screen.output
        assert not re.search(r"\x1b\[(\d+;)*[34][0-9]", screen.output)
        screen.type(b"q")
        assert screen.ended() == 0


def test_once_is_one_plain_look(db: str, conn: psycopg.Connection) -> None:
    """For people as text, for programs as JSON, sorted as one likes."""
    attach_contacts(conn)
    config, paused = add_config(conn, "http://u:p@127.0.0.1:9/?token=1"), add_config(conn, "http://127.0.0.1:9/")
    conn.execute("update outbox.postback_configs set paused_at = now() where id = %s", [paused])
    add_contacts(conn, 1, 3)
    conn.execute(
        "insert into outbox.deliveries (event_id, config_id, event_created_at) "
        "select gen_random_uuid(), c.id, now() from outbox.postback_configs c, generate_series(1, 2)"
    )
    done = outbox(db, "top", "--once")
    assert (done.returncode, done.stderr) == (0, "")
    fields = dict(re.split(r" {2,}", line, maxsplit=1) for line in done.stdout.splitlines()[:12])
    assert (fields["in"], fields["unrouted"], fields["daemons"]) == ("0/s", "3", "0")
    assert fields["due"].startswith("2 (oldest for ")
    assert "token" not in done.stdout
    done = outbox(db, "top", "--json", "--sort", "due")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert [each["id"] for each in report["configs"]] == [str(config), str(paused)]
    assert (report["due"], report["held"], report["captured_rate"], report["daemons"]) == (2, 2, 0, [])
    assert (report["configs"][1]["held"], report["configs"][1]["is_paused"]) == (2, True)
    assert report["configs"][0]["delivered_rate"] == 0


def test_without_a_terminal_the_way_for_scripts_is_told(db: str, tmp_path: Path) -> None:
    """Nothing is drawn into a file, or onto what can not move its cursor; without rich, it says how to get it."""
    done = outbox(db, "top")
    assert done.returncode == 2
    assert "outbox top --once" in done.stderr
    assert "outbox status" in done.stderr
    with terminal(db, "top", TERM="dumb") as screen:
        assert screen.ended() == 2
        assert "outbox top --once" in " ".join(screen.output.split())
    (tmp_path / "rich.py").write_text("raise ImportError\n")
    with terminal(db, "top", PYTHONPATH=str(tmp_path)) as screen:
        assert screen.ended() == 2
        assert "install outbox with its extra `top`" in " ".join(screen.output.split())
    with terminal(db, "top", "--once", PYTHONPATH=str(tmp_path)) as screen:
        assert screen.ended() == 0
