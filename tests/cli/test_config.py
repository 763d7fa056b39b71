"""`outbox config …` as people run it: the real command in a process of its own."""

import base64
import datetime as dt
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from cryptography.fernet import Fernet
from standardwebhooks import Webhook

from tests.receiver import Receiver, Refusing, Status

KEY, OLD_KEY = Fernet.generate_key().decode(), Fernet.generate_key().decode()
LEAST = ("--location-id", "L", "--resource", "contact", "--url", "http://127.0.0.1/hook?a=%20b")
NOWHERE = "00000000-0000-0000-0000-000000000000"

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def outbox(db: str) -> Run:
    """Run `outbox config` with arguments; keywords are environment variables without their OUTBOX_."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OUTBOX_")}

    def run(*arguments: str, entered: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
        given = {
            "OUTBOX_DSN": db,
            "OUTBOX_ALLOW_NETWORKS": "127.0.0.0/8",
            **{f"OUTBOX_{name}": value for name, value in variables.items()},
        }
        return subprocess.run(
            [sys.executable, "-m", "outbox", "config", *arguments],
            env=clean | given, input=entered, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    return run


def document(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_expands_that_are_registered_nowhere_are_warned_of(outbox: Run, conn: psycopg.Connection) -> None:
    """When a config is added and when it is edited; it is stored all the same."""
    conn.execute("create function tags_of(text) returns json language sql as 'select to_json($1)'")
    conn.execute("select outbox.register_expand('contact', 'tags', 'tags_of')")
    conn.execute("select outbox.register_expand('other', 'logs', 'tags_of')")
    config_id = document(outbox("add", *LEAST, "--expands", "tags", "--json"))["id"]
    for done in (
        outbox("add", *LEAST, "--expands", "tags, logs", "--json"),
        outbox("edit", config_id, "--expands", "tags, logs", "--json"),
    ):
        assert done.returncode == 0
        assert done.stderr.startswith("Warning: nothing is registered for contact: logs.")
        assert json.loads(done.stdout)["expands"] == "tags, logs"


def test_what_is_added_can_be_shown_listed_and_edited(outbox: Run) -> None:
    """One config, from its id to its last change, as JSON and for people."""
    added = document(outbox("add", *LEAST, "--no-on-delete", "--number-of-attempts", "3", "--json"))
    config_id = added["id"]
    assert added["url"] == "http://127.0.0.1/hook?a=%20b"
    assert (added["on_create"], added["on_delete"], added["number_of_attempts"]) == ("1", "0", 3)
    assert document(outbox("show", config_id, "--json")) == added
    edited = document(outbox("edit", config_id, "--on-delete", "--number-of-attempts", "2", "--no-is-active", "--json"))
    changes = {"on_delete": "1", "number_of_attempts": 2, "is_active": "0", "modified_ts": edited["modified_ts"]}
    assert edited == {**added, **changes}
    assert json.loads(outbox("list", "--no-is-active", "--location-id", "L", "--json").stdout) == [edited]
    assert json.loads(outbox("list", "--resource", "other", "--json").stdout) == []
    heading, row = outbox("list").stdout.splitlines()
    assert heading.split() == ["ID", "LOCATION", "RESOURCE", "EVENTS", "STATE", "TRIES", "URL"]
    assert row.index("contact") == heading.index("RESOURCE")
    assert row.index("inactive") == heading.index("STATE")
    shown = [line.split(maxsplit=1) for line in outbox("show", config_id).stdout.splitlines()]
    created = dt.datetime.fromtimestamp(added["created_ts"], dt.UTC)
    for field in (["basic_auth", "no"], ["on_delete", "yes"], ["is_active", "no"], ["created_ts", f"{created:%F %TZ}"]):
        assert field in shown


def test_all_that_is_wrong_is_told_at_once_and_nothing_is_stored(outbox: Run, conn: psycopg.Connection) -> None:
    """A message per field, exit 2, and no traceback."""
    done = outbox("add", "--url", "nope", "--number-of-attempts", "9", "--attempt-interval", "5", "--format", "xml")
    assert (done.returncode, done.stdout) == (2, "")
    for message in [
        "location_id is required.",
        "resource is required.",
        "url must be an absolute http or https URL.",
        "number_of_attempts must be a whole number from 1 to 5.",
        "attempt_interval must be a whole number from 300 to 86400.",
        "format must be api-default.",
    ]:
        assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert conn.execute("select count(*) from outbox.postback_configs").fetchone() == (0,)
    lowered = outbox("add", *LEAST, "--attempt-interval", "5", "--json", MIN_ATTEMPT_INTERVAL="5")
    assert document(lowered)["attempt_interval"] == 5


def test_a_config_of_all_locations_is_asked_for_by_name(outbox: Run) -> None:
    """--all-locations, and never together with one location."""
    rest = ("--resource", "contact", "--url", "http://a/")
    added = document(outbox("add", "--all-locations", *rest, "--json"))
    assert added["location_id"] is None
    assert outbox("add", "--all-locations", *LEAST).returncode == 2
    assert "(all)" in outbox("edit", added["id"], "--expands", "tags").stdout


def test_an_edit_is_judged_by_what_results_and_must_name_something(outbox: Run) -> None:
    """Rules over several fields see the stored ones as well."""
    config_id = document(outbox("add", *LEAST, "--json"))["id"]
    done = outbox("edit", config_id, "--resource", "transaction")
    assert (done.returncode, done.stdout) == (2, "")
    assert "product_transaction_id is required for the resource transaction." in done.stderr
    both = outbox("edit", config_id, "--resource", "transaction", "--product-transaction-id", "p", "--json")
    assert document(both)["product_transaction_id"] == "p"
    cleared = outbox("edit", config_id, "--resource", "contact", "--no-product-transaction-id", "--json")
    assert document(cleared)["product_transaction_id"] is None
    assert "Nothing to change was named" in outbox("edit", config_id).stderr


@pytest.mark.parametrize("command", ["show", "edit", "pause", "resume", "secret", "remove", "test"])
def test_wrong_and_unknown_ids(outbox: Run, command: str) -> None:
    """What is no id is wrong usage; an id that nobody has is a failure."""
    more = {"edit": ["--expands", "a"], "remove": ["--yes"], "secret": ["--remove"]}.get(command, [])
    wrong, unknown = outbox(command, "17", *more), outbox(command, NOWHERE, *more)
    assert (wrong.returncode, "UUID" in wrong.stderr) == (2, True)
    assert (unknown.returncode, unknown.stderr) == (1, f"Error: There is no config {NOWHERE}.\n")


def test_pause_resume_and_remove(outbox: Run) -> None:
    """A paused config stays active; a deleted one says so; removing asks first, and twice is no error."""
    config_id = document(outbox("add", *LEAST, "--json"))["id"]
    assert outbox("pause", config_id).returncode == 0
    paused = document(outbox("show", config_id, "--json"))
    assert (paused["paused"], paused["is_active"]) == ("1", "1")
    assert "active,paused" in outbox("list").stdout
    assert outbox("resume", config_id).returncode == 0
    assert outbox("remove", config_id, entered="n\n").returncode == 1
    assert document(outbox("show", config_id, "--json"))["paused"] == "0"
    assert outbox("remove", config_id, entered="y\n").returncode == 0
    assert outbox("remove", config_id, "--yes").returncode == 0
    gone = outbox("pause", config_id)
    assert (gone.returncode, "was deleted" in gone.stderr) == (1, True)
    assert json.loads(outbox("list", "--json").stdout) == []


def test_a_password_comes_from_the_environment_and_is_never_printed(outbox: Run, conn: psycopg.Connection) -> None:
    """No flag takes it, no output shows it, no row holds it; without a key or a terminal it is refused."""
    user = ("--basic-auth-username", "uuu")
    assert "--basic-auth-password" not in outbox("add", "--help").stdout
    assert "OUTBOX_SECRET_KEY is not set" in outbox("add", *LEAST, *user, BASIC_AUTH_PASSWORD="ppp").stderr
    unasked = outbox("add", *LEAST, *user, SECRET_KEY=KEY)
    assert (unasked.returncode, "set OUTBOX_BASIC_AUTH_PASSWORD" in unasked.stderr) == (2, True)
    added = outbox("add", *LEAST, *user, "--json", SECRET_KEY=KEY, BASIC_AUTH_PASSWORD="ppp")
    config_id = document(added)["id"]
    stored = conn.execute("select c::text from outbox.postback_configs as c").fetchall()[0][0]
    for text in [added.stdout, outbox("show", config_id).stdout, outbox("list").stdout, stored]:
        assert "uuu" not in text
        assert "ppp" not in text
    assert outbox("edit", config_id, "--no-basic-auth").returncode == 0
    left = "select basic_auth_username, basic_auth_password from outbox.postback_configs"
    assert conn.execute(left).fetchall() == [(None, None)]


def test_a_password_is_asked_for_in_a_terminal(outbox: Run, db: str) -> None:
    """The prompt asks twice and echoes nothing."""
    terminal, its_end = pty.openpty()
    arguments = ["add", *LEAST, "--basic-auth-username", "user", "--json"]
    with subprocess.Popen(
        [sys.executable, "-m", "outbox", "config", *arguments],
        env={**os.environ, "OUTBOX_DSN": db, "OUTBOX_SECRET_KEY": KEY, "OUTBOX_ALLOW_NETWORKS": "127.0.0.0/8"},
        stdin=its_end, stdout=subprocess.PIPE, stderr=its_end, start_new_session=True,
    ) as process:  # fmt: skip
        os.close(its_end)
        shown = b""
        for prompt in (b"Password: ", b"confirmation: "):
            while not shown.endswith(prompt):
                shown += os.read(terminal, 1000)
            os.write(terminal, b"from the terminal\n")
        assert process.stdout is not None
        config_id = json.loads(process.stdout.read())["id"]
        assert process.wait() == 0
    os.close(terminal)
    assert b"from the terminal" not in shown
    with Receiver() as receiver:
        outbox("edit", config_id, "--url", receiver.url)
        assert outbox("test", config_id, SECRET_KEY=KEY, ALLOW_NETWORKS="127.0.0.0/8").returncode == 0
        assert authorization(receiver) == "user:from the terminal"


def authorization(receiver: Receiver) -> str:
    return base64.b64decode(dict(receiver.requests[-1].raw_headers)["Authorization"].removeprefix("Basic ")).decode()


def test_an_example_is_sent_marked_and_not_recorded(outbox: Run, conn: psycopg.Connection) -> None:
    """The contract's form, one header more, an older key still fits, and no table knows of it."""
    with Receiver() as receiver:
        url = receiver.url_for("/hook?a=%20b&c=+")
        receiver.answer("/hook", Status(202, b"thanks\x1b[2J\n"), Status(500, b"broken"))
        user = ("--basic-auth-username", "üser")
        added = outbox(
            "add", *LEAST, "--url", url, *user, "--json", SECRET_KEY=OLD_KEY, BASIC_AUTH_PASSWORD="a:b"
        )  # fmt: skip
        config_id = document(added)["id"]
        settings = {"SECRET_KEY": f"{KEY},{OLD_KEY}", "ALLOW_NETWORKS": "127.0.0.0/8"}
        done = outbox("test", config_id, **settings)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("status 202, ")
        assert done.stdout.endswith(" ms\nthanks\\x1b[2J\\n\n")
        [request] = receiver.requests
        headers = {name.lower(): value for name, value in request.raw_headers}
        assert (request.method, request.path) == ("POST", "/hook?a=%20b&c=+")
        assert request.form == [
            ("type", "CREATE"), ("resource", "contact"), ("number_of_attempts", "1"),
            ("data", '{"id":"test","location_id":"L","test":true}'),
        ]  # fmt: skip
        assert headers["webhook-test"] == "1"
        assert headers["webhook-id"]
        assert authorization(receiver) == "üser:a:b"
        refused = outbox("test", config_id, "--json", **settings)
        assert (refused.returncode, "not acknowledged" in refused.stderr) == (1, True)
        shown = json.loads(refused.stdout)
        assert (shown["acknowledged"], shown["status"], shown["answer"]) == (False, 500, "broken")
        wrong_key = outbox("test", config_id, SECRET_KEY=KEY, ALLOW_NETWORKS="127.0.0.0/8")
        assert (wrong_key.returncode, "can not be read with any key" in wrong_key.stderr) == (1, True)
    for table in ("outbox", "events", "deliveries", "attempts"):
        assert conn.execute(f"select count(*) from outbox.{table}".encode()).fetchone() == (0,)  # noqa: S608


def test_an_example_that_can_not_be_sent_says_why(outbox: Run) -> None:
    """No connection, and an address that the operator did not allow."""
    with Refusing() as url:
        config_id = document(outbox("add", *LEAST, "--url", url, "--json"))["id"]
        refused = outbox("test", config_id, ALLOW_NETWORKS="127.0.0.0/8")
        forbidden = outbox("test", config_id, ALLOW_NETWORKS="")
    assert (refused.returncode, refused.stdout.split(":")[0]) == (1, "connect")
    assert (forbidden.returncode, forbidden.stdout.split(":")[0]) == (1, "forbidden")


def test_what_others_wrote_can_not_move_the_cursor(outbox: Run) -> None:
    """Control characters of a stored field are shown as escapes."""
    config_id = document(outbox("add", *LEAST, "--location-id", "\x1b[2J\u202e", "--json"))["id"]
    for text in [outbox("show", config_id).stdout, outbox("list").stdout]:
        assert "\\x1b[2J\\u202e" in text
        assert "\x1b" not in text


def test_a_database_without_our_schema_is_told_as_such(outbox: Run, empty_db: str) -> None:
    """The message says what to run, and not which table the database misses."""
    done = outbox("list", DSN=empty_db)
    assert (done.returncode, done.stderr) == (1, "Error: The database has no outbox schema. Run: outbox migrate\n")


def test_a_signing_secret_is_printed_once_and_signs(outbox: Run) -> None:
    """Made, rotated and removed; a receiver's library accepts the example; nothing else shows the secret."""
    with Receiver() as receiver:
        config_id = document(outbox("add", *LEAST, "--url", receiver.url, "--json"))["id"]
        assert "OUTBOX_SECRET_KEY is not set" in outbox("secret", config_id, "--make").stderr
        made = outbox("secret", config_id, "--make", SECRET_KEY=OLD_KEY)
        assert (made.returncode, made.stderr) == (0, "The secret is shown this once.\n")
        first = made.stdout.strip()
        again = outbox("secret", config_id, "--make", SECRET_KEY=OLD_KEY)
        assert (again.returncode, "has a signing secret already" in again.stderr) == (1, True)
        keys = {"SECRET_KEY": f"{KEY},{OLD_KEY}"}
        second = document(outbox("secret", config_id, "--rotate", "--overlap", "1h", "--json", **keys))["secret"]
        assert outbox("test", config_id, **keys).returncode == 0
        [request] = receiver.requests
        for each in (first, second):
            Webhook(each).verify(request.body, dict(request.raw_headers), json_parse=False)
        shown = outbox("show", config_id, "--json").stdout + outbox("show", config_id).stdout + outbox("list").stdout
        assert "whsec" not in shown
        assert document(outbox("show", config_id, "--json"))["signed"] == "1"
        assert outbox("secret", config_id, "--remove").stdout == f"{config_id} signs no more.\n"
        assert document(outbox("secret", config_id, "--remove", "--json")) == {"removed": False}
        assert document(outbox("show", config_id, "--json"))["signed"] == "0"


def test_what_is_to_be_done_with_a_secret_is_said(outbox: Run) -> None:
    """No action, an overlap of nothing, and no time at all: exit 2 with what is accepted."""
    for arguments, message in (
        ((), "one of --make, --rotate and --remove"),
        (("--rotate", "--remove"), "one of --make, --rotate and --remove"),
        (("--make", "--overlap", "1h"), "--rotate only"),
        (("--rotate", "--overlap", "soon"), "--overlap: 'soon' is not a time"),
        (("--rotate", "--overlap", "31d"), "from 0s to 30d"),
    ):
        done = outbox("secret", NOWHERE, *arguments)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr
