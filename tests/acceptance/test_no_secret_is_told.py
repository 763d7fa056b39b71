"""Nothing that a whole run emits holds a secret: not the output of any process, nor an answer, nor the server's log."""

import base64
import dataclasses
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from cryptography.fernet import Fernet

from outbox.core.model import PostbackConfig
from outbox.core.signing import Secret
from outbox.daemon.targets import Credentials
from outbox.demo.embedded import EmbeddedPostgres
from outbox.demo.supervisor import free_port
from outbox.postgres.pool import Link
from outbox.secrets import SecretBox
from outbox.settings import Proxy, Settings
from tests.daemons import attach_contacts, daemon_process, eventually_true
from tests.proxies import ForwardProxy
from tests.receiver import Receiver, Status
from tests.servers import StartServer

KEY, OLD_KEY = Fernet.generate_key().decode(), Fernet.generate_key().decode()
USER, PASSWORD = "planted-user", "planted password/%"
DSN_PASSWORD, PROXY_PASSWORD = "planted-dsn-password", "planted-proxy-password"
# All that PostgreSQL can be told to log of statements and their parameters.
TALKATIVE = {
    "log_statement": "all", "log_min_duration_statement": "0", "log_min_messages": "debug1", "log_connections": "on",
    "log_min_error_statement": "debug1", "log_error_verbosity": "verbose", "log_parameter_max_length": "-1",
    "log_parameter_max_length_on_error": "-1",
}  # fmt: skip


class Run:
    """What was emitted, the secrets that must not be in it, and commands that add to both."""

    def __init__(self, server: EmbeddedPostgres, proxy: ForwardProxy) -> None:
        basic = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        through = base64.b64encode(f"proxy:{PROXY_PASSWORD}".encode()).decode()
        self.secrets = [server.password, KEY, OLD_KEY, USER, PASSWORD, basic, DSN_PASSWORD, PROXY_PASSWORD, through]
        self.emitted: list[str] = []
        self.settings = {
            "SECRET_KEY": f"{KEY},{OLD_KEY}",
            "PROXY": proxy.url.replace("//", f"//proxy:{PROXY_PASSWORD}@"),
            "BASIC_AUTH_PASSWORD": PASSWORD,
        }
        self._dsn = server.tcp_dsn

    def __call__(self, *arguments: str, **changed: str) -> str:
        """Run a command; all that it says is emitted."""
        told = self.told(*arguments, **changed)
        self.emitted.append(told.stdout + told.stderr)
        return told.stdout

    def told(self, *arguments: str, **changed: str) -> subprocess.CompletedProcess[str]:
        """Run a command that may tell a secret."""
        given = {"DSN": self._dsn, "ALLOW_NETWORKS": "127.0.0.0/8", **self.settings, **changed}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OUTBOX_")}
        return subprocess.run(
            [sys.executable, "-m", "outbox", *arguments],
            env=environment | {f"OUTBOX_{name}": value for name, value in given.items()},
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    def ask(self, method: str, url: str, headers: dict[str, str], body: str | None = None) -> None:
        """Ask the API; the answer is emitted, with its headers."""
        asked = urllib.request.Request(  # noqa: S310 - our own server
            url, method=method, data=None if body is None else body.encode(),
            headers=headers | {"Content-Type": "application/json"},
        )  # fmt: skip
        try:
            with urllib.request.urlopen(asked, timeout=30) as answer:  # noqa: S310 - as above
                self.emitted.append(f"{answer.headers}\n{answer.read().decode()}")
        except urllib.error.HTTPError as refused:
            self.emitted.append(f"{refused.headers}\n{refused.read().decode()}")


@pytest.fixture
def server(own_server: StartServer) -> EmbeddedPostgres:
    return own_server(tcp=True, settings=TALKATIVE)


def command_lines() -> Iterator[str]:
    """Yield the command line of each process that can be seen."""
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield each.read_bytes().decode(errors="replace")
        except OSError:
            continue


def test_nothing_that_a_run_emits_holds_a_secret(server: EmbeddedPostgres) -> None:
    """Configs, deliveries that fail and succeed, an outage, wrong settings, the API: in none of it stands a secret."""
    with Receiver() as receiver, ForwardProxy(credentials=f"proxy:{PROXY_PASSWORD}") as proxy:
        run = Run(server, proxy)
        run("migrate")
        with psycopg.connect(server.dsn, autocommit=True) as conn:
            attach_contacts(conn)
            receiver.answer("/bad", Status(500, b"no"))
            configs = [
                re.findall(r"[0-9a-f-]{36}", run("config", "add", *arguments, "--json"))[0]
                for path in ("/good", "/bad")
                for arguments in [
                    ("--location-id", "L", "--resource", "contact", "--url", receiver.url_for(path),
                     "--basic-auth-username", USER),
                ]
            ]  # fmt: skip
            for action in ("--make", "--rotate"):
                secret = run.told("config", "secret", configs[0], action, SECRET_KEY=OLD_KEY).stdout.strip()
                run.secrets += [secret, secret.removeprefix("whsec_")]
            user_id, api_key = re.findall(r"\S+$", run.told("user", "add", "me", "--operator").stdout, re.MULTILINE)
            run.secrets.append(api_key)
            port = free_port()
            settings = {**run.settings, "listen": f"127.0.0.1:{port}"}
            with daemon_process(server.tcp_dsn, "--serve", **settings) as daemon:
                daemon.wait_for_event("daemon.started")
                conn.execute("insert into contacts values (1, 'L', 'x')")
                daemon.wait_for_event("delivery.attempted", count=2)
                run.emitted.extend(command_lines())
                talk_to_the_api(run, f"http://127.0.0.1:{port}", {"user-id": user_id, "user-api-key": api_key}, configs)
                server.restart("immediate")
                daemon.wait_for_event("database.lost")
                eventually_true(lambda: ask_ready(port))
                assert daemon.stop() == 0
                run.emitted.append(daemon.output)
        talk_to_the_commands(run, configs)
        run.emitted.append((server.directory / "server.log").read_text(errors="replace"))
        # The run was one: the receiver was told who asks, and the server logged what it was given, sealed.
        assert {each.headers["Authorization"] for each in receiver.requests} == {f"Basic {run.secrets[5]}"}
        assert any("webhook-signature" in each.headers for each in receiver.requests)
        assert len(proxy.heads) >= 2
    assert "gAAAAA" in run.emitted[-1]
    found = {secret for secret in run.secrets for text in run.emitted if secret in text or quote(secret) in text}
    assert found == set()


def ask_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10):
            return True
    except OSError:
        return False


def talk_to_the_api(run: Run, url: str, user: dict[str, str], configs: list[str]) -> None:
    """Read and change what there is, sign in wrongly, send what is refused."""
    for path in ("/v2/postbackconfigs", f"/v2/postbackconfigs/{configs[0]}", "/v2/postbacklogs", "/metrics", "/docs"):
        run.ask("GET", url + path, user)
        run.ask("GET", url + path, {"user-id": user["user-id"], "user-api-key": user["user-api-key"] + "x"})
        run.ask("GET", f"{url}{path}?user-api-key={user['user-api-key']}", {})
        # The key taken for the id.
        run.ask("GET", url + path, {"user-id": user["user-api-key"], "user-api-key": user["user-id"]})
        swapped = base64.b64encode(f"{user['user-api-key']}:".encode()).decode()
        run.ask("GET", url + path, {"Authorization": f"Basic {swapped}"})
        run.ask("GET", f"{url}{path}?{user['user-api-key']}=1", {})
    at = f"{url}/v2/postbackconfigs/{configs[1]}"
    fields = f'"basic_auth_username": "{USER}", "basic_auth_password": "{PASSWORD}"'
    for body in (
        f'{{"postbackconfig": {{{fields}}}}}',
        f'{{"postbackconfig": {{{fields}, "url": "ftp://x"}}}}',
        f'{{"postbackconfig": {{"basic_auth_username": "{USER}:", "basic_auth_password": ["{PASSWORD}"]}}}}',
        f'{{"postbackconfig": {{{fields}',
    ):
        run.ask("PUT", at, user, body)
    run.ask("POST", f"{at}/secret/rotate", user, '{"secret": {"overlap": "x"}}')
    run.ask("DELETE", f"{at}/secret", user)


def talk_to_the_commands(run: Run, configs: list[str]) -> None:
    """Read all that can be read, and be wrong in each secret setting."""
    for arguments in (
        ("status", "--json"), ("doctor",), ("doctor", "--json"), ("deliveries", "list", "--json"), ("config", "list"),
        ("config", "show", configs[0]), ("config", "test", configs[0]), ("config", "test", configs[1]),
        ("user", "list"), ("secrets", "rotate"), ("top", "--json"),
        ("replay", "--state", "dead", "--config", configs[1]),
        ("config", "edit", configs[1], "--url", f"https://me:{PASSWORD}@h/"), ("config", "remove", configs[1], "--yes"),
    ):  # fmt: skip
        run(*arguments)
    for wrong in (
        f"postgres//me:{DSN_PASSWORD}@h/x", f"postgresql://me:{DSN_PASSWORD}@[::1/x", f"password=a {DSN_PASSWORD}",
        f"postgresql://me:{DSN_PASSWORD}%zz@h/x", f"host=127.0.0.1 port=1 password={DSN_PASSWORD}",
        f"postgresql://me:{DSN_PASSWORD}@127.0.0.1:port/x", f"postgresql://me:{DSN_PASSWORD}@h/x?wrong=1",
    ):  # fmt: skip
        run("status", DSN=wrong)
    run("config", "secret", configs[0], "--rotate", SECRET_KEY=f"{KEY}{OLD_KEY}")
    stranger = Fernet.generate_key().decode()
    for arguments in (("config", "test", configs[0]), ("doctor",), ("secrets", "rotate")):
        run(*arguments, SECRET_KEY=stranger)
    for wrong in (f"'{KEY}'", KEY[:-1], f"{KEY};{OLD_KEY}", f"{KEY}\udcff"):
        run("secrets", "rotate", SECRET_KEY=wrong)
    run("config", "edit", configs[0], "--basic-auth-username", USER, BASIC_AUTH_PASSWORD=f"{PASSWORD}\udcff")
    run("status", DSN=f"postgresql://me:{DSN_PASSWORD}\udcff@127.0.0.1:1/x")
    run("config", "test", configs[0], PROXY=f"https://proxy:{PROXY_PASSWORD}@h:1")
    run("config", "test", configs[0], PROXY=f"http://proxy:{PROXY_PASSWORD}@127.0.0.1:1")


def test_what_holds_a_secret_does_not_show_it() -> None:
    """No repr, as a traceback or a log line may have it, shows one."""
    proxy = Proxy("h", 1, USER, PROXY_PASSWORD)
    settings = Settings(dsn=f"password={DSN_PASSWORD}", secret_key=(KEY,), proxy=proxy)
    secret = Secret(PASSWORD.encode())
    box = SecretBox((KEY,))
    for holder in (settings, proxy, secret, Credentials(PASSWORD, (secret,)), box, Link(settings.dsn or "", "test")):
        shown = f"{holder!r} {holder}"
        assert [each for each in (DSN_PASSWORD, KEY, PROXY_PASSWORD, PASSWORD) if each in shown] == []
    hidden = {each.name for each in dataclasses.fields(PostbackConfig) if not each.repr}
    assert hidden == {"basic_auth_username", "basic_auth_password", "signing_secrets"}
