"""The way out: one POST, one deadline, an Answer or a Failure. What becomes of the delivery is not decided here.

A subscriber's server may do anything. Nothing that it does raises, costs more than the deadline and the caps below,
or puts its own words into a message.
"""

import asyncio
import contextlib
import email.utils
import functools
import io
import math
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.http_exceptions import LineTooLong
from yarl import URL

from outbox.core.model import Answer, Failure, FailureKind
from outbox.errors import UsageError
from outbox.http.guard import verdict
from outbox.settings import Network

MAX_ANSWER = 1 << 20
"""Bytes of an answer's body that are read; a longer one is oversized."""
KEPT_ANSWER = 1024
"""Bytes of an answer's body that are kept."""

_KEEPALIVE = 15.0  # seconds that an unused connection is kept
_WRITTEN_AT_ONCE = 1 << 18  # bytes of a request's body
_DNS_TTL = 10  # seconds
_NOT_IN_URL = re.compile(r"[^\x21-\x7e]")
_SECONDS = re.compile(r"0*([0-9]{1,9})")

# Several are subclasses of others, and some are only the cause of what is raised: the first that fits counts.
_FAULTS: tuple[tuple[type[BaseException], FailureKind, str], ...] = (
    (aiohttp.ClientConnectorDNSError, FailureKind.RESOLVE, "the host has no address"),
    (UnicodeError, FailureKind.RESOLVE, "the URL's host is no name and no address"),
    (aiohttp.InvalidURL, FailureKind.RESOLVE, "the URL's host is no name and no address"),
    (aiohttp.ClientConnectorCertificateError, FailureKind.TLS, "the certificate is not valid"),
    (ssl.SSLError, FailureKind.TLS, "TLS failed"),
    (aiohttp.ClientConnectorError, FailureKind.CONNECT, "no connection"),
    (LineTooLong, FailureKind.OVERSIZED, "a line of the answer is too long"),
    (aiohttp.ServerDisconnectedError, FailureKind.BROKEN, "the connection was closed without an answer"),
    (aiohttp.ClientPayloadError, FailureKind.BROKEN, "the answer's body is broken or ended early"),
    (aiohttp.ClientResponseError, FailureKind.BROKEN, "the answer is not proper HTTP"),
    (OSError, FailureKind.BROKEN, "the connection broke"),
)


class _Try:
    """What happened while one request looked for a connection."""

    __slots__ = ("connecting", "refusal")

    def __init__(self) -> None:
        self.connecting = False
        """A connection was opened for it. Without that, an established one was used again."""
        self.refusal: str | None = None
        """Why the guard refused an address."""


# The connector asks for sockets without saying for which request. Its tasks inherit the request's context.
_TRY: ContextVar[_Try] = ContextVar("outbox_http_try")


class _ForbiddenAddressError(OSError):
    """The guard refused an address; the connector then tries the name's other ones."""


class Sender:
    """Sends POSTs over connections that are kept alive; an async context manager, used by any number of tasks.

    `timeout`: seconds from the call to the last byte of the answer. `allow_networks`: what may be posted to although
    it is not globally routable. `connections`: open POSTs at most; further ones wait, and their deadline runs
    meanwhile, so give at least as many as there are tasks. `ca_file`: PEM certificates to trust beside the system's;
    UsageError when it can not be read.
    """

    def __init__(
        self,
        *,
        timeout: float,
        allow_networks: Sequence[Network] = (),
        connections: int = 100,
        ca_file: Path | None = None,
    ) -> None:
        self._timeout = timeout
        self._allowed = tuple(allow_networks)
        self._connections = connections
        self._tls = _tls_context(ca_file)

    async def __aenter__(self) -> Self:
        self._pooled = self._session(force_close=False)
        self._fresh = self._session(force_close=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pooled.close()
        await self._fresh.close()

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer | Failure:
        """Send one POST, the URL and the body byte for byte. Raises nothing but CancelledError."""
        target = _parsed(url)
        if target is None:
            return Failure(FailureKind.RESOLVE, "the URL is no absolute http or https URL with a host")
        attempt = _Try()
        _TRY.set(attempt)
        response: aiohttp.ClientResponse | None = None
        try:
            async with asyncio.timeout(self._timeout):
                try:
                    response = await self._pooled.post(
                        target, data=_payload(body), headers=headers, allow_redirects=False
                    )
                except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                    if attempt.connecting or not _before_first_byte(error):
                        raise
                    # The server had closed a connection that we kept. That is no fault of the subscriber.
                    response = await self._fresh.post(
                        target, data=_payload(body), headers=headers, allow_redirects=False
                    )
                return await _read(response)
        except Exception as error:  # noqa: BLE001 - whatever a server makes the library raise is a failed try
            return _failure(error, attempt, None if response is None else response.status, self._timeout)
        finally:
            if response is not None and not response.closed:
                response.close()

    def _session(self, *, force_close: bool) -> aiohttp.ClientSession:
        keepalive: dict[str, Any] = {} if force_close else {"keepalive_timeout": _KEEPALIVE}
        connector = aiohttp.TCPConnector(
            limit=self._connections,
            force_close=force_close,
            ssl=self._tls,
            resolver=_Resolver(),
            ttl_dns_cache=_DNS_TTL,
            socket_factory=self._socket,
            **keepalive,
        )
        return aiohttp.ClientSession(
            connector=connector,
            headers={"Accept-Encoding": "identity"},
            skip_auto_headers=("User-Agent", "Content-Type"),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            timeout=aiohttp.ClientTimeout(),  # none: the deadline is ours
        )

    def _socket(self, address: aiohttp.AddrInfoType) -> socket.socket:
        """Open the socket for one address. It is the very address that is connected to: no look-up comes after."""
        family, kind, protocol, _, sockaddr = address
        attempt = _TRY.get()
        reason = verdict(str(sockaddr[0]), self._allowed)
        if reason is not None:
            attempt.refusal = f"{sockaddr[0]} is {reason}, and no allowed network has it"
            raise _ForbiddenAddressError("forbidden address")
        attempt.connecting = True
        return socket.socket(family, kind, protocol)


class _Resolver(AbstractResolver):
    """Asks the system, each look-up in a thread of its own.

    The loop's own resolver has a handful of threads, so a few names whose servers hang would keep all other names
    waiting. The threads are daemons: a look-up that hangs does not hold up the end of the process.
    """

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of a name; OSError when there are none."""
        loop = asyncio.get_running_loop()
        found: asyncio.Future[list[ResolveResult]] = loop.create_future()

        def settle(act: Callable[[Any], None], value: object) -> None:
            if not found.done():
                act(value)

        def look_up() -> None:
            act: Callable[[Any], None] = found.set_result
            value: object
            try:
                value = _addresses(host, port, family)
            except Exception as error:  # noqa: BLE001 - it is raised to whoever waits
                act, value = found.set_exception, error
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(settle, act, value)

        threading.Thread(target=look_up, name="outbox-resolve", daemon=True).start()
        return await found

    async def close(self) -> None:
        """Do nothing: threads that still look up end by themselves."""


def retry_after(value: str, date: str | None, now: datetime) -> int | None:
    """Return the seconds that a Retry-After field asks for: a number, or a time relative to the Date field or `now`.

    None when the field makes no sense.
    """
    seconds = _SECONDS.fullmatch(value.strip())
    if seconds:
        return int(seconds[1])
    until = _http_date(value)
    if until is None:
        return None
    since = _http_date(date) if date else None
    return max(0, math.ceil((until - (since or now)).total_seconds()))


def _http_date(value: str) -> datetime | None:
    try:
        found = email.utils.parsedate_to_datetime(value)
    except (ValueError, OverflowError, IndexError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


@functools.lru_cache(maxsize=4096)
def _payload(body: bytes) -> bytes | io.BytesIO:
    # A large body goes out in pieces: written at once it would hold up the loop, and aiohttp warns of it.
    return body if len(body) <= _WRITTEN_AT_ONCE else io.BytesIO(body)


def _parsed(url: str) -> URL | None:
    """Return the URL with every byte as it is; None when it could not be sent so."""
    if _NOT_IN_URL.search(url):
        return None
    try:
        parsed = URL(url, encoded=True)
        usable = parsed.scheme in ("http", "https") and parsed.raw_host  # the port is read, and judged, with the host
    except ValueError:
        return None
    return parsed if usable else None


def _tls_context(ca_file: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if ca_file is not None:
        try:
            context.load_verify_locations(ca_file)
        except OSError as error:
            raise UsageError(f"{ca_file} is no readable file of PEM certificates: {error.strerror}.") from None
    return context


def _addresses(host: str, port: int, family: int) -> list[ResolveResult]:
    results = []
    for kind, _, protocol, _, sockaddr in socket.getaddrinfo(
        host, port, family=family, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
    ):
        address, _, *flow_and_zone = sockaddr
        # A link-local IPv6 address is nothing without its zone.
        zone = f"%{flow_and_zone[1]}" if any(flow_and_zone[1:]) else ""
        numeric = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        results.append(
            ResolveResult(hostname=host, host=f"{address}{zone}", port=port, family=kind, proto=protocol, flags=numeric)
        )
    return results


def _before_first_byte(error: aiohttp.ClientError) -> bool:
    # When an answer had begun, `message` holds what there was of it.
    return not isinstance(error, aiohttp.ServerDisconnectedError) or isinstance(error.message, str)


async def _read(response: aiohttp.ClientResponse) -> Answer | Failure:
    size, kept = 0, b""
    while chunk := await response.content.readany():
        if size < KEPT_ANSWER:
            kept += chunk[: KEPT_ANSWER - size]
        size += len(chunk)
        if size > MAX_ANSWER:
            message = f"the answer's body is longer than {MAX_ANSWER} bytes"
            return Failure(FailureKind.OVERSIZED, message, response.status)
    wait = response.headers.get("Retry-After")
    if wait is None:
        return Answer(response.status, kept)
    now = datetime.fromtimestamp(time.time(), UTC)
    return Answer(response.status, kept, retry_after(wait, response.headers.get("Date"), now))


def _failure(error: Exception, attempt: _Try, status: int | None, timeout: float) -> Failure:
    """Name what went wrong in our own words: the library's would quote the answer or the URL."""
    if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ClientError):
        missing = "no answer" if status is None else "no complete answer"
        return Failure(FailureKind.TIMEOUT, f"{missing} within {timeout:g} s", status)
    if isinstance(error, aiohttp.ClientConnectorError) and attempt.refusal is not None and not attempt.connecting:
        return Failure(FailureKind.FORBIDDEN, attempt.refusal)
    for fault, kind, words in _FAULTS:
        if _caused_by(error, fault):
            return Failure(kind, words + _reason(error), status)
    return Failure(FailureKind.BROKEN, f"the request failed ({type(error).__name__})", status)


def _reason(error: Exception) -> str:
    """Return ": " and the system's words for it, or nothing when it has none."""
    words = None
    match error:
        case aiohttp.ClientConnectorCertificateError():
            words = getattr(error.certificate_error, "verify_message", None)
        case aiohttp.ClientConnectorSSLError() if isinstance(error.os_error, ssl.SSLError):
            words = (error.os_error.reason or "").replace("_", " ").lower()
        case aiohttp.ClientConnectorDNSError():
            words = error.os_error.strerror
        case OSError(errno=number) if number:
            words = os.strerror(number)
    return f": {words}" if words else ""


def _caused_by(error: BaseException | None, kind: type[BaseException]) -> bool:
    while error is not None:
        if isinstance(error, kind):
            return True
        error = error.__cause__
    return False
