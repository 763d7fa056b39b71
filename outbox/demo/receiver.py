"""The demo's subscriber: an HTTP server on loopback that acknowledges each POST, or fails as often as it was told."""

import asyncio
import socket
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from aiohttp import web


@dataclass(frozen=True, slots=True)
class Received:
    """One POST as it arrived, and the status that it was answered with."""

    path: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    status: int
    at: float
    """Seconds since 1970, on this machine's clock."""


class Receiver:
    """A subscriber on a port of its own; an async context manager.

    It holds its port before it listens and answers there from `listen` on, so that it can be down first, and nobody
    else takes its place.
    """

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._runner: web.AppRunner | None = None
        self._queues: dict[str, asyncio.Queue[Received]] = defaultdict(asyncio.Queue)
        self._failures: Counter[str] = Counter()
        self.count = 0
        """POSTs that arrived so far."""

    @property
    def url(self) -> str:
        """The URL without a path."""
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    async def listen(self) -> None:
        """Begin to answer."""
        app = web.Application()
        app.router.add_post("/{name}", self._receive)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.SockSite(self._runner, self._socket).start()

    def fail(self, path: str, times: int) -> None:
        """Answer the next POSTs to the path with status 500."""
        self._failures[path] = times

    async def next(self, path: str, within: float) -> Received:
        """Return the next POST to the path, oldest first; TimeoutError after so many seconds."""
        async with asyncio.timeout(within):
            return await self._queues[path].get()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
        self._socket.close()

    async def _receive(self, request: web.Request) -> web.Response:
        body = await request.read()
        fails = self._failures[request.path] > 0
        self._failures[request.path] -= fails
        status = 500 if fails else 200
        self.count += 1
        self._queues[request.path].put_nowait(Received(request.path, request.headers, body, status, time.time()))
        return web.Response(status=status, text="out of order" if fails else "thank you")
