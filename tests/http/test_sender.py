"""The sender turns whatever a subscriber's server does into an Answer or a Failure, within the deadline."""

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.core.model import Answer, Failure, FailureKind
from outbox.errors import UsageError
from outbox.http.connection import KEPT_ANSWER, MAX_ANSWER
from outbox.http.sender import Sender, retry_after
from tests.certificates import Authority, self_signed
from tests.receiver import (
    OK,
    Behaviour,
    BrokenHttp,
    CloseIdleAfter,
    CloseWithoutAnswer,
    DripBody,
    DripHeaders,
    EndlessBody,
    Gate,
    GzipBomb,
    Hang,
    HangAfterHeaders,
    HugeHeaders,
    Receiver,
    Redirect,
    Refusing,
    Reset,
    SetCookie,
    Status,
)

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)
DENIED = (ipaddress.ip_network("127.0.0.1/32"), ipaddress.ip_network("::1/128"))
SHORT = 0.3  # seconds; a deadline that a test waits for
BODY = b"type=CREATE&data=%7B%7D"
HEADERS = {"User-Agent": "outbox/0", "Content-Type": "application/x-www-form-urlencoded", "webhook-id": "e-1"}
NOW = datetime(2025, 1, 1, tzinfo=UTC)


@pytest.fixture
async def sender() -> AsyncIterator[Sender]:
    """A sender that may post to loopback, and whose deadline is never met."""
    async with Sender(timeout=30, allow_networks=LOOPBACK) as opened:
        yield opened


@pytest.fixture
async def hurried() -> AsyncIterator[Sender]:
    """A sender with a short deadline."""
    async with Sender(timeout=SHORT, allow_networks=LOOPBACK) as opened:
        yield opened


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver that answers 200."""
    with Receiver() as running:
        yield running


@asynccontextmanager
async def sender_at(behaviour: Behaviour) -> AsyncIterator[tuple[Sender, Receiver]]:
    with Receiver(default=behaviour) as running:
        async with Sender(timeout=30, allow_networks=LOOPBACK) as opened:
            yield opened, running


def label(value: object) -> str:
    return repr(value)[:50]


def kind_and_status(result: Answer | Failure) -> tuple[FailureKind, int | None]:
    assert isinstance(result, Failure), result
    assert result.message.isprintable()
    assert 0 < len(result.message) < 200
    return result.kind, result.status


async def test_the_request_arrives_byte_for_byte(sender: Sender, receiver: Receiver) -> None:
    """Path and query, the fields and the body are what was given; the library adds only what HTTP needs."""
    path = "/a%2fb/%7e?x=%20+y&q=%C3%BC&&empty=&a[]=1|2"
    assert await sender.post(receiver.url_for(path), BODY, HEADERS) == Answer(200)
    [request] = receiver.requests
    assert (request.method, request.path, request.body) == ("POST", path, BODY)
    assert dict(request.raw_headers) == {
        **HEADERS,
        "Host": receiver.url.removeprefix("http://"),
        "Accept": "*/*",
        "Accept-Encoding": "identity",
        "Content-Length": str(len(BODY)),
    }
    assert len(request.raw_headers) == 7


async def test_a_url_without_a_path_asks_for_the_root(sender: Sender, receiver: Receiver) -> None:
    """A query directly after the host is kept, behind the slash that HTTP needs."""
    await sender.post(receiver.url + "?x=1", BODY, HEADERS)
    assert receiver.requests[0].path == "/?x=1"


@pytest.mark.parametrize("code", [200, 201, 202, 204, 304, 400, 401, 404, 410, 422, 429, 500, 503])
async def test_any_status_is_an_answer(sender: Sender, receiver: Receiver, code: int) -> None:
    """The sender judges no status."""
    body = b"" if code in (204, 304) else b"words"
    receiver.answer("/", Status(code, body))
    assert await sender.post(receiver.url_for("/"), BODY, HEADERS) == Answer(code, body)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(sender: Sender, receiver: Receiver, code: int) -> None:
    """It is an answer like any other, and nothing is sent to where it points."""
    receiver.answer("/", Redirect(receiver.url_for("/elsewhere"), code))
    assert await sender.post(receiver.url_for("/"), BODY, HEADERS) == Answer(code)
    assert [request.path for request in receiver.requests] == ["/"]


async def test_cookies_do_not_come_back(sender: Sender, receiver: Receiver) -> None:
    """No try knows of another."""
    receiver.answer("/", SetCookie())
    for _ in range(2):
        await sender.post(receiver.url_for("/"), BODY, HEADERS)
    assert ["Cookie" in request.headers for request in receiver.requests] == [False, False]


async def test_connections_are_kept_alive(sender: Sender, receiver: Receiver) -> None:
    """One connection serves posts that follow one another, also to another path and after an error."""
    receiver.answer("/failing", Status(500, b"x" * 100_000))
    for path in ("/", "/failing", "/other", "/"):
        await sender.post(receiver.url_for(path), BODY, HEADERS)
    assert receiver.connections == 1


async def test_no_more_unused_connections_are_kept_than_allowed(receiver: Receiver) -> None:
    """What is beyond the number is closed after its answer."""
    gate = Gate()
    receiver.answer("/", gate)
    async with Sender(timeout=30, allow_networks=LOOPBACK, connections=2) as sender:
        for expected in (5, 8):
            posts = [asyncio.create_task(sender.post(receiver.url_for("/"), BODY, HEADERS)) for _ in range(5)]
            await receiver.wait_for_async(expected if expected == 5 else 10)
            gate.open()
            assert await asyncio.gather(*posts) == [Answer(200)] * 5
            assert receiver.connections == expected


async def test_who_has_many_unused_connections_takes_none_from_others(receiver: Receiver) -> None:
    """With no room for another one, one of his is closed: a shake of hands for each POST would slow the others."""
    gate = Gate()
    receiver.answer("/", gate)
    async with Sender(timeout=30, allow_networks=LOOPBACK, connections=3) as sender:
        posts = [asyncio.create_task(sender.post(receiver.url_for("/"), BODY, HEADERS)) for _ in range(3)]
        await receiver.wait_for_async(3)
        gate.open()
        assert await asyncio.gather(*posts) == [Answer(200)] * 3
        with Receiver() as other:
            for _ in range(3):
                assert await sender.post(other.url, BODY, HEADERS) == Answer(200)
            assert other.connections == 1
        for _ in range(2):
            assert await sender.post(receiver.url_for("/"), BODY, HEADERS) == Answer(200)
        assert receiver.connections == 3


async def test_only_the_beginning_of_a_body_is_kept(sender: Sender, receiver: Receiver) -> None:
    """A body up to the cap is read, so that the connection can be kept; its beginning is enough to look at."""
    receiver.answer("/", Status(200, b"ab" * (MAX_ANSWER // 2)))
    for _ in range(2):
        result = await sender.post(receiver.url_for("/"), BODY, HEADERS)
        assert result == Answer(200, b"ab" * (KEPT_ANSWER // 2))
    assert receiver.connections == 1


@pytest.mark.parametrize(
    "behaviour",
    [Status(200, b"." * 8 * MAX_ANSWER), EndlessBody(), EndlessBody(chunked=False)],
    ids=["with length", "chunked", "no length"],
)
async def test_an_answer_beyond_the_cap_is_oversized(behaviour: Behaviour) -> None:
    """It is read no further, and its connection is not used again."""
    async with sender_at(behaviour) as (sender, receiver):
        for _ in range(2):
            result = await sender.post(receiver.url, BODY, HEADERS)
            assert kind_and_status(result) == (FailureKind.OVERSIZED, 200)
        assert receiver.connections == 2


async def test_a_gzip_bomb_is_not_unpacked() -> None:
    """The body is bytes to us, whatever the headers call it."""
    async with sender_at(GzipBomb()) as (sender, receiver):
        result = await sender.post(receiver.url, BODY, HEADERS)
    assert isinstance(result, Answer)
    assert result.body.startswith(b"\x1f\x8b")
    assert len(result.body) == KEPT_ANSWER


@pytest.mark.parametrize(
    ("behaviour", "kind", "status"),
    [
        (Reset(), FailureKind.BROKEN, None),
        (CloseWithoutAnswer(), FailureKind.BROKEN, None),
        (BrokenHttp(), FailureKind.BROKEN, None),
        (BrokenHttp(b"HTTP/1.1 200 OK\r\nContent-Len"), FailureKind.BROKEN, None),
        (BrokenHttp(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"), FailureKind.BROKEN, None),
        (BrokenHttp(b"HTTP/1.1 200 OK\r\nNo colon\r\n\r\n"), FailureKind.BROKEN, None),
        (BrokenHttp(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort"), FailureKind.BROKEN, 200),
        (BrokenHttp(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"), FailureKind.BROKEN, 200),
        (BrokenHttp(b"\0\x1b[31m secret \r\n\r\n"), FailureKind.BROKEN, None),
        (HugeHeaders(1_000_000), FailureKind.OVERSIZED, None),
        (HugeHeaders(1_000_000, per_line=100_000), FailureKind.OVERSIZED, None),
        (BrokenHttp(b"HTTP/1.1 200 " + b"K" * 1_000_000), FailureKind.OVERSIZED, None),
    ],
    ids=label,
)
async def test_what_is_no_proper_answer_fails(behaviour: Behaviour, kind: FailureKind, status: int | None) -> None:
    """On a new connection nothing is repeated, and the message quotes nothing of the answer."""
    async with sender_at(behaviour) as (sender, receiver):
        result = await sender.post(receiver.url, BODY, HEADERS)
        assert kind_and_status(result) == (kind, status)
        assert isinstance(result, Failure)
        assert "secret" not in result.message
        assert len(receiver.requests) == 1


@pytest.mark.parametrize(
    ("behaviour", "status"),
    [
        (Hang(), None),
        (HangAfterHeaders(), 200),
        (DripHeaders(), None),
        (DripHeaders(0.01), None),
        (DripBody(), 200),
        (DripBody(0.01), 200),
    ],
    ids=label,
)
async def test_the_deadline_covers_headers_and_body(hurried: Sender, behaviour: Behaviour, status: int | None) -> None:
    """Bytes that trickle in do not extend it, and a status that had come is told."""
    with Receiver(default=behaviour) as receiver:
        result = await hurried.post(receiver.url, BODY, HEADERS)
        assert kind_and_status(result) == (FailureKind.TIMEOUT, status)


async def test_interim_answers_are_no_answer(sender: Sender, receiver: Receiver) -> None:
    """Only the final status counts."""
    interim, final = b"HTTP/1.1 103 Early Hints\r\n\r\n", b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"
    receiver.answer("/", BrokenHttp(interim * 3 + final))
    assert await sender.post(receiver.url_for("/"), BODY, HEADERS) == Answer(202)


async def test_the_deadline_covers_the_tls_handshake(hurried: Sender) -> None:
    """A server that accepts and says nothing costs no more than the deadline."""
    with Receiver(default=Hang()) as receiver:
        result = await hurried.post(receiver.url.replace("http:", "https:"), BODY, HEADERS)
    assert kind_and_status(result) == (FailureKind.TIMEOUT, None)


async def test_a_post_that_is_cancelled_lets_its_connection_go(sender: Sender, receiver: Receiver) -> None:
    """Cancelling is the one thing that gets out."""
    receiver.answer("/", Hang(), OK)
    post = asyncio.create_task(sender.post(receiver.url_for("/"), BODY, HEADERS))
    await receiver.wait_for_async(1)
    post.cancel()
    with pytest.raises(asyncio.CancelledError):
        await post
    async with asyncio.timeout(30):
        while receiver.in_flight:  # noqa: ASYNC110 - it falls in another thread
            await asyncio.sleep(0.005)
    assert await sender.post(receiver.url_for("/"), BODY, HEADERS) == Answer(200)


async def test_a_refused_connection(sender: Sender) -> None:
    """Nobody listens there."""
    with Refusing() as url:
        result = await sender.post(f"{url}/?token=secret", BODY, HEADERS)
    assert kind_and_status(result) == (FailureKind.CONNECT, None)


async def test_a_name_that_does_not_exist(sender: Sender) -> None:
    """Names under .invalid never exist."""
    result = await sender.post("http://nowhere.invalid/?token=secret", BODY, HEADERS)
    assert kind_and_status(result) == (FailureKind.RESOLVE, None)
    assert isinstance(result, Failure)
    assert "secret" not in result.message


@pytest.mark.parametrize(
    "url",
    [
        *("", "nonsense", "/path", "ftp://127.0.0.1/", "http:///path", "http://127.0.0.1:99999/", "http://[::1/"),
        *("http://2130706433/", "http://127.1/", "http://0x7f.1/", f"http://{'a' * 64}.example/", "http://a..b/"),
        *("http://127.0.0.1/a b", "http://127.0.0.1/\r\nX-Evil: 1", "http://127.0.0.1/\u00fc"),
    ],
)
async def test_a_url_that_can_not_be_sent_as_it_is(sender: Sender, url: str) -> None:
    """Whatever got past the rules for configs fails here like a name that does not exist, and raises nothing."""
    assert kind_and_status(await sender.post(url, BODY, HEADERS)) == (FailureKind.RESOLVE, None)


async def test_headers_that_can_not_be_sent(sender: Sender, receiver: Receiver) -> None:
    """A line break in a header reaches nobody, and its value does not reach the message."""
    result = await sender.post(receiver.url, BODY, {**HEADERS, "Authorization": "secret\r\nX-Evil: 1"})
    assert kind_and_status(result) == (FailureKind.BROKEN, None)
    assert isinstance(result, Failure)
    assert "secret" not in result.message
    assert receiver.requests == []


async def test_a_certificate_that_nobody_vouches_for(sender: Sender) -> None:
    """Verification is always on; not even the request's head goes out."""
    with Receiver(tls=True) as receiver:
        assert kind_and_status(await sender.post(receiver.url, BODY, HEADERS)) == (FailureKind.TLS, None)
        assert receiver.requests == []


async def test_a_private_authority(tmp_path: Path) -> None:
    """What it signed is trusted for the names it signed, and for no others."""
    authority = Authority(tmp_path)
    async with Sender(timeout=30, allow_networks=LOOPBACK, ca_file=authority.ca_file) as sender:
        with Receiver(tls=authority.issue()) as receiver:
            assert await sender.post(receiver.url, BODY, HEADERS) == Answer(200)
        with Receiver(tls=authority.issue("other.example")) as receiver:
            assert kind_and_status(await sender.post(receiver.url, BODY, HEADERS)) == (FailureKind.TLS, None)
        with Receiver(tls=self_signed(tmp_path)) as receiver:
            assert kind_and_status(await sender.post(receiver.url, BODY, HEADERS)) == (FailureKind.TLS, None)


@pytest.mark.parametrize("content", [None, "no PEM"])
def test_a_file_of_authorities_that_can_not_be_read(tmp_path: Path, content: str | None) -> None:
    """It stops the start, with one message that names the file."""
    ca_file = tmp_path / "ca.pem"
    if content is not None:
        ca_file.write_text(content)
    with pytest.raises(UsageError, match=r"ca\.pem is no readable file of PEM certificates"):
        Sender(timeout=1, ca_file=ca_file)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"])
async def test_a_forbidden_address_is_not_connected_to(receiver: Receiver, host: str) -> None:
    """Given as it is or found by its name, with nothing allowed."""
    async with Sender(timeout=30) as sender:
        result = await sender.post(receiver.url_for("/?token=secret").replace("127.0.0.1", host), BODY, HEADERS)
    assert kind_and_status(result) == (FailureKind.FORBIDDEN, None)
    assert isinstance(result, Failure)
    assert "loopback" in result.message or "IPv4-mapped" in result.message
    assert "secret" not in result.message
    assert receiver.connections == 0


async def test_a_denied_network_is_not_told_to_the_owner_of_a_name(receiver: Receiver) -> None:
    """Where in the private network a name leads, the failure's message keeps to itself."""
    async with Sender(timeout=30, allow_networks=LOOPBACK, deny_networks=DENIED) as sender:
        result = await sender.post(receiver.url_for("/").replace("127.0.0.1", "localhost"), BODY, HEADERS)
    assert isinstance(result, Failure)
    assert result.message == "the host's address is in a network that is denied"
    assert result.address in {"127.0.0.1", "::1"}


async def test_a_redirect_leads_to_no_forbidden_address(sender: Sender, receiver: Receiver) -> None:
    """An answer opens no door: nothing is sent to where it points."""
    receiver.answer("/", Redirect("http://169.254.169.254/latest/meta-data", 307))
    assert await sender.post(receiver.url_for("/"), BODY, HEADERS) == Answer(307)


async def test_an_allowed_address_among_several_is_tried(sender: Sender, receiver: Receiver) -> None:
    """Where localhost is ::1 as well, that one is refused and the other one is posted to."""
    assert await sender.post(receiver.url_for("/").replace("127.0.0.1", "localhost"), BODY, HEADERS) == Answer(200)
    with Refusing() as url:
        result = await sender.post(url.replace("127.0.0.1", "localhost"), BODY, HEADERS)
    assert kind_and_status(result) == (FailureKind.CONNECT, None)


@pytest.mark.parametrize("on_reuse", [False, True])
async def test_a_kept_connection_that_had_died_is_not_the_subscribers_fault(
    sender: Sender,
    receiver: Receiver,
    on_reuse: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """The post is repeated at once on a new connection, and arrives once."""
    receiver.answer("/", CloseIdleAfter(on_reuse=on_reuse))
    for number in range(1, 6):
        assert await sender.post(receiver.url_for("/"), BODY, {**HEADERS, "webhook-id": str(number)}) == Answer(200)
    assert [request.headers["webhook-id"] for request in receiver.requests] == list("12345")


@pytest.mark.parametrize("behaviour", [Reset(), CloseWithoutAnswer()], ids=label)
async def test_a_reused_connection_is_repeated_once(sender: Sender, receiver: Receiver, behaviour: Behaviour) -> None:
    """When the new connection breaks as well, the try has failed."""
    receiver.answer("/", OK, behaviour)
    assert await sender.post(receiver.url_for("/"), BODY, HEADERS) == Answer(200)
    assert kind_and_status(await sender.post(receiver.url_for("/"), BODY, HEADERS)) == (FailureKind.BROKEN, None)
    assert [request.connection for request in receiver.requests] == [1, 1, 2]


@pytest.mark.parametrize("raw", [b"H", b"HTTP/1.1 200 OK\r\nContent-", b"NONSENSE\r\n\r\n"])
async def test_an_answer_that_had_begun_is_not_repeated(sender: Sender, receiver: Receiver, raw: bytes) -> None:
    """The server was there and got the request: a repeat would be a duplicate."""
    receiver.answer("/", OK, BrokenHttp(raw))
    assert await sender.post(receiver.url_for("/"), BODY, HEADERS) == Answer(200)
    assert kind_and_status(await sender.post(receiver.url_for("/"), BODY, HEADERS)) == (FailureKind.BROKEN, None)
    assert len(receiver.requests) == 2


async def test_the_repeat_has_no_deadline_of_its_own(hurried: Sender, receiver: Receiver) -> None:
    """One deadline covers both."""
    receiver.answer("/", CloseIdleAfter(on_reuse=True), Hang())
    assert await hurried.post(receiver.url_for("/"), BODY, HEADERS) == Answer(200)
    assert kind_and_status(await hurried.post(receiver.url_for("/"), BODY, HEADERS)) == (FailureKind.TIMEOUT, None)
    assert len(receiver.requests) == 2


async def test_an_answer_that_switches_protocols_keeps_no_slot(receiver: Receiver) -> None:
    """We never asked for that; the connection is closed and its place is free."""
    receiver.answer("/", Status(101, headers={"Upgrade": "x", "Connection": "upgrade"}))
    async with Sender(timeout=5, allow_networks=LOOPBACK, connections=1) as sender:
        for _ in range(3):
            assert await sender.post(receiver.url_for("/"), BODY, HEADERS) == Answer(101)


async def test_retry_after_is_told(sender: Sender, receiver: Receiver) -> None:
    """It may come with any status; a time counts from the server's own clock."""
    receiver.answer(
        "/",
        Status(503, headers={"Retry-After": "120"}),
        Status(429, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:30 GMT", "Date": "Wed, 21 Oct 2015 07:28:00 GMT"}),
        Status(429, headers={"Retry-After": "soon"}),
    )
    answers = [await sender.post(receiver.url_for("/"), BODY, HEADERS) for _ in range(3)]
    assert answers == [Answer(503, retry_after=120), Answer(429, retry_after=30), Answer(429)]


@pytest.mark.parametrize(
    ("value", "date", "seconds"),
    [
        ("0", None, 0),
        (" 120 ", None, 120),
        ("000000000000120", None, 120),
        ("Wed, 01 Jan 2025 00:01:00 GMT", None, 60),
        ("Wednesday, 01-Jan-25 00:01:00 GMT", None, 60),
        ("Wed Jan  1 00:01:00 2025", None, 60),
        ("Wed, 01 Jan 2025 00:01:00 GMT", "Wed, 01 Jan 2025 00:00:50 GMT", 10),
        ("Wed, 01 Jan 2025 00:01:00 GMT", "yesterday", 60),
        ("Wed, 01 Jan 2020 00:00:00 GMT", None, 0),
        ("", None, None),
        ("-1", None, None),
        ("1.5", None, None),
        ("9" * 5000, None, None),
        ("0" * 99 + "5", None, 5),
        ("0" * 100 + "5", None, None),
        ("Wed, 01 Jan 2025 00:01:00 GMT", "Wed, 01 Jan 2025 00:00:50 GMT" + " " * 100, 60),
        ("\u0663", None, None),
        ("Wed, 99 Jan 2025 00:01:00 GMT", None, None),
    ],
)
def test_retry_after_in_seconds(value: str, date: str | None, seconds: int | None) -> None:
    """A number of seconds, or a time in any of HTTP's three forms; nonsense is ignored."""
    assert retry_after(value, date, NOW) == seconds


@given(st.text(), st.text())
def test_no_retry_after_raises(value: str, date: str) -> None:
    """The field is the subscriber's to fill."""
    found = retry_after(value, date, NOW)
    assert found is None or found >= 0
