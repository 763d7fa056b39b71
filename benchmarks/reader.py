"""A client that asks for one address at a steady rate over kept-alive connections, as cheaply as Python can.

Run as a process of its own: `python -m benchmarks.reader HOST PORT PATH RATE` with the headers `user-id` and
`user-api-key` in READER_ID and READER_KEY. Each line of stdin is answered with how many answers came since the last
one, how many of them were 200, and their median and p99 in ms.
"""

import asyncio
import json
import os
import statistics
import sys
import time
from typing import Any

import uvloop

CONNECTIONS = 16


class Reader(asyncio.Protocol):
    """One connection: one request at a time."""

    def __init__(self, request: bytes, idle: "asyncio.Queue[Reader]") -> None:
        self._request = request
        self._idle = idle
        self._buffer = b""
        self._due = 0.0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: Any) -> None:  # noqa: ANN401, D102 - asyncio's, and uvloop's own class
        self._transport = transport
        self._idle.put_nowait(self)

    def ask(self, due: float) -> None:
        """Send the request; `due`: when it should have gone, which is what its time counts from."""
        self._due = due
        assert self._transport is not None  # noqa: S101 - for the type checker
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:  # noqa: D102 - asyncio's
        self._buffer += data
        head, end, body = self._buffer.partition(b"\r\n\r\n")
        if not end or len(body) < int(head.lower().split(b"content-length: ", 1)[1].split(b"\r\n", 1)[0]):
            return
        self._buffer = b""
        Answers.times.append(time.monotonic() - self._due)
        Answers.good += b" 200 " in head[:16]
        self._idle.put_nowait(self)


class Answers:
    """What came since it was last told."""

    times: list[float] = []  # noqa: RUF012 - the process has one
    good = 0

    @classmethod
    def tell(cls) -> None:
        """Print it and begin anew."""
        times, good, cls.times, cls.good = sorted(cls.times), cls.good, [], 0
        middle, late = (statistics.median(times), times[int(len(times) * 0.99)]) if times else (0.0, 0.0)
        print(json.dumps([len(times), good, middle * 1000, late * 1000]), flush=True)


async def _ask_on_and_on(host: str, port: int, request: bytes, rate: float) -> None:
    loop = asyncio.get_running_loop()
    idle: asyncio.Queue[Reader] = asyncio.Queue()
    for _ in range(CONNECTIONS):
        await loop.create_connection(lambda: Reader(request, idle), host, port)
    began, asked = time.monotonic(), 0
    while True:
        while asked < (time.monotonic() - began) * rate:
            due = began + asked / rate
            asked += 1
            (await idle.get()).ask(due)
        await asyncio.sleep(0.002)


async def _main(host: str, port: int, path: str, rate: float) -> None:
    request = (
        f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nuser-id: {os.environ['READER_ID']}\r\n"
        f"user-api-key: {os.environ['READER_KEY']}\r\n\r\n"
    ).encode()
    loop = asyncio.get_running_loop()
    asking = loop.create_task(_ask_on_and_on(host, port, request, rate))
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.readline():
        Answers.tell()
    asking.cancel()


if __name__ == "__main__":
    uvloop.run(_main(sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4])))
