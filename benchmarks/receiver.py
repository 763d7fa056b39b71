"""A receiver as fast as Python makes one: it reads a POST, notes when its first byte came, and answers 200.

Run as a process of its own: `python -m benchmarks.receiver [seconds of delay] [times | -] [certificate key]` prints its
port, then answers each line of stdin: `count` with how many POSTs came; `connections` with how many connections were
made, of TLS where it has a certificate; `span` with how many came since the last `span`, and the seconds from
the first of them to the last; `times` with the webhook-id and the arrival of each on the monotonic
clock, which processes of one machine share.
"""

import asyncio
import json
import ssl
import sys
import time
from typing import cast

import uvloop

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class Receiver(asyncio.Protocol):
    """One connection. It knows just the HTTP that our senders speak."""

    delay = 0.0
    count = 0
    connections = 0
    span: list[float] = []  # noqa: RUF012 - one for all connections, on purpose
    times: dict[str, float] = {}  # noqa: RUF012 - one for all connections, on purpose
    keep_times = False

    def __init__(self) -> None:
        self._buffer = b""
        self._first = 0.0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the connection. One of TLS is made when hands were shaken."""
        Receiver.connections += 1
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        """Answer each whole request."""
        now = time.monotonic()
        if not self._buffer:
            self._first = now
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            # As Python's senders and as Node's write it: a search without regard to case would cost more than all the
            # rest.
            at = self._buffer.find(b"Content-Length: ", 0, end)
            if at < 0:
                at = self._buffer.find(b"content-length: ", 0, end)
            whole = end + 4 + int(self._buffer[at + 16 : self._buffer.find(b"\r", at)])
            if len(self._buffer) < whole:
                return
            head, self._buffer = self._buffer[:end], self._buffer[whole:]
            Receiver.count += 1
            Receiver.span.append(self._first)
            if Receiver.keep_times:
                at = head.find(b"webhook-id: ")
                Receiver.times[head[at + 12 :].split(b"\r\n", 1)[0].decode()] = self._first
            if Receiver.delay:
                asyncio.get_running_loop().call_later(Receiver.delay, self._answer)
            else:
                self._answer()

    def _answer(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(_ANSWER)


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    context = None
    if len(sys.argv) > 3:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(sys.argv[3], sys.argv[4])
    server = await loop.create_server(Receiver, "127.0.0.1", 0, backlog=4096, ssl=context)
    print(server.sockets[0].getsockname()[1], flush=True)
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := (await reader.readline()).decode().strip():
        if line == "times":
            print(json.dumps(Receiver.times), flush=True)
            Receiver.times = {}
        elif line == "span":
            span, Receiver.span = Receiver.span, []
            print(json.dumps([len(span), span[-1] - span[0] if span else 0.0]), flush=True)
        elif line == "connections":
            print(Receiver.connections, flush=True)
        else:
            print(Receiver.count, flush=True)


if __name__ == "__main__":
    Receiver.delay = float(sys.argv[1]) if len(sys.argv) > 1 else 0.0
    Receiver.keep_times = sys.argv[2:3] == ["times"]
    uvloop.run(_serve())
