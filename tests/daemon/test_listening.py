"""Who connects to the listener and means ill: he holds up nobody else, and costs what is said and no more."""

import asyncio
import contextlib
import gzip
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from outbox.daemon import listening
from outbox.demo.supervisor import free_port

ALIVE = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
LARGE = b"GET /large HTTP/1.1\r\nHost: h\r\n\r\n"


async def _read(request: web.Request) -> web.Response:
    return web.Response(body=await request.read())


async def _large(_request: web.Request) -> web.Response:
    return web.Response(body=b"x" * 20_000_000)


class Listener:
    """A listener of a small application, and the connections of those who mean ill."""

    def __init__(self, runner: web.AppRunner, port: int) -> None:
        self.runner = runner
        self._port = port
        self._opened: list[asyncio.StreamWriter] = []

    async def connect(self, data: bytes) -> asyncio.StreamReader:
        """Open a connection and write this on it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1024)
        self._opened.append(writer)
        writer.write(data)
        return reader

    def hang_up(self) -> None:
        """Close them all."""
        for each in self._opened:
            each.transport.abort()


@contextlib.asynccontextmanager
async def listener(*, most: int = 100, idle: float = 60.0, farewell: float = 0.1) -> AsyncIterator[Listener]:
    app = web.Application()
    app.router.add_get("/", _read)
    app.router.add_post("/", _read)
    app.router.add_get("/large", _large)
    port = free_port()
    opened = Listener(
        await listening.serve(app, ("127.0.0.1", port), most=most, idle=idle, farewell=farewell), port
    )  # fmt: skip
    try:
        yield opened
    finally:
        opened.hang_up()
        await opened.runner.cleanup()


async def ended(reader: asyncio.StreamReader) -> bytes:
    """Wait for the connection's end; return what came before it."""
    read = b""
    async with asyncio.timeout(30):
        with contextlib.suppress(ConnectionError):
            while part := await reader.read(100_000):
                read += part
    return read


@pytest.mark.parametrize("begun", [b"", b"GET / HT", ALIVE[:-2], ALIVE + ALIVE[:-2]], ids=repr)
async def test_half_a_head_is_not_waited_for(begun: bytes) -> None:
    """Nothing, a part of a head, a part of a second one: the connection ends when it has been idle for long."""
    async with listener(idle=0.1) as opened:
        read = await ended(await opened.connect(begun))
        assert read.count(b"HTTP/1.1 200 OK") == begun.count(ALIVE)


@pytest.mark.parametrize("begun", [b"", ALIVE[:-2], LARGE], ids=repr)
async def test_who_holds_many_connections_keeps_nobody_out(begun: bytes) -> None:
    """Beyond the limit the oldest end, also those that wait for an answer to be read; the newest is answered."""
    async with listener(most=5) as opened:
        held = [await opened.connect(begun) for _ in range(12)]
        for _ in range(3):
            answer = await opened.connect(ALIVE)
            async with asyncio.timeout(30):
                assert (await answer.readline()).startswith(b"HTTP/1.1 200 ")
        assert opened.runner.server is not None
        assert len(opened.runner.server.connections) <= 5
        for each in held[:-2]:
            await ended(each)


async def test_an_answer_that_nobody_reads_does_not_hold_up_the_end() -> None:
    """The process stops although a client keeps an answer in the way."""
    async with listener() as opened:
        reader = await opened.connect(LARGE)
        async with asyncio.timeout(30):
            await reader.readline()
            await opened.runner.cleanup()


async def test_nothing_is_unpacked() -> None:
    """A body is what came: nobody makes us work off a thousand times what he sent."""
    packed = gzip.compress(b"x" * 10_000, mtime=0)
    async with listener() as opened:
        head = (
            b"POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"
        )
        read = await ended(await opened.connect(head % len(packed) + packed))
        assert read.endswith(b"\r\n\r\n" + packed)
