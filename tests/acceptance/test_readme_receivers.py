"""The receivers of README.md, as they stand there: they accept what a daemon signs, once, and refuse the rest."""

import asyncio
import base64
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import aiohttp
import psycopg
import pytest

from outbox.core import postback, signing
from outbox.core.signing import Secret
from outbox.demo.supervisor import free_port
from outbox.postgres import signing as stored
from outbox.secrets import SecretBox
from tests.daemons import add_config, attach_contacts, eventually, owed, until_empty

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
KEYS = ("0" * 43 + "=",)
RECEIVERS = {"python": [sys.executable], "js": ["node"], "php": ["php", "-S", "127.0.0.1:PORT"]}


class Running:
    """A receiver that runs, where it listens and what it told."""

    def __init__(self, port: int, told: Path) -> None:
        self.url, self._told = f"http://127.0.0.1:{port}/", told

    @property
    def changes(self) -> list[str]:
        """The lines about changes, without what PHP's server sets before them."""
        return re.findall(r"(?:CREATE|UPDATE|DELETE) contact .*", self._told.read_text())


def listens(port: int) -> bool:
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0


@asynccontextmanager
async def running(language: str, folder: Path, secret: str, port: int) -> AsyncIterator[Running]:
    """Run the receiver of this language, taken from README.md, on a port of its own."""
    [code] = re.findall(rf"^```{language}\n(.*?receiver\..*?)^```", README, re.MULTILINE | re.DOTALL)
    assert "8000" in code
    name = folder / ("receiver" + {"python": ".py", "js": ".mjs", "php": ".php"}[language])
    name.write_text(code.replace("8000", str(port)))
    command = [part.replace("PORT", str(port)) for part in RECEIVERS[language]]
    with (folder / "told").open("wb") as told:
        process = await asyncio.create_subprocess_exec(
            *command, name, env=os.environ | {"WEBHOOK_SECRET": secret, "TMPDIR": str(folder)}, stdout=told, stderr=told
        )
    try:
        await eventually(lambda: listens(port) or process.returncode is not None)
        assert process.returncode is None, (folder / "told").read_text()
        yield Running(port, folder / "told")
    finally:
        process.kill()
        await process.wait()


def signed(secrets: Sequence[Secret], event_id: str, timestamp: int, number: int = 1) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of a try, as the daemon makes them."""
    body = postback.form_body("CREATE", "contact", number, '{"id":9}')
    signature = signing.signature(secrets, event_id, timestamp, body) if secrets else None
    headers = postback.headers(
        event_id, timestamp=timestamp, user_agent="test", authorization=None, signature=signature
    )
    return body, headers


@pytest.mark.parametrize("language", RECEIVERS)
async def test_it_accepts_what_is_signed_once_and_refuses_the_rest(
    language: str, db: str, conn: psycopg.Connection, tmp_path: Path
) -> None:
    """A delivery and its duplicate are acknowledged, and worked on once; what is forged, old or unsigned is refused."""
    if shutil.which(RECEIVERS[language][0]) is None:
        pytest.skip(f"{language} is not installed")
    attach_contacts(conn)
    port = free_port()
    config = add_config(conn, f"http://127.0.0.1:{port}/")
    async with await psycopg.AsyncConnection.connect(db) as other:
        text = await stored.make(other, config, SecretBox(KEYS))
    own, stranger = Secret(base64.b64decode(text.removeprefix("whsec_"))), Secret(b"x" * 32)
    conn.execute("insert into contacts values (1, 'L', 'Zoë & Söhne +1')")
    now = int(time.time())
    async with running(language, tmp_path, text, port) as receiver, aiohttp.ClientSession() as client:

        async def answer_to(request: tuple[bytes, dict[str, str]]) -> int:
            async with client.post(receiver.url, data=request[0], headers=request[1]) as answer:
                return answer.status

        assert await until_empty(db, secret_key=KEYS) == 0
        assert owed(conn) == []
        first = 'CREATE contact {"id":1,"location_id":"L","name":"Zoë & Söhne +1"}'
        await eventually(lambda: receiver.changes == [first])
        event = str(UUID(int=9))
        for request, status in (
            (signed([own], event, now), 204),
            (signed([own], event, now, number=2), 204),
            (signed([stranger, own], event, now), 204),
            (signed([stranger], str(UUID(int=10)), now), 401),
            (signed([], str(UUID(int=11)), now), 401),
            (signed([own], str(UUID(int=12)), now - 900), 401),
            ((signed([own], str(UUID(int=13)), now)[0] + b"0", signed([own], str(UUID(int=13)), now)[1]), 401),
            ((b"type=CREATE", {}), 401),
            (signed([own], str(UUID(int=14)), now), 204),
        ):
            assert await answer_to(request) == status, request
        second = 'CREATE contact {"id":9}'
        await eventually(lambda: len(receiver.changes) >= 3)
        assert receiver.changes == [first, second, second]
