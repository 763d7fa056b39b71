"""The way out: one POST, one deadline, an Answer or a Failure. What becomes of the delivery is not decided here.

A subscriber's server may do anything. Nothing that it does raises, costs more than the deadline and the caps of
connection.py, or puts its own words into a message.
"""

import asyncio
import dataclasses
import email.utils
import functools
import ipaddress
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

from yarl import URL

from outbox.core.model import Answer, Failure, FailureKind
from outbox.errors import UsageError
from outbox.http.connection import Connection
from outbox.http.pool import Endpoint, ForbiddenAddressError, Pool
from outbox.settings import Network

_NOT_IN_URL = re.compile(r"[^\x21-\x7e]")
_NOT_IN_FIELD = re.compile(r"[^\t\x20-\x7e\x80-\xff]")
_NUMERIC_LABEL = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]*")
_SECONDS = re.compile(r"0*([0-9]{1,9})")


@dataclass(frozen=True, slots=True)
class _Target:
    endpoint: Endpoint
    head: bytes
    """The request line and the fields that are the same for every request."""


class Sender:
    """Sends POSTs over connections that are kept alive; an async context manager, used by any number of tasks.

    `timeout`: seconds from the call to the last byte of the answer. `allow_networks`: what may be posted to although
    it is not globally routable. `connections`: unused connections that are kept at most; how many are open is up to
    how many tasks post. `ca_file`: PEM certificates to trust beside the system's; UsageError when it can not be read.
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
        self._pool = Pool(allowed=allow_networks, tls=_tls_context(ca_file), idle=connections)

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._pool.close()
        await asyncio.sleep(0)  # transports close in the loop's next turn

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer | Failure:
        """Send one POST, the URL and the body byte for byte. Raises nothing but CancelledError."""
        target = _target(url)
        if target is None:
            return Failure(FailureKind.RESOLVE, "the URL is no absolute http or https URL with a host")
        fields = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        if _NOT_IN_FIELD.search(fields.replace("\r\n", "", len(headers))):
            return Failure(FailureKind.BROKEN, "a field of the request can not be sent")
        request = b"%b%bContent-Length: %d\r\n\r\n%b" % (target.head, fields.encode("latin-1"), len(body), body)
        end = self._loop.time() + self._timeout
        result = None
        if connection := self._pool.take(target.endpoint):
            # None: the server had closed a connection that we kept. That is no fault of the subscriber.
            result = await self._exchange(target.endpoint, connection, request, end)
        if result is None:
            dialled = await self._dial(target.endpoint, end)
            if isinstance(dialled, Failure):
                return dialled
            result = await self._exchange(target.endpoint, dialled, request, end)
        return result or Failure(FailureKind.BROKEN, "the connection was closed without an answer")

    async def _exchange(
        self, endpoint: Endpoint, connection: Connection, request: bytes, end: float
    ) -> Answer | Failure | None:
        timer = self._loop.call_at(end, connection.time_out, self._timeout)
        try:
            result = await connection.exchange(request)
        finally:
            timer.cancel()
            if connection.reusable:
                self._pool.put(endpoint, connection)
            else:
                connection.close()
        if isinstance(result, Answer) and (wait := connection.fields.get(b"retry-after")) is not None:
            now = datetime.fromtimestamp(time.time(), UTC)
            return dataclasses.replace(result, retry_after=retry_after(wait, connection.fields.get(b"date"), now))
        return result

    async def _dial(self, endpoint: Endpoint, end: float) -> Connection | Failure:  # noqa: PLR0911 - a table of errors
        try:
            async with asyncio.timeout_at(end):
                return await self._pool.dial(endpoint)
        except ForbiddenAddressError as error:
            return Failure(FailureKind.FORBIDDEN, str(error))
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
            return Failure(FailureKind.TLS, f"TLS failed: {(error.reason or 'no reason').replace('_', ' ').lower()}")
        except OSError as error:
            words = f": {os.strerror(error.errno)}" if error.errno else ""
            return Failure(FailureKind.CONNECT, f"no connection{words}")


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


def _is_numeric_by_half(host: str) -> bool:
    """Tell whether it is a short, octal or hexadecimal spelling of an address, which systems read differently."""
    if not _NUMERIC_LABEL.fullmatch(host.removesuffix(".").rpartition(".")[2]):
        return False
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return True
    return False


@functools.lru_cache(maxsize=4096)
def _target(url: str) -> _Target | None:
    """Return where a URL leads, every byte of its path and query as it is; None when it could not be sent so."""
    if _NOT_IN_URL.search(url):
        return None
    try:
        parsed = URL(url, encoded=True)
        host, port = parsed.host, parsed.port
    except ValueError:
        return None
    if parsed.scheme not in ("http", "https") or not host or not port or _is_numeric_by_half(host):
        return None
    line = f"POST {parsed.raw_path_qs} HTTP/1.1\r\nHost: {parsed.host_port_subcomponent}\r\n"
    head = f"{line}Accept: */*\r\nAccept-Encoding: identity\r\n".encode("ascii")
    return _Target(Endpoint(parsed.scheme == "https", host, port), head)


def endpoint(url: str) -> Endpoint | None:
    """Return where a URL leads; None when nothing could be sent to it."""
    target = _target(url)
    return None if target is None else target.endpoint


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
