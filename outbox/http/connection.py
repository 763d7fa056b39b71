"""One HTTP/1.1 connection: a POST goes out, an Answer or a Failure comes back, one exchange at a time.

All that a hostile answer may cost is bounded here: its head and the fields in it, its body, its framing, interim
answers. Bytes are parsed by llhttp; nothing is unpacked. Who connects, and when to give up, is decided elsewhere.
"""

import asyncio
import os
import ssl
from typing import Any, cast

import httptools

from outbox.core.model import Answer, Failure, FailureKind

MAX_HEAD = 1 << 16
"""Bytes of an answer's head, interim answers included; a longer one is oversized."""
MAX_FIELDS = 200
"""Fields of an answer, interim answers and trailers included; one with more is oversized."""
MAX_ANSWER = 1 << 20
"""Bytes of an answer's body that are read; a longer one is oversized."""
MAX_WIRE = MAX_HEAD + MAX_ANSWER
"""Bytes of an answer in all: chunks and trailers have no body's length, and cost time and memory all the same."""
MAX_PIECES = 10_000
"""Pieces that an answer's body comes in; each costs time, also one of a byte."""
KEPT_ANSWER = 1024
"""Bytes of an answer's body that are kept."""
LARGE_BODY = 1 << 16
"""Bytes of a request's body above which it is not copied behind the head: memory is dearer there than a call."""

_SWITCHING = 101
_FINAL = 200
_BODILESS = (204, 304)
_AROUND_A_FIELD = len(": \r\n")
_WANTED = (b"retry-after", b"date", b"content-length", b"transfer-encoding")


class _EnoughError(Exception):
    """Stops the parser, which would else go through all that has come: of short fields, a sixth of a second's work."""


class Connection(asyncio.Protocol):
    """An established connection. `exchange` sends a request; `reusable` tells whether another may follow."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._result: asyncio.Future[Answer | Failure | None] | None = None
        self._exchanges = 0
        self.closed = False
        self.idle_since = 0.0

    def exchange(self, head: bytes, body: bytes) -> "asyncio.Future[Answer | Failure | None]":
        """Send a request; the future gives the outcome.

        None is the outcome of a connection that was used before and broke without a byte of an answer: the server had
        closed it while it was idle, and the request may be repeated on another one.
        """
        self._parser = httptools.HttpResponseParser(self)
        self._bytes = 0
        self._head_bytes = 0
        self._field_count = 0
        self._field_bytes = 0
        self._body_bytes = 0
        self._pieces = 0
        self._kept = b""
        self._fields: dict[bytes, str] = {}
        self._status: int | None = None
        self._until_eof = False
        self._complete = False
        self._extra = False
        self._keep_alive = False
        self._exchanges += 1
        self._result = self._loop.create_future()
        if self.closed or self._transport is None:
            self._conclude(None)
        elif len(body) > LARGE_BODY:
            self._transport.writelines((head, body))
        else:
            self._transport.write(head + body)
        return self._result

    @property
    def reusable(self) -> bool:
        """Whether the last exchange left the connection fit for another."""
        return (
            self._complete
            and self._keep_alive
            and not self._extra
            and not self.closed
            and self._transport is not None
            and self._transport.get_write_buffer_size() == 0
        )

    def time_out(self, seconds: float) -> None:
        """End the exchange because its deadline, `seconds` long, has passed."""
        missing = "no answer" if self._status is None else "no complete answer"
        self._fail(FailureKind.TIMEOUT, f"{missing} within {seconds:g} s")

    def close(self) -> None:
        """Close at once, whatever is under way."""
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    @property
    def fields(self) -> dict[bytes, str]:
        """The answer's fields that matter, by lower-case name."""
        return self._fields

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Parse what has come."""
        if self._result is None or self._complete:
            # An answer that nobody asked for: whatever it is meant for, it is not for the next request.
            self.close()
            return
        self._bytes += len(data)
        if self._bytes > MAX_WIRE:
            self._fail(FailureKind.OVERSIZED, f"the answer is longer than {MAX_WIRE} bytes")
            return
        if self._status is None:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._extra = True
        except httptools.HttpParserError:
            self._fail(FailureKind.BROKEN, "the answer is not proper HTTP")
        if self._status is None and self._head_bytes > MAX_HEAD:
            self._fail(FailureKind.OVERSIZED, f"the answer's head is longer than {MAX_HEAD} bytes")

    def connection_lost(self, exc: Exception | None) -> None:
        """Conclude what was under way."""
        self.closed = True
        if self._result is None or self._result.done():
            return
        if self._until_eof and exc is None:
            self._finish()
        elif self._exchanges > 1 and not self._head_bytes:
            self._conclude(None)
        elif isinstance(exc, ssl.SSLError):
            # Under TLS 1.3 a server refuses our certificate, or that there is none, only after the handshake.
            self._fail(FailureKind.TLS, tls_words(exc))
        elif isinstance(exc, OSError):
            words = f": {os.strerror(exc.errno)}" if exc.errno and exc.errno > 0 else ""
            self._fail(FailureKind.BROKEN, f"the connection broke{words}")
        elif self._status is None:
            self._fail(FailureKind.BROKEN, "the connection was closed without an answer")
        else:
            self._fail(FailureKind.BROKEN, "the answer's body is broken or ended early")

    # What the parser calls.

    def on_message_begin(self) -> None:
        """Notice an answer behind the answer."""
        if self._complete:
            self._extra = True
            raise _EnoughError

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep what matters."""
        self._field_count += 1
        self._field_bytes += len(name) + len(value) + _AROUND_A_FIELD
        if self._field_count > MAX_FIELDS:
            self._fail(FailureKind.OVERSIZED, f"the answer has more than {MAX_FIELDS} fields")
            raise _EnoughError
        if self._field_bytes > MAX_HEAD:
            self._fail(FailureKind.OVERSIZED, f"the answer's head is longer than {MAX_HEAD} bytes")
            raise _EnoughError
        if self._status is not None:
            return  # a trailer
        key = name.lower()
        if key in _WANTED:
            self._fields[key] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Learn the status, unless it is an interim one, and how the body ends."""
        status = self._parser.get_status_code()
        if status < _FINAL and status != _SWITCHING:
            self._fields = {}
            return
        if self._complete:
            return
        self._status = status
        chunked = self._fields.get(b"transfer-encoding", "").lower().endswith("chunked")
        self._until_eof = not (
            chunked or b"content-length" in self._fields or status in _BODILESS or status == _SWITCHING
        )

    def on_body(self, body: bytes) -> None:
        """Count it, and keep the beginning."""
        if self._complete:
            return
        if self._body_bytes < KEPT_ANSWER:
            self._kept += body[: KEPT_ANSWER - self._body_bytes]
        self._body_bytes += len(body)
        self._pieces += 1
        if self._body_bytes > MAX_ANSWER:
            self._fail(FailureKind.OVERSIZED, f"the answer's body is longer than {MAX_ANSWER} bytes")
            raise _EnoughError
        if self._pieces > MAX_PIECES:
            self._fail(FailureKind.OVERSIZED, f"the answer's body comes in more than {MAX_PIECES} pieces")
            raise _EnoughError

    def on_message_complete(self) -> None:
        """Conclude, unless it was an interim answer."""
        if self._status is not None and not self._complete:
            self._keep_alive = self._parser.should_keep_alive()
            self._finish()

    def _finish(self) -> None:
        self._complete = True
        self._conclude(Answer(cast("int", self._status), self._kept))

    def _fail(self, kind: FailureKind, message: str) -> None:
        self._conclude(Failure(kind, message, self._status))
        self.close()

    def _conclude(self, result: Answer | Failure | None) -> None:
        future: asyncio.Future[Any] | None = self._result
        if future is not None and not future.done():
            future.set_result(result)


def tls_words(error: ssl.SSLError) -> str:
    """Return what TLS failed for, in OpenSSL's words and none of the server's."""
    return f"TLS failed: {(error.reason or 'no reason').replace('_', ' ').lower()}"
