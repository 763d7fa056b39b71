"""A TCP proxy before PostgreSQL, as a sidecar or a load balancer is one; for tests only."""

import asyncio
import contextlib
from typing import Self

from psycopg.conninfo import conninfo_to_dict, make_conninfo


class DatabaseProxy:
    """The proxy, in the test's loop while its context is open. `dsn` leads through it to what `dsn` led to."""

    def __init__(self, dsn: str) -> None:
        parts = conninfo_to_dict(dsn)
        self._host, self._port = str(parts.get("host", "localhost")), int(str(parts.get("port", 5432)))
        self._to = dsn
        self._conversations: set[asyncio.Task[None]] = set()
        self._muted: set[asyncio.Task[None]] = set()
        self.dsn = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.dsn = make_conninfo(self._to, host="127.0.0.1", port=self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for each in self._conversations:
            each.cancel()
        await asyncio.gather(*self._conversations, return_exceptions=True)

    def mute(self) -> int:
        """Let the server's answers on the links that are open arrive nowhere, for ever; return how many links."""
        self._muted = set(self._conversations)
        return len(self._muted)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._conversations.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await self._converse(task, reader, writer)
        finally:
            self._conversations.discard(task)
            writer.close()

    async def _converse(
        self, task: asyncio.Task[None], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if self._host.startswith("/"):
            upstream = await asyncio.open_unix_connection(f"{self._host}/.s.PGSQL.{self._port}")
        else:
            upstream = await asyncio.open_connection(self._host, self._port)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, answers: bool) -> None:
            while block := await source.read(1 << 16):
                if not (answers and task in self._muted):
                    sink.write(block)
                    await sink.drain()
            sink.close()

        try:
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(pump(reader, upstream[1], answers=False))
                pumps.create_task(pump(upstream[0], writer, answers=True))
        except* OSError:
            pass
        finally:
            upstream[1].close()
