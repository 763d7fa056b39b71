"""A real forward proxy on loopback that understands CONNECT, and fails on demand; for tests only."""

import asyncio
import base64
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Self

from tests.threads import Started, serving

Answering = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""What a proxy does in place of a tunnel, once it has read the request; then it closes the connection."""


class ForwardProxy:
    """The proxy, in a thread with a loop of its own while its context is open.

    `credentials`: "user:password" that it asks for. `answering`: what it does instead of its work. `heads`: the
    requests that came, each as its first line and its fields by lower-case name.
    """

    def __init__(self, *, credentials: str | None = None, answering: Answering | None = None, port: int = 0) -> None:
        self._wanted = None if credentials is None else "Basic " + base64.b64encode(credentials.encode()).decode()
        self._answering = answering
        self._port = port
        self._lock = threading.Lock()
        self._heads: list[tuple[str, dict[str, str]]] = []
        self.port = 0

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", self._port)))
            self.port = listener.getsockname()[1]
            stack.enter_context(serving("proxy", lambda started: self._serve(listener, started)))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        """What OUTBOX_PROXY says, without credentials."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def heads(self) -> list[tuple[str, dict[str, str]]]:
        """What has come so far."""
        with self._lock:
            return self._heads.copy()

    async def _serve(self, listener: socket.socket, started: Started) -> None:
        loop, stopped = asyncio.get_running_loop(), asyncio.Event()
        conversations: set[asyncio.Task[None]] = set()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            conversations.add(task)
            try:
                with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                    await self._converse(reader, writer)
            finally:
                conversations.discard(task)
                writer.close()

        server = await asyncio.start_server(accept, sock=listener)

        def stop() -> None:
            loop.call_soon_threadsafe(stopped.set)

        started.set_result(stop)
        await stopped.wait()
        server.close()
        for conversation in list(conversations):
            conversation.cancel()
        await asyncio.gather(*conversations, return_exceptions=True)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n"))[:-4].decode("latin-1")
        first, *lines = head.split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        with self._lock:
            self._heads.append((first, fields))
        if self._answering is not None:
            await self._answering(reader, writer)
        elif self._wanted is not None and fields.get("proxy-authorization") != self._wanted:
            writer.write(b'HTTP/1.1 407 Sign In\r\nProxy-Authenticate: Basic realm="x"\r\nContent-Length: 2\r\n\r\nno')
            await writer.drain()
        else:
            async with _connected(first, writer) as upstream:
                if upstream is not None:
                    await _join(reader, writer, *upstream)


@contextlib.asynccontextmanager
async def _connected(
    first: str, writer: asyncio.StreamWriter
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter] | None]:
    host, _, port = first.split(" ")[1].rpartition(":")
    try:
        upstream = await asyncio.open_connection(host.strip("[]"), int(port))
    except OSError:
        writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        yield None
        return
    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
    try:
        yield upstream
    finally:
        upstream[1].close()


async def _join(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    upstream_reader: asyncio.StreamReader,
    upstream_writer: asyncio.StreamWriter,
) -> None:
    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while block := await source.read(1 << 16):
            sink.write(block)
            await sink.drain()
        sink.close()

    await asyncio.gather(pump(reader, upstream_writer), pump(upstream_reader, writer))


def saying(raw: bytes) -> Answering:
    """Send these bytes."""

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        await writer.drain()

    return answer


def status(code: int) -> Answering:
    """Answer with a status."""
    return saying(b"HTTP/1.1 %d Words\r\nContent-Length: 5\r\n\r\nwords" % code)


async def hang(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Say nothing until the client goes."""
    await reader.read()


class Deaf:
    """The address of a loopback port whose queue of connections is full: a connect hangs."""

    def __enter__(self) -> int:
        self._stack = contextlib.ExitStack()
        listener = self._stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        port: int = listener.getsockname()[1]
        for _ in range(8):
            waiting = self._stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        return port

    def __exit__(self, *_: object) -> None:
        self._stack.close()
