"""Whatever bytes come back: an Answer or a Failure, within the deadline, with bounded memory, and none of its words."""
# ruff: noqa: D102 - the class of a behaviour says what calling it does

import asyncio
import ipaddress
import sys
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from types import FrameType

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from outbox.core.model import Answer, Failure, FailureKind
from outbox.http import connection
from outbox.http.connection import KEPT_ANSWER, MAX_ANSWER, MAX_FIELDS, MAX_HEAD, MAX_PIECES, MAX_WIRE
from outbox.http.sender import Sender
from tests.receiver import BrokenHttp, Exchange, Receiver, Status

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)
BODY = b"type=CREATE"
SECRET = b"xyzzy"  # what no message may repeat
OURS = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver that answers 200."""
    with Receiver() as running:
        yield running


@pytest.fixture
async def sender() -> AsyncIterator[Sender]:
    """A sender with a deadline that is never met."""
    async with Sender(timeout=30, allow_networks=LOOPBACK) as opened:
        yield opened


WHOLE = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nxyzzy",
    b"HTTP/1.1 200 xyzzy\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n5;a=b\r\nxyzzy\r\n0\r\nX: xyzzy\r\n\r\n",
    b"HTTP/1.0 404 xyzzy\r\nX-A: xyzzy\r\n\r\nxyzzy until the end",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\nHTTP/1.1 503 No\r\nRetry-After: 9\r\n\r\n",
    b"HTTP/1.1 204 None\r\nSet-Cookie: xyzzy=1\r\nConnection: keep-alive\r\n\r\n",
    b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nxyzzy",
    b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\n\x1f\x8b\x08",
]  # fmt: skip
PIECES = st.one_of(
    st.binary(max_size=6),
    st.sampled_from(
        [
            *(b"\r\n", b"\r", b"\n", b"\0", b":", b" ", b"\x1b[2J", b"\xff", b"HTTP/1.1 200 OK\r\n", b"0\r\n\r\n"),
            *(b"Content-Length: 0\r\n", b"Content-Length: 99999999999999999999\r\n", b"Content-Length: -1\r\n"),
            *(b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: identity\r\n", b"ffffffffffffffff\r\n"),
            b"PRI * HTTP/2.0\r\n",
        ]
    ),
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Return a proper answer with pieces cut out, doubled and put in."""
    raw = draw(st.sampled_from(WHOLE))
    for _ in range(draw(st.integers(0, 4))):
        at, length = draw(st.integers(0, len(raw))), draw(st.integers(0, 12))
        raw = raw[:at] + draw(PIECES) + raw[at + length if draw(st.booleans()) else at :]
    return raw


def check(result: Answer | Failure) -> None:
    if isinstance(result, Answer):
        assert 101 <= result.status <= 999
        assert len(result.body) <= KEPT_ANSWER
        assert result.retry_after is None or result.retry_after >= 0
        return
    assert result.kind in (FailureKind.BROKEN, FailureKind.OVERSIZED, FailureKind.TIMEOUT)
    assert result.message.isprintable()
    assert SECRET.decode() not in result.message


@OURS
@given(mutated())
@example(b"")
@example(b"HTTP/1.1 200 OK\r\n\r\n" * 3)
@example(b"HTTP/1.1 999 x\r\nContent-Length: 0\r\n\r\n")
async def test_no_bytes_raise_or_hang(sender: Sender, receiver: Receiver, raw: bytes) -> None:
    """Sent at once, and the connection closed."""
    receiver.answer("/", BrokenHttp(raw))
    async with asyncio.timeout(60):
        check(await sender.post(receiver.url_for("/"), BODY, {}))


@dataclass(frozen=True)
class InPieces:
    """Send these one after another, and keep the connection as it is, or hang."""

    pieces: tuple[bytes, ...]

    async def __call__(self, exchange: Exchange) -> None:
        for piece in self.pieces:
            await exchange.send(piece)
            await asyncio.sleep(0)
        await exchange.hold(asyncio.get_running_loop().create_future())


@settings(OURS, max_examples=60)
@given(mutated(), st.lists(st.integers(0, 200), max_size=4))
async def test_the_deadline_holds_for_any_bytes(receiver: Receiver, raw: bytes, cuts: list[int]) -> None:
    """Sent in pieces and never ended: what is no whole answer times out, and no later than the deadline says."""
    ends = [*sorted(cuts), len(raw)]
    pieces = tuple(raw[start:end] for start, end in zip([0, *ends], ends, strict=False))
    receiver.answer("/", InPieces(pieces))
    async with Sender(timeout=0.1, allow_networks=LOOPBACK) as hurried, asyncio.timeout(60):
        check(await hurried.post(receiver.url_for("/"), BODY, {}))


@settings(OURS, max_examples=100)
@given(mutated())
async def test_no_answer_spoils_the_next_one(sender: Sender, receiver: Receiver, raw: bytes) -> None:
    """Bytes behind an answer are not taken for the answer to the next request, whoever that is for."""
    receiver.answer("/", KeptOpen(raw))
    receiver.answer("/next", Status(418, b"teapot"))
    async with Sender(timeout=0.2, allow_networks=LOOPBACK) as hurried:
        first = await hurried.post(receiver.url_for("/"), BODY, {})
        check(first)
    async with asyncio.timeout(60):
        await sender.post(receiver.url_for("/warm"), BODY, {})
        assert await sender.post(receiver.url_for("/next"), BODY, {}) == Answer(418, b"teapot")


@dataclass(frozen=True)
class KeptOpen:
    """Send these bytes, and wait for another request."""

    raw: bytes

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.send(self.raw)


@dataclass(frozen=True)
class Endless:
    """Send a beginning, and then the same bytes for ever."""

    beginning: bytes
    again: bytes

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.send(self.beginning)
        block = self.again * max(1, (1 << 16) // len(self.again))
        while True:
            await exchange.send(block)
            await asyncio.sleep(0)


HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "behaviour",
    [
        Endless(b"", b"\r\n"),
        Endless(b"HTTP/1.1 200 ", b"x"),
        Endless(HEAD + b"X: ", b"x"),
        Endless(HEAD, b"x"),
        Endless(HEAD, b"x: y\r\n"),
        Endless(HEAD + b"X: y\r\n", b" folded\r\n"),
        Endless(HEAD, b"Content-Length: 1\r\n"),
        Endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        Endless(b"", b"HTTP/1.1 103 Hints\r\nLink: x\r\n\r\n"),
        Endless(CHUNKED, b"1\r\nx\r\n"),
        Endless(CHUNKED, b"10000\r\n" + b"x" * 0x10000 + b"\r\n"),
        Endless(CHUNKED + b"1;", b"x"),
        Endless(CHUNKED + b"0", b"0"),
        Endless(CHUNKED + b"0\r\n", b"x: y\r\n"),
        Endless(CHUNKED + b"0\r\nX: ", b"x"),
        Endless(HEAD + b"Content-Length: 9223372036854775807\r\n\r\n", b"x"),
        Endless(HEAD + b"Content-Encoding: gzip\r\n\r\n", b"\x1f\x8b\x08"),
        Endless(HEAD + b"Connection: close\r\n\r\n", b"x"),
    ],
    ids=lambda each: f"{each.beginning[-12:]!r} {each.again[:12]!r}",
)
async def test_no_endless_answer_fills_the_memory(sender: Sender, receiver: Receiver, behaviour: Endless) -> None:
    """Each is given up when it is too long, in any part of it; what was read of it is small, and is let go."""
    receiver.answer("/", behaviour)
    await sender.post(receiver.url_for("/warm"), BODY, {})
    tracemalloc.start()
    try:
        async with asyncio.timeout(60):
            result = await sender.post(receiver.url_for("/"), BODY, {})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(result, Failure)
    assert result.kind in (FailureKind.OVERSIZED, FailureKind.BROKEN)
    # The server's own blocks are in it as well.
    assert peak < 4 * MAX_WIRE


@pytest.mark.parametrize(
    ("raw", "callback", "calls"),
    [
        (HEAD + b"a:b\r\n" * 40_000, "on_header", MAX_FIELDS + 1),
        (b"HTTP/1.1 100 C\r\na:b\r\n\r\n" * 10_000, "on_header", MAX_FIELDS + 1),
        (CHUNKED + b"0\r\n" + b"a:b\r\n" * 40_000, "on_header", MAX_FIELDS + 1),
        ((HEAD + b"Content-Length: 0\r\n\r\n") * 5000, "on_message_begin", 2),
        (CHUNKED + b"1\r\nx\r\n" * 40_000, "on_body", MAX_PIECES + 1),
        (CHUNKED + b"%x\r\n" % MAX_ANSWER + b"x" * MAX_ANSWER + b"\r\n" + b"1\r\nx\r\n" * 9000, "on_body", None),
    ],
    ids=["fields", "interim answers", "trailers", "answers", "chunks", "a body and chunks"],
)
async def test_what_is_too_much_is_not_read_to_its_end(
    sender: Sender, receiver: Receiver, raw: bytes, callback: str, calls: int | None
) -> None:
    """The parser stops where it is noticed, and not at the end of what has come: the loop has others to serve."""
    receiver.answer("/", BrokenHttp(raw))
    heard: Counter[str] = Counter()

    def hear(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename == connection.__file__:
            heard[frame.f_code.co_name] += 1

    sys.setprofile(hear)
    try:
        await sender.post(receiver.url_for("/"), BODY, {})
    finally:
        sys.setprofile(None)
    # A body comes in blocks, each of which is a call.
    assert heard[callback] == calls if calls else heard[callback] <= heard["data_received"] + 1


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (HEAD + b"X: y\r\n" * (MAX_FIELDS - 1) + b"Content-Length: 0\r\n\r\n", Answer(200)),
        (HEAD + b"X: y\r\n" * MAX_FIELDS + b"Content-Length: 0\r\n\r\n", "fields"),
        (HEAD + b"X: " + b"y" * (MAX_HEAD - 100) + b"\r\nContent-Length: 0\r\n\r\n", Answer(200)),
        (HEAD + b"X: " + b"y" * (MAX_HEAD + 1) + b"\r\nContent-Length: 0\r\n\r\n", "head"),
        (HEAD + (b"X: " + b"y" * 1000 + b"\r\n") * 80 + b"Content-Length: 0\r\n\r\n", "head"),
        (HEAD + b"Content-Length: %d\r\n\r\n" % MAX_ANSWER + b"y" * MAX_ANSWER, Answer(200, b"y" * KEPT_ANSWER)),
        (HEAD + b"Content-Length: %d\r\n\r\n" % (MAX_ANSWER + 1) + b"y" * (MAX_ANSWER + 1), "body"),
        (CHUNKED + b"1\r\ny\r\n" * MAX_PIECES + b"0\r\n\r\n", Answer(200, b"y" * KEPT_ANSWER)),
        (CHUNKED + b"1\r\ny\r\n" * (MAX_PIECES + 1) + b"0\r\n\r\n", "pieces"),
        (CHUNKED + (b"1;" + b"a" * 1000 + b"\r\ny\r\n") * 1200 + b"0\r\n\r\n", "answer"),
        (CHUNKED + b"0\r\n" + b"X: y\r\n" * MAX_FIELDS + b"\r\n", "fields"),
        (CHUNKED + b"0\r\nRetry-After: 5\r\n\r\n", Answer(200)),
    ],
    ids=lambda each: repr(each)[:30],
)
async def test_the_bounds_are_where_they_are_said_to_be(
    sender: Sender, receiver: Receiver, raw: bytes, expected: Answer | str
) -> None:
    """Up to the bound it is an answer; beyond it, the message names what was too much. A trailer means nothing."""
    receiver.answer("/", BrokenHttp(raw))
    result = await sender.post(receiver.url_for("/"), BODY, {})
    if isinstance(expected, Answer):
        assert result == expected
    else:
        assert isinstance(result, Failure)
        assert result.kind is FailureKind.OVERSIZED
        assert expected in result.message
