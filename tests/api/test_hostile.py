"""Hostile input: each is answered with the right status and the one form of errors, and nothing is stored or lost."""

import asyncio
import gzip
import json
from base64 import b64encode, urlsafe_b64encode
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from aiohttp import web

from outbox.api.body import json_body
from outbox.core.config_rules import FIELDS
from outbox.settings import Settings
from tests.apis import Client, new_user, serving

PATH = "/v2/postbackconfigs"
JSON = {"Content-Type": "application/json"}
GOOD: dict[str, Any] = {"location_id": "L", "resource": "contact", "url": "https://h.example/"}
ROWS = "select * from outbox.postback_configs order by id"


@pytest.fixture
async def user(db: str) -> dict[str, str]:
    return await new_user(db, "L")


@pytest.fixture
async def api(db: str, user: dict[str, str]) -> AsyncIterator[Client]:
    async with serving(Settings(dsn=db)) as client:
        client.session.headers.update(user)
        yield client


@pytest.fixture
async def config(api: Client) -> str:
    answer = await api.post(PATH, json={"postbackconfig": GOOD})
    return str((await answer.json())["postbackconfig"]["id"])


class Connection:
    """A connection on which a test writes what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def to(cls, api: Client) -> "Connection":
        """Connect."""
        assert api.port
        return cls(*await asyncio.open_connection("127.0.0.1", api.port))

    async def send(self, data: bytes) -> None:
        """Write, and wait while the other side does not read."""
        self._writer.write(data)
        await self._writer.drain()

    def end(self) -> None:
        """Close it."""
        self._writer.close()

    async def answer(self) -> tuple[int, bytes]:
        """Return the next answer's status and body; IncompleteReadError when there is none any more."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
        return int(head.split()[1]), await self._reader.readexactly(int(headers[b"content-length"]))


def head(method: str, path: str, headers: dict[str, str]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in ({"Host": "h"} | headers).items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


async def refused(answer: Any, *statuses: int) -> dict[str, list[str]]:  # noqa: ANN401 - of the client
    """Assert the status and the form of errors; return them."""
    assert answer.status in statuses, (answer.status, await answer.text())
    errors: dict[str, list[str]] = (await answer.json())["errors"]
    assert errors
    assert all(isinstance(each, str) for messages in errors.values() for each in messages)
    return errors


@pytest.mark.parametrize("chunked", [False, True])
async def test_ten_megabytes_are_refused_before_they_have_come(
    api: Client, user: dict[str, str], conn: psycopg.Connection, *, chunked: bool
) -> None:
    """413 comes while the body is still under way; what follows in it is never read as a request of its own."""
    hidden = head("DELETE", "/v2/hidden", user) * 500
    part = f"{len(hidden):x}\r\n".encode() + hidden + b"\r\n" if chunked else hidden
    count = 10_000_000 // len(part) + 1
    size = {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": str(count * len(part))}
    connection = await Connection.to(api)
    await connection.send(head("POST", PATH, user | JSON | size) + part * 2)
    status, body = await connection.answer()
    assert (status, list(json.loads(body))) == (413, ["errors"])
    try:
        await connection.send(part * (count - 2) + (b"0\r\n\r\n" if chunked else b"") + head("GET", PATH, user))
        status, _ = await connection.answer()
    except (ConnectionError, asyncio.IncompleteReadError):
        status = 200  # it was closed, which is as well
    assert status == 200
    connection.end()
    assert conn.execute(ROWS).fetchall() == []


GOOD_BODY = json.dumps({"postbackconfig": GOOD | {"resource": "é"}}, ensure_ascii=False)


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({}, GOOD_BODY.encode("latin-1"), 400),
        ({}, GOOD_BODY.encode("utf-16"), 400),
        ({}, GOOD_BODY.encode("utf-8-sig"), 400),
        ({"Content-Type": "application/json; charset=latin-1"}, GOOD_BODY.encode("latin-1"), 415),
        ({"Content-Type": "application/json; charset=utf-16"}, GOOD_BODY.encode("utf-16"), 415),
        ({"Content-Type": "application/jsonp"}, GOOD_BODY.encode(), 415),
        ({"Content-Type": "multipart/form-data; boundary=x"}, b"--x--", 415),
        ({"Content-Type": ""}, GOOD_BODY.encode(), 415),
        ({"Content-Encoding": "gzip"}, gzip.compress(GOOD_BODY.encode(), mtime=0), 415),
        ({"Content-Encoding": "gzip"}, gzip.compress(b"x" * 10_000_000, mtime=0), 415),
        ({"Content-Encoding": "deflate"}, b"no deflate", 415),
        ({"Host": "h:99999999"}, GOOD_BODY.encode(), 400),
        ({"Host": "h:port"}, GOOD_BODY.encode(), 400),
        ({}, GOOD_BODY.encode()[:-1], 400),
        ({}, GOOD_BODY.encode() * 2, 400),
        ({}, b'{"postbackconfig": {}, "postbackconfig": {}}', 400),
        ({}, b"[" * 100_000 + b"]" * 100_000, 413),
        ({}, b'{"postbackconfig": ' + b"[" * 30_000 + b"]" * 30_000 + b"}", 400),
        ({}, b'"postbackconfig"', 422), ({}, b"1", 422), ({}, b"true", 422),
        ({}, b'{"postbackconfig": null}', 422), ({}, b'{"postbackconfig": [{}]}', 422),
        ({}, b'{"postbackconfig": ' + GOOD_BODY.encode() + b"}", 422),
    ],
    ids=lambda value: repr(value)[:40],
)  # fmt: skip
async def test_a_body_that_is_not_what_it_should_be(
    api: Client, conn: psycopg.Connection, config: str, *, headers: dict[str, str], body: bytes, status: int
) -> None:
    """Another encoding, type, envelope or nesting, and what is packed: refused, for POST and for PUT."""
    before = conn.execute(ROWS).fetchall()
    for method, path in (("POST", PATH), ("PUT", f"{PATH}/{config}")):
        await refused(await api.request(method, path, data=body, headers=JSON | headers), status)
    assert conn.execute(ROWS).fetchall() == before


WRONG: dict[str, list[object]] = {
    "string": [1, 1.5, True, [], {}, ["https://h/"], 10**30],
    "integer": ["", "x", "1.5", "1e1", "-1", "\u0663", " 3", -1, 0, 0.5, 10**30, "9" * 400, True, None, [], {}, [3]],
    "boolean": [2, -1, 0.5, "yes", "TRUE", "", None, [], {}, [True], 10**30],
}


@pytest.mark.parametrize("name", FIELDS)
async def test_a_field_with_a_value_of_another_kind(
    api: Client, conn: psycopg.Connection, config: str, name: str
) -> None:
    """It is named with what is accepted, and of what came with it nothing is stored."""
    before = conn.execute(ROWS).fetchall()
    field = FIELDS[name]
    for wrong in (each for each in WRONG[field.kind] if each is not None or not field.nullable):
        sent: dict[str, Any] = {"postbackconfig": GOOD | {"expands": "tags", name: wrong}}
        for method, path in (("POST", PATH), ("PUT", f"{PATH}/{config}")):
            errors = await refused(await api.request(method, path, json=sent), 422)
            assert list(errors) == [name], wrong
    for broken in (
        '"a\\u0000b"',
        '"\\ud800"',
        '"\\udc00\\ud800"',
        "NaN",
        "-Infinity",
        "1e400",
        "9" * 5000,
        "01",
        "'x'",
    ):
        text = json.dumps({"postbackconfig": GOOD | {name: "<>"}}).replace('"<>"', broken)
        for method, path in (("POST", PATH), ("PUT", f"{PATH}/{config}")):
            await refused(await api.request(method, path, data=text, headers=JSON), 400)
    assert conn.execute(ROWS).fetchall() == before


async def test_numbers_as_they_are_written_elsewhere(api: Client) -> None:
    """A whole number may be a string of digits or end in .0, and comes back as a number; a flag comes back as "1"."""
    body = b'{"postbackconfig": {"location_id": "L", "resource": "contact", "url": "https://h/", %s}}'
    for written in (b'"number_of_attempts": "3", "on_update": 0', b'"number_of_attempts": 3.0, "on_update": "false"'):
        answer = await api.post(PATH, data=body % written, headers=JSON)
        made = (await answer.json())["postbackconfig"]
        assert (answer.status, made["number_of_attempts"], made["on_update"], made["on_create"]) == (201, 3, "0", "1")


async def test_a_url_smuggles_no_header(api: Client, conn: psycopg.Connection, config: str) -> None:
    """Line ends are refused; percent-encoded they are text like any other, kept byte for byte."""
    before = conn.execute(ROWS).fetchall()
    for wrong in ("https://h/\r\nX-Evil: 1", "https://h/\n", "https://h\r\n/", "https://h/\t", "https://h/\x7f"):
        answer = await api.post(PATH, json={"postbackconfig": GOOD | {"url": wrong}})
        assert list(await refused(answer, 422)) == ["url"]
        answer = await api.put(f"{PATH}/{config}", json={"postbackconfig": {"url": wrong}})
        assert list(await refused(answer, 422)) == ["url"]
    assert conn.execute(ROWS).fetchall() == before
    kept = "https://h/%0d%0aX-Evil:%201?a=%0D%0A&b=%00"
    made = await (await api.post(PATH, json={"postbackconfig": GOOD | {"url": kept}})).json()
    shown = await api.get(f"{PATH}/{made['postbackconfig']['id']}")
    assert (await shown.json())["postbackconfig"]["url"] == kept
    assert "X-Evil" not in shown.headers


async def test_with_both_ways_to_sign_in_the_headers_count(api: Client, db: str, user: dict[str, str]) -> None:
    """Basic is not tried when they are wrong, nor joined to half of them."""
    other = await new_user(db, "M")

    def basic(of: dict[str, str]) -> dict[str, str]:
        return {"Authorization": "Basic " + b64encode(":".join(of.values()).encode()).decode()}

    await api.post(PATH, json={"postbackconfig": GOOD})
    both = await api.get(PATH, headers=user | basic(other))
    assert (await both.json())["meta"]["pagination"]["totalCount"] == 1
    for wrong in (
        {**user, "user-api-key": other["user-api-key"]},
        {**user, "user-api-key": ""},
        {**user, "user-id": ""},
    ):
        await refused(await api.get(PATH, headers=wrong | basic(user)), 401)


@pytest.mark.parametrize("name", ["user-id", "user-api-key", "developer-id", "Content-Type", "Authorization", "X-Any"])
async def test_headers_of_any_bytes(api: Client, user: dict[str, str], name: str) -> None:
    """Bytes beyond ASCII and 8,000 of them are an answer of ours; more than a line may have is 400."""
    for value, statuses in (("\xff\xfe\xe9", {401, 415, 422}), ("a" * 8000, {401, 415, 422}), ("a" * 20_000, {400})):
        connection = await Connection.to(api)
        body = b'{"postbackconfig": {}}'
        headers = JSON | user | {"Content-Length": str(len(body)), name: value}
        await connection.send(head("POST", PATH, headers) + body)
        status, answer = await connection.answer()
        assert status in statuses
        assert status == 400 or json.loads(answer)["errors"]
        connection.end()


@pytest.mark.parametrize("path", [PATH, "/v2/postbacklogs"])
async def test_queries_of_any_bytes(api: Client, path: str) -> None:
    """What is no text is refused, what is long but one is looked for, what is longer than a line may be is 400."""
    name = "url" if path == PATH else "model_id"
    for query, status in (
        (f"{name}=%00", 422), (f"{name}={'a' * 8000}", 200), (f"{name}={'a' * 20_000}", 400), ("%00=1", 422),
        ("page=1" + "0" * 400, 422), (f"page_size={10**30}", 422), ("created_ts=" + "9" * 400, 422),
        (f"{name}=%F0%9F%92%A9", 200), (f"{name}=a%0d%0ab", 200), ("sort=id;drop", 422), (f"{name}=' or 1=1 --", 200),
    ):  # fmt: skip
        assert (await api.get(f"{path}?{query}")).status == status, query[:40]
    for wrong in ("%FF", "%ED%A0%80", "a%00b", "..%2f..", "%2e%2e", "a" * 4000, "'", "1 or 1=1"):
        await refused(await api.get(f"{path}/{wrong}"), 404)


async def test_a_cursor_of_half_a_character(api: Client) -> None:
    """A cursor that somebody made himself is refused, as any other that is none."""
    for value in ("\ud800", "\0", "\udfff\ud800"):
        values = json.dumps(["url", value, "00000000-0000-0000-0000-000000000000"])
        after = urlsafe_b64encode(values.encode()).decode().rstrip("=")
        assert list(await refused(await api.get(PATH, params={"sort": "url", "after": after}), 422)) == ["after"]


async def test_half_requests_do_not_keep_others_waiting(
    api: Client, user: dict[str, str], conn: psycopg.Connection, config: str
) -> None:
    """A hundred with half their headers and a hundred with half a body hold nothing that another needs."""
    before = conn.execute(ROWS).fetchall()
    half = head("PUT", f"{PATH}/{config}", user | JSON | {"Content-Length": "1000"})
    opened = [await Connection.to(api) for _ in range(200)]
    try:
        for index, each in enumerate(opened):
            await each.send(half[:-2] if index % 2 else half + b'{"postbackconfig": {"url": "https://half/"')
        assert (await api.get(PATH)).status == 200
        assert (await api.put(f"{PATH}/{config}", json={"postbackconfig": {}})).status == 200
    finally:
        for each in opened:
            each.end()
    assert conn.execute(ROWS).fetchall() == before


async def test_a_body_that_does_not_come_is_given_up(db: str, user: dict[str, str]) -> None:
    """After the server's patience it is 408."""

    async def slow(request: web.Request) -> web.Response:
        return web.json_response(await json_body(request, "thing", patience=0.01))

    async with serving(Settings(dsn=db), lambda app: app.router.add_post("/v2/slow", slow)) as api:
        connection = await Connection.to(api)
        await connection.send(head("POST", "/v2/slow", user | JSON | {"Content-Length": "10"}) + b"{")
        status, body = await connection.answer()
        assert (status, list(json.loads(body)["errors"])) == (408, ["body"])
        connection.end()


@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"Content-Length: -1\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
        b"X: a\x00b\r\n\r\n",
    ],
)
async def test_a_body_of_two_lengths_is_none(api: Client, user: dict[str, str], framing: bytes) -> None:
    """What two readers could take for different requests is 400, and the connection ends there."""
    connection = await Connection.to(api)
    await connection.send(head("POST", PATH, user | JSON)[:-2] + framing + head("GET", PATH, user))
    assert (await connection.answer())[0] == 400
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await connection.answer()
    connection.end()
