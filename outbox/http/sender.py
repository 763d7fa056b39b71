"""The way out: one POST, one deadline, an Answer or a Failure. What becomes of the delivery is not decided here.

A subscriber's server may do anything. Nothing that it does raises, costs more than the deadline and the caps of
connection.py, or puts its own words into a message.
"""

import asyncio
import email.utils
import functools
import math
import os
import re
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from outbox.core.model import Answer, Failure, FailureKind
from outbox.core.url import UrlFaultError, parse
from outbox.errors import UsageError
from outbox.http.connection import Connection, tls_words
from outbox.http.deadlines import Deadlines
from outbox.http.guard import Endpoint, Guard
from outbox.http.pool import DialError, Pool
from outbox.http.resolver import LookUp
from outbox.settings import DEFAULT_PORTS, Network, Proxy, Settings

_NOT_IN_FIELD = re.compile(r"[^\t\x20-\x7e\x80-\xff]")
_LONGEST_TIME = 100  # characters of a Retry-After or Date field that is read; a longer one only costs time
_SECONDS = re.compile(r"[0-9]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Target:
    endpoint: Endpoint
    head: bytes
    """The request line and the fields that are the same for every request."""


class Sender:
    """Sends POSTs over connections that are kept alive; an async context manager, used by any number of tasks.

    `timeout`: seconds from the call to the last byte of the answer. `allow_networks`, `deny_networks`, `allow_ports`,
    `require_https`: what may be posted to, see guard.py. `connections`: unused connections that are kept at most; how
    many are open is up to how many tasks post. `ca_file`: PEM certificates to trust beside the system's.
    `client_certificate`: a PEM file with its key; shown to servers that ask for one. `proxy`: through which all
    leaves. `look_up`: asked in place of the system's resolver. UsageError when a file can not be read.
    """

    def __init__(
        self,
        *,
        timeout: float,
        allow_networks: Sequence[Network] = (),
        deny_networks: Sequence[Network] = (),
        allow_ports: Sequence[range] = DEFAULT_PORTS,
        require_https: bool = False,
        connections: int = 100,
        ca_file: Path | None = None,
        client_certificate: Path | None = None,
        proxy: Proxy | None = None,
        look_up: LookUp | None = None,
    ) -> None:
        self._timeout = timeout
        guard = Guard(
            allow=tuple(allow_networks),
            deny=tuple(deny_networks),
            ports=tuple(allow_ports),
            require_https=require_https,
        )
        tls = _tls_context(ca_file, client_certificate)
        self._pool = Pool(guard, tls, idle=connections, proxy=proxy, look_up=look_up)

    @classmethod
    def of(cls, settings: Settings, *, connections: int = 1) -> Self:
        """Return the sender of these settings: the one way out for all that a process sends."""
        return cls(
            timeout=settings.request_timeout,
            allow_networks=settings.allow_networks,
            deny_networks=settings.deny_networks,
            allow_ports=settings.allow_ports,
            require_https=settings.require_https,
            connections=connections,
            ca_file=settings.ca_file,
            client_certificate=settings.client_certificate,
            proxy=settings.proxy,
        )

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._deadlines = Deadlines(self._timeout)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._deadlines.close()
        self._pool.close()
        await asyncio.sleep(0)  # transports close in the loop's next turn

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer | Failure:
        """Send one POST, the URL and the body byte for byte. Names of `headers` are ours, their values checked.

        Raises UnsentError when nothing was sent and no subscriber is to blame, and nothing else but CancelledError.
        """
        target = _target(url)
        if target is None:
            return Failure(FailureKind.RESOLVE, "the URL is no absolute http or https URL with a host")
        fields = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        values = "".join(headers.values())
        if not (values.isascii() and values.isprintable()) and _NOT_IN_FIELD.search(values):
            return Failure(FailureKind.BROKEN, "a field of the request can not be sent")
        head = b"%b%bContent-Length: %d\r\n\r\n" % (target.head, fields.encode("latin-1"), len(body))
        end = self._loop.time() + self._timeout
        result = None
        if connection := self._pool.take(target.endpoint):
            # None: the server had closed a connection that we kept. That is no fault of the subscriber.
            result = await self._exchange(target.endpoint, connection, head, body, end)
        if result is None:
            dialled = await self._dial(target.endpoint, end)
            if isinstance(dialled, Failure):
                return dialled
            result = await self._exchange(target.endpoint, dialled, head, body, end)
        return result or Failure(FailureKind.BROKEN, "the connection was closed without an answer")

    async def _exchange(
        self, endpoint: Endpoint, connection: Connection, head: bytes, body: bytes, end: float
    ) -> Answer | Failure | None:
        self._deadlines.begin(connection, end)
        try:
            result = await connection.exchange(head, body)
        finally:
            self._deadlines.over(connection)
            if connection.reusable:
                self._pool.put(endpoint, connection)
            else:
                connection.close()
        if isinstance(result, Answer) and (wait := connection.fields.get(b"retry-after")) is not None:
            now = datetime.fromtimestamp(time.time(), UTC)
            return result._replace(retry_after=retry_after(wait, connection.fields.get(b"date"), now))
        return result

    async def _dial(self, endpoint: Endpoint, end: float) -> Connection | Failure:  # noqa: PLR0911 - a table of errors
        try:
            async with asyncio.timeout_at(end):
                return await self._pool.dial(endpoint, end)
        except DialError as error:
            return error.failure
        except TimeoutError as error:
            if error.errno is not None:  # the system's own, not our deadline
                return Failure(FailureKind.CONNECT, f"no connection: {os.strerror(error.errno)}")
            return Failure(FailureKind.TIMEOUT, f"no answer within {self._timeout:g} s")
        except socket.gaierror as error:
            return Failure(FailureKind.RESOLVE, f"the host has no address: {error.strerror}")
        except UnicodeError:
            return Failure(FailureKind.RESOLVE, "the URL's host is no name and no address")
        except ssl.SSLCertVerificationError as error:
            return Failure(FailureKind.TLS, f"the certificate is not valid: {error.verify_message}")
        except ssl.SSLError as error:
            return Failure(FailureKind.TLS, tls_words(error))
        except OSError as error:
            words = f": {os.strerror(error.errno)}" if error.errno else ""
            return Failure(FailureKind.CONNECT, f"no connection{words}")


def retry_after(value: str, date: str | None, now: datetime) -> int | None:
    """Return the seconds that a Retry-After field asks for: a number, or a time relative to the Date field or `now`.

    None when the field makes no sense.
    """
    if len(value) > _LONGEST_TIME:
        return None
    seconds = _SECONDS.fullmatch(value.strip())
    if seconds:
        return int(seconds[0])
    until = _http_date(value)
    if until is None:
        return None
    since = _http_date(date) if date and len(date) <= _LONGEST_TIME else None
    return max(0, math.ceil((until - (since or now)).total_seconds()))


def _http_date(value: str) -> datetime | None:
    try:
        found = email.utils.parsedate_to_datetime(value)
    except (ValueError, OverflowError, IndexError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


@functools.lru_cache(maxsize=4096)
def _target(url: str) -> _Target | None:
    """Return where a URL leads, every byte of its path and query as it is; None when it could not be sent so."""
    try:
        read = parse(url)
    except UrlFaultError:
        return None
    line = f"POST {read.target} HTTP/1.1\r\nHost: {read.authority}\r\n"
    head = f"{line}Accept: */*\r\nAccept-Encoding: identity\r\n".encode("ascii")
    return _Target(Endpoint(read.is_tls, read.host, read.port), head)


def endpoint(url: str) -> Endpoint | None:
    """Return where a URL leads; None when nothing could be sent to it."""
    target = _target(url)
    return None if target is None else target.endpoint


def _tls_context(ca_file: Path | None, client_certificate: Path | None) -> ssl.SSLContext:
    # Not create_default_context: it writes the keys of all connections to the file that SSLKEYLOGFILE names, and what
    # it verifies differs between versions of Python.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_default_certs()
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Two ways for a server to keep our processor busy: handshakes without end in one connection, and numbers of its own
    # choice for DHE. With 10,000 bits that took the loop a second a time.
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_ciphers("ECDH+AESGCM:ECDH+CHACHA20:ECDH+AES:!aNULL:!SHA1:!AESCCM")
    context.set_alpn_protocols(["http/1.1"])
    try:
        if ca_file is not None:
            context.load_verify_locations(ca_file)
    except OSError as error:
        raise UsageError(f"{ca_file} is no readable file of PEM certificates: {error.strerror}.") from None
    try:
        if client_certificate is not None:
            # An empty password, because OpenSSL would ask the terminal for one.
            context.load_cert_chain(client_certificate, password="")
    except OSError as error:
        raise UsageError(
            f"{client_certificate} is no readable PEM file of a certificate and its key: {error.strerror}."
        ) from None
    return context
