"""The settings of the way out, as the commands and the daemon take them."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from outbox.errors import UsageError
from outbox.settings import Proxy, read
from tests.proxies import ForwardProxy
from tests.receiver import Receiver, Refusing, Status

NOTHING = {name: value for name, value in os.environ.items() if not name.startswith("OUTBOX_")}


def outbox(dsn: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command; keywords are environment variables without their OUTBOX_."""
    given = {"OUTBOX_DSN": dsn, **{f"OUTBOX_{name}": value for name, value in variables.items()}}
    return subprocess.run(
        [sys.executable, "-m", "outbox", *arguments],
        env=NOTHING | given, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def add(dsn: str, url: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return outbox(dsn, "config", "add", "--all-locations", "--resource", "contact", "--url", url, "--json", **variables)


@pytest.mark.parametrize(
    ("text", "proxy"),
    [
        ("", None),
        ("http://proxy.example:3128", Proxy("proxy.example", 3128)),
        ("http://10.0.0.1:3128/", Proxy("10.0.0.1", 3128)),
        ("http://[fd00::1]:3128", Proxy("fd00::1", 3128)),
        ("http://user@h:1", Proxy("h", 1, "user")),
        ("http://user:p%40ss:w%2Frd@h:1", Proxy("h", 1, "user", "p@ss:w/rd")),
    ],
)
def test_a_proxy_is_named_by_a_url(text: str, proxy: Proxy | None) -> None:
    """Its port is never guessed, and its password is in no representation of it."""
    found = read({"dsn": "dbname=x", "proxy": text}).proxy
    assert found == proxy
    assert found is None or not found.password or found.password not in repr(found)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("proxy", each) for each in ("h:3128", "https://h:3128", "socks5://h:1", "http://h", "http://h:1/x", "http://h:0")),
        *(("proxy", each) for each in ("http://h:1?x", "http://a b:1", "http://127.1:1", "http://@:1")),
        *(("allow_ports", each) for each in ("", "x", "0", "65536", "80-", "90-80", "80,,443", "-1", "٣")),
        *(("require_https", each) for each in ("", "maybe", "on off")),
        *(("deny_networks", each) for each in ("x", "10.0.0.1/8", "10.0.0.0/33", "10.*")),
        *(("ca_file", each) for each in ("", "/", "/nowhere.pem", "/etc/hostname")),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_told_with_what_is_accepted(name: str, text: str) -> None:
    """Never ignored: a guard that is not set as it was meant guards nothing. No secret is repeated."""
    with pytest.raises(UsageError, match=f"^OUTBOX_{name.upper()}: .* is not .") as caught:
        read({"dsn": "dbname=x", name: text})
    assert name != "proxy" or repr(text) not in str(caught.value)


def test_all_that_is_wrong_stops_the_start_with_one_message(tmp_path: Path) -> None:
    """The daemon names each wrong setting and exits 2, before it asks the database for anything."""
    wrong = {
        "ALLOW_NETWORKS": "localhost", "DENY_NETWORKS": "10.0.0.1/8", "ALLOW_PORTS": "all", "REQUIRE_HTTPS": "maybe",
        "CA_FILE": str(tmp_path / "ca.pem"), "CLIENT_CERTIFICATE": str(tmp_path), "PROXY": "http://u:secret@h",
    }  # fmt: skip
    done = outbox("postgresql://nowhere.invalid/x", "run", **wrong)
    assert done.returncode == 2
    for name in wrong:
        assert f"OUTBOX_{name}: " in done.stderr
    assert "secret" not in done.stderr
    assert "Traceback" not in done.stderr
    assert "--proxy" not in outbox("x", "run", "--help").stdout


def test_a_forbidden_url_is_refused_when_it_is_written(db: str, conn: psycopg.Connection) -> None:
    """Literal addresses, ports and the scheme, with the reason and exit 2; an edit too, unless the URL stays."""
    for url, variables, reason in (
        ("http://127.0.0.1/", {}, "127.0.0.1 is a loopback address, and no allowed network has it."),
        ("http://[::ffff:a00:1]/", {}, "::ffff:a00:1 is an IPv4-mapped address, and no allowed network has it."),
        ("http://10.1.0.1/", {"ALLOW_NETWORKS": "10.0.0.0/8", "DENY_NETWORKS": "10.1.0.0/16"},
         "10.1.0.1 is in 10.1.0.0/16, which is denied."),
        ("http://h.example:25/", {}, "port 25 is not allowed, only 80, 443, 1024-65535."),
        ("http://h.example/", {"REQUIRE_HTTPS": "true"}, "http is not allowed, only https."),
        ("https://h.example:8443/", {"ALLOW_PORTS": "443"}, "port 8443 is not allowed, only 443."),
    ):  # fmt: skip
        done = add(db, url, **variables)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"url is forbidden: {reason}" in done.stderr
    assert conn.execute("select count(*) from outbox.postback_configs").fetchone() == (0,)
    assert add(db, "http://127.0.0.1/", ALLOW_NETWORKS="127.0.0.0/8").returncode == 0
    [(config_id,)] = conn.execute("select id from outbox.postback_configs").fetchall()
    assert outbox(db, "config", "edit", str(config_id), "--no-is-active").returncode == 0
    assert outbox(db, "config", "edit", str(config_id), "--url", "http://127.0.0.2/").returncode == 2


def test_an_example_goes_the_daemons_way(db: str, conn: psycopg.Connection) -> None:
    """`config test` leaves by the proxy; names are resolved and judged, and the operator is told the address."""

    def test(**variables: str) -> subprocess.CompletedProcess[str]:
        return outbox(db, "config", "test", str(config_id), **variables)

    with ForwardProxy(credentials="u:secret") as proxy, Receiver() as receiver, Refusing() as refusing:
        receiver.answer("/", Status(200, b"\x1b]0;pwned\x07\x9b2J"))
        assert add(db, receiver.url.replace("127.0.0.1", "localhost") + "/").returncode == 0
        [(config_id,)] = conn.execute("select id from outbox.postback_configs").fetchall()
        allowed = {"ALLOW_NETWORKS": "127.0.0.0/8"}
        sent = test(**allowed, PROXY=proxy.url.replace("//", "//u:secret@"))
        assert (sent.returncode, sent.stdout.splitlines()[1]) == (0, "\\x1b]0;pwned\\x07\ufffd2J")
        assert [first.split(":")[0] for first, _ in proxy.heads] == ["CONNECT 127.0.0.1"]
        wrong = test(**allowed, PROXY=proxy.url.replace("//", "//u:word@"))
        assert (wrong.returncode, wrong.stdout) == (1, "")
        assert wrong.stderr == (
            "Error: The proxy wants another user name and password (status 407): see OUTBOX_PROXY.\n"
        )
        gone = test(**allowed, PROXY=refusing)
        assert (gone.returncode, gone.stderr) == (1, "Error: The proxy can not be reached: Connection refused.\n")
        forbidden = test()
    assert forbidden.returncode == 1
    assert forbidden.stdout.startswith("forbidden: the host's address is a loopback address, and no allowed network")
    assert "(127.0.0.1)" in forbidden.stdout or "(::1)" in forbidden.stdout


@pytest.mark.parametrize("for_people", [True, False])
def test_no_log_line_moves_a_cursor(*, for_people: bool) -> None:
    """Values are written out, on a terminal and as JSON, whoever chose them; each event stays on one line."""
    program = (
        "from outbox import logs; import structlog; logs.configure();"
        r"structlog.get_logger().info('x.happened', name='a\x1b[2Jb\x9b\u202e\r\nlevel=fake', other=['\x1b'])"
    )
    shown = _stderr_of(program, for_people=for_people)
    lines = shown.replace("\r\n", "\n").splitlines()
    assert len(lines) == 1
    for character in "\x9b\u202e":
        assert character not in shown
    assert "\x1b[2J" not in shown
    assert re.search(r"a\\+(x|u00)1b\[2Jb", lines[0])


def _stderr_of(program: str, *, for_people: bool) -> str:
    command: list[Any] = [sys.executable, "-c", program]
    if not for_people:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stderr
    terminal, its_end = pty.openpty()
    subprocess.run(command, stderr=its_end, check=True, timeout=60)
    os.close(its_end)
    shown = os.read(terminal, 10_000).decode()
    os.close(terminal)
    return shown
