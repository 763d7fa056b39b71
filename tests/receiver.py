"""A real HTTP/1.1 receiver on loopback that records what it gets and misbehaves on demand; for tests only.

It writes to its sockets itself, because no proper server library can be made to send broken HTTP.
"""
# ruff: noqa: D102 - the class of a behaviour says what calling it does

import asyncio
import contextlib
import functools
import http.client
import itertools
import json
import socket
import ssl
import struct
import tempfile
import threading
import time
import urllib.parse
import zlib
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from multidict import CIMultiDict, CIMultiDictProxy

from tests.certificates import Identity, self_signed
from tests.threads import Started, serving

POLL_SECONDS = 0.005
HEAD_LIMIT = 1 << 20  # bytes of a request's head; bodies have no limit
BODILESS = {204, 304}


@dataclass(frozen=True)
class Received:
    """A request as it arrived: `path` with its raw query, `at` on the monotonic clock, `connection` by number."""

    method: str
    path: str
    raw_headers: tuple[tuple[str, str], ...]
    body: bytes
    at: float
    connection: int

    @functools.cached_property
    def headers(self) -> CIMultiDictProxy[str]:
        """The headers, looked up in any case."""
        return CIMultiDictProxy(CIMultiDict(self.raw_headers))

    @functools.cached_property
    def form(self) -> list[tuple[str, str]]:
        """The body's fields in their order; ValueError when it is no proper form."""
        body = self.body.decode("ascii")
        return urllib.parse.parse_qsl(body, keep_blank_values=True, strict_parsing=True, errors="strict")

    @functools.cached_property
    def data(self) -> dict[str, Any]:
        """The record in the field `data`; KeyError when there is no such field."""
        record: dict[str, Any] = json.loads(dict(self.form)["data"])
        return record

    @functools.cached_property
    def keys(self) -> frozenset[str | None]:
        """What it is counted under: its path with and without the query, and None for all requests together."""
        return frozenset((None, self.path, self.path.partition("?")[0]))


@dataclass(frozen=True)
class Exchange:
    """One request and the two ends of its connection: what a behaviour works with."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    request: Received

    async def send(self, raw: bytes) -> None:
        """Send bytes as they are; ConnectionError when the client has gone."""
        self.writer.write(raw)
        await self.writer.drain()

    async def hold(self, until: Awaitable[object]) -> None:
        """Wait; ConnectionError when the client goes in the meantime, so that nothing is held for nobody."""
        waiting = asyncio.ensure_future(until)
        leaving = asyncio.ensure_future(self.reader.read(1))
        try:
            await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if leaving.done():
                raise ConnectionAbortedError
        finally:
            waiting.cancel()
            leaving.cancel()
            await asyncio.gather(waiting, leaving, return_exceptions=True)

    def close(self) -> None:
        """Close the connection in good order, whatever the headers said."""
        self.writer.close()

    def reset(self) -> None:
        """Break the connection with an RST."""
        connection: socket.socket = self.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Behaviour = Callable[[Exchange], Awaitable[None]]
"""What a receiver does with a request. When it returns with the connection open, that is kept alive."""


@dataclass(frozen=True)
class Status:
    """A proper answer, after `delay` seconds."""

    code: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0

    @functools.cached_property
    def head(self) -> bytes:
        """The status line and the headers, with the empty line that ends them."""
        phrase = http.client.responses.get(self.code, "Unnamed")
        headers = {} if self.code in BODILESS else {"Content-Length": str(len(self.body))}
        headers |= self.headers
        lines = [f"HTTP/1.1 {self.code} {phrase}", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    async def __call__(self, exchange: Exchange) -> None:
        if self.delay:
            await exchange.hold(asyncio.sleep(self.delay))
        await exchange.send(self.head + self.body)


OK = Status(200)


@dataclass(frozen=True)
class Redirect:
    """A redirect to `location`."""

    location: str
    code: int = 301

    async def __call__(self, exchange: Exchange) -> None:
        await Status(self.code, headers={"Location": self.location})(exchange)


@dataclass(frozen=True)
class SetCookie:
    """200 with a cookie that must not come back."""

    cookie: str = "session=1; Path=/"

    async def __call__(self, exchange: Exchange) -> None:
        await Status(200, headers={"Set-Cookie": self.cookie})(exchange)


@dataclass(frozen=True)
class Hang:
    """Never answer; it ends when the client goes or the receiver closes."""

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.hold(asyncio.get_running_loop().create_future())


@dataclass(frozen=True)
class HangAfterHeaders:
    """Announce a body of 100 bytes, and never send it."""

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.send(Status(200, b"." * 100).head)
        await Hang()(exchange)


@dataclass(frozen=True)
class DripHeaders:
    """Answer with the head one byte at a time; a client that waits long enough gets all of it."""

    seconds_between: float = 1.0
    answer: Status = OK

    async def __call__(self, exchange: Exchange) -> None:
        await _drip(exchange, self.answer.head, self.seconds_between)
        await exchange.send(self.answer.body)


@dataclass(frozen=True)
class DripBody:
    """Answer with the body one byte at a time; a client that waits long enough gets all of it."""

    seconds_between: float = 1.0
    answer: Status = field(default_factory=lambda: Status(200, b"." * 1000))

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.send(self.answer.head)
        await _drip(exchange, self.answer.body, self.seconds_between)


@dataclass(frozen=True)
class EndlessBody:
    """200 and a body without end, as fast as the socket takes it: chunked, or without any length."""

    chunked: bool = True

    async def __call__(self, exchange: Exchange) -> None:
        block = b"." * 0x10000
        framing = "Transfer-Encoding: chunked" if self.chunked else "Connection: close"
        await exchange.send(f"HTTP/1.1 200 OK\r\n{framing}\r\n\r\n".encode())
        while True:
            await exchange.send(b"10000\r\n" + block + b"\r\n" if self.chunked else block)
            # A socket that takes everything at once never suspends drain(), and the loop has others to serve.
            await asyncio.sleep(0)


@dataclass(frozen=True)
class GzipBomb:
    """200 and a gzipped body that is a thousandth of its `size` in bytes on the wire."""

    size: int = 100_000_000

    def __post_init__(self) -> None:
        _zeros_gzipped(self.size)  # here, because the loop must not wait for it

    async def __call__(self, exchange: Exchange) -> None:
        await Status(200, _zeros_gzipped(self.size), {"Content-Encoding": "gzip"})(exchange)


@dataclass(frozen=True)
class BrokenHttp:
    """Send `raw` as it is, then close."""

    raw: bytes = b"NONSENSE\r\n\r\n"

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.send(self.raw)
        exchange.close()


@dataclass(frozen=True)
class HugeHeaders:
    """200 with at least `size` bytes of headers, `per_line` to a header."""

    size: int
    per_line: int = 1000

    async def __call__(self, exchange: Exchange) -> None:
        lines = range(-(-self.size // self.per_line))
        await Status(200, headers={f"X-Padding-{n}": "." * self.per_line for n in lines})(exchange)


@dataclass(frozen=True)
class Reset:
    """Break the connection with an RST instead of an answer."""

    async def __call__(self, exchange: Exchange) -> None:
        exchange.reset()


@dataclass(frozen=True)
class CloseWithoutAnswer:
    """Close the connection instead of an answer."""

    async def __call__(self, exchange: Exchange) -> None:
        exchange.close()


@dataclass(frozen=True)
class CloseIdleAfter:
    """Answer as if the connection were kept alive, and close it: the stale kept-alive connection.

    At once, which a client may notice in time; or, `on_reuse`, when the next request begins to arrive, which none
    can. That request is not recorded.
    """

    answer: Status = OK
    on_reuse: bool = False

    async def __call__(self, exchange: Exchange) -> None:
        await self.answer(exchange)
        if not self.on_reuse:
            exchange.close()


class Gate:
    """Hold requests until the test opens it, then answer; later ones go straight through."""

    def __init__(self, answer: Status = OK) -> None:
        self._answer = answer
        self._lock = threading.Lock()
        self._opened = False
        self._held: set[asyncio.Future[None]] = set()

    @property
    def waiting(self) -> int:
        """How many requests it holds. It lags the record of a request by a moment: poll it."""
        with self._lock:
            return len(self._held)

    def open(self) -> None:
        """Let all through, from any thread."""
        with self._lock:
            self._opened = True
            for turn in self._held:
                turn.get_loop().call_soon_threadsafe(_let_through, turn)

    async def __call__(self, exchange: Exchange) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with self._lock:
            if self._opened:
                turn.set_result(None)
            self._held.add(turn)
        try:
            await exchange.hold(turn)
        finally:
            with self._lock:
                self._held.remove(turn)
        await self._answer(exchange)


def _let_through(turn: asyncio.Future[None]) -> None:
    if not turn.done():  # its client may have gone meanwhile
        turn.set_result(None)


async def _drip(exchange: Exchange, raw: bytes, seconds_between: float) -> None:
    for n in range(len(raw)):
        await exchange.send(raw[n : n + 1])
        await exchange.hold(asyncio.sleep(seconds_between))


@functools.cache
def _zeros_gzipped(size: int) -> bytes:
    gzip = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    block = bytes(1_000_000)
    blocks = [gzip.compress(block[: size - start]) for start in range(0, size, len(block))]
    return b"".join([*blocks, gzip.flush()])


class Receiver:
    """The server, in a thread with a loop of its own while its context is open; its methods are for any thread.

    `tls=True` shows a self-signed certificate, which `ca_file` verifies; paths without a script get `default`. In the
    methods, a path given without a query stands for the path with any. `prepare` changes what its TLS does.
    """

    def __init__(
        self,
        *,
        tls: bool | Identity = False,
        default: Behaviour = OK,
        prepare: Callable[[ssl.SSLContext], None] = lambda _: None,
    ) -> None:
        self._tls = tls
        self._prepare = prepare
        self._default = default
        self._context: ssl.SSLContext | None = None
        self._lock = threading.Lock()
        self._scripts: dict[str, deque[Behaviour]] = {}
        self._requests: list[Received] = []
        self._connections = 0
        self._numbers = itertools.count(1)
        self._arrived: Counter[str | None] = Counter()
        self._held: Counter[str | None] = Counter()
        self._most_held: Counter[str | None] = Counter()
        self._unserved: set[socket.socket] = set()
        self.url = ""
        self.ca_file: Path | None = None

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            identity = self._tls
            if identity is True:
                identity = self_signed(Path(stack.enter_context(tempfile.TemporaryDirectory())))
            if identity:
                self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                self._context.load_cert_chain(identity.certificate, identity.key)
                self._prepare(self._context)
                self.ca_file = identity.ca_file
            # Listening begins here, and whoever connects before the loop turns waits in the backlog.
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1024))
            listener.setblocking(False)
            self.url = f"{'https' if identity else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
            stack.enter_context(serving("receiver", lambda started: self._serve(listener, started)))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def url_for(self, path: str) -> str:
        """Return the URL of a path with its query."""
        return self.url + path

    def answer(self, path: str, *behaviours: Behaviour) -> None:
        """Use these one after another for requests to `path`, and the last one for all after it."""
        with self._lock:
            self._scripts[path] = deque(behaviours)

    @property
    def requests(self) -> list[Received]:
        """What has arrived so far; a request is recorded before anything is done with it."""
        with self._lock:
            return self._requests.copy()

    @property
    def connections(self) -> int:
        """How many TCP connections were accepted, those included whose TLS handshake failed."""
        with self._lock:
            return self._connections

    @property
    def in_flight(self) -> int:
        """How many requests are being held now; it falls a moment after the answer has gone out."""
        with self._lock:
            return self._held[None]

    @property
    def max_in_flight(self) -> int:
        """The most requests that were held at a time."""
        return self.max_in_flight_at(None)

    def max_in_flight_at(self, path: str | None) -> int:
        """Return the most requests to one path that were held at a time."""
        with self._lock:
            return self._most_held[path]

    def clear(self) -> None:
        """Forget what was recorded; scripts stay, and so do the connections' numbers."""
        with self._lock:
            self._requests.clear()
            self._arrived.clear()
            self._connections = 0
            self._most_held = self._held.copy()

    def wait_for(self, n: int, timeout: float = 30.0, path: str | None = None) -> list[Received]:
        """Wait until at least `n` requests have arrived (at `path`); AssertionError names those that did."""
        for _ in self._polls(n, timeout, path):
            time.sleep(POLL_SECONDS)
        return self._at(path)

    async def wait_for_async(self, n: int, timeout: float = 30.0, path: str | None = None) -> list[Received]:  # noqa: ASYNC109 - as wait_for has it
        """Do as `wait_for` does, without stopping the loop on which a daemon may run."""
        for _ in self._polls(n, timeout, path):
            await asyncio.sleep(POLL_SECONDS)
        return self._at(path)

    def _at(self, path: str | None) -> list[Received]:
        return [request for request in self.requests if path in request.keys]

    def _polls(self, n: int, timeout: float, path: str | None) -> Iterator[None]:
        deadline = time.monotonic() + timeout
        while True:
            with self._lock:
                found = self._arrived[path]
            if found >= n:
                return
            if time.monotonic() > deadline:
                arrived = Counter(f"{request.method} {request.path}" for request in self.requests)
                raise AssertionError(
                    f"{found} of {n} requests at {path or 'any path'} within {timeout} s; "
                    f"arrived: {dict(arrived)} over {self.connections} connections"
                )
            yield

    async def _serve(self, listener: socket.socket, started: Started) -> None:
        loop, stopped = asyncio.get_running_loop(), asyncio.Event()
        connections: set[asyncio.Task[None]] = set()

        def stop() -> None:
            with contextlib.suppress(RuntimeError):  # a fault has ended the loop already
                loop.call_soon_threadsafe(stopped.set)

        try:
            async with asyncio.TaskGroup() as group:
                loop.add_reader(listener, self._accept, listener, group, connections)
                started.set_result(stop)
                try:
                    await stopped.wait()
                finally:
                    loop.remove_reader(listener)
                for connection in connections:
                    connection.cancel()
        finally:
            # A task that is cancelled before its first step leaves its socket to us.
            for client in self._unserved:
                client.close()

    def _accept(self, listener: socket.socket, group: asyncio.TaskGroup, connections: set[asyncio.Task[None]]) -> None:
        # Not asyncio.start_server: that never tells of a connection whose TLS handshake fails.
        with contextlib.suppress(BlockingIOError):
            while True:
                client, _ = listener.accept()
                client.setblocking(False)
                self._unserved.add(client)
                with self._lock:
                    self._connections += 1
                task = group.create_task(self._converse(client, next(self._numbers)))
                connections.add(task)
                task.add_done_callback(connections.discard)

    async def _converse(self, client: socket.socket, number: int) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=HEAD_LIMIT)
        protocol = asyncio.StreamReaderProtocol(reader)
        self._unserved.remove(client)  # from here on it is the transport's
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):  # the client went, or shook no hands
            transport, _ = await loop.connect_accepted_socket(lambda: protocol, client, ssl=self._context)
            writer = asyncio.StreamWriter(transport, protocol, reader, loop)
            try:
                while not writer.is_closing():
                    await self._exchange(reader, writer, number)
                await writer.wait_closed()
            finally:
                transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        request = await _read(reader, number)
        behaviour = self._record(request)
        try:
            await behaviour(Exchange(reader, writer, request))
        finally:
            with self._lock:
                for key in request.keys:
                    self._held[key] -= 1
        if isinstance(behaviour, CloseIdleAfter) and behaviour.on_reuse:
            await reader.read(1)
            writer.close()
        elif ("connection", "close") in ((name.lower(), value.lower()) for name, value in request.raw_headers):
            writer.close()

    def _record(self, request: Received) -> Behaviour:
        with self._lock:
            self._requests.append(request)
            for key in request.keys:
                self._arrived[key] += 1
                self._held[key] += 1
                self._most_held[key] = max(self._most_held[key], self._held[key])
            script = self._scripts.get(request.path) or self._scripts.get(request.path.partition("?")[0])
            if not script:
                return self._default
            return script.popleft() if len(script) > 1 else script[0]


class Refusing:
    """The URL of a loopback port that refuses every connection, and that nobody else can take meanwhile."""

    def __enter__(self) -> str:
        self._bound = socket.socket()
        self._bound.bind(("127.0.0.1", 0))  # bound, and never listening
        return f"http://127.0.0.1:{self._bound.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self._bound.close()


async def _read(reader: asyncio.StreamReader, connection: int) -> Received:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head[:-4].decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ")
    fields = (line.partition(":") for line in lines)
    headers = tuple((name, value.strip()) for name, _, value in fields)
    length = next((int(value) for name, value in headers if name.lower() == "content-length"), 0)
    body = await reader.readexactly(length)
    return Received(method, path, headers, body, time.monotonic(), connection)
