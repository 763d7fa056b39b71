"""Connections to subscribers: dialled where the guard allows it, kept alive for a while, used again.

The address that was checked is the one that the socket is given: nothing is looked up in between.
"""

import asyncio
import contextlib
import errno
import os
import resource
import socket
import ssl
import time
from collections import defaultdict, deque

import aiohappyeyeballs

from outbox.core.model import Failure, FailureKind
from outbox.errors import UnsentError
from outbox.http.connection import Connection
from outbox.http.guard import Endpoint, Guard
from outbox.http.proxy import UnreachedError, open_tunnel
from outbox.http.resolver import AddressInfo, LookUp, Resolver
from outbox.settings import Proxy

KEEP_ALIVE = 15.0
"""Seconds that an unused connection is kept."""

_SWEEP = 5.0  # seconds from one look for unused connections to the next
_NEXT_ADDRESS = 0.25  # seconds that an address has to itself before the next one is tried too (RFC 8305)
_PROXY_SHARE = 0.5  # of the time that is left: how much of it connecting to the proxy may take
_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)
_SCARCE = 16  # descriptors: a look-up takes a few, and several go on at a time


class DialError(Exception):
    """There is no connection. `failure` is what the try ends in."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def permitted(addresses: list[AddressInfo], guard: Guard) -> list[AddressInfo]:
    """Return those of a host's addresses that may be dialled; DialError when there is none."""
    refusals = {str(each[4][0]): guard.address_refusal(str(each[4][0])) for each in addresses}
    allowed = [each for each in addresses if refusals[str(each[4][0])] is None]
    if not allowed:
        # The address and its network are kept apart: whoever owns the URL is not told what names mean in this network.
        address, refusal = next(iter(refusals.items()))
        kind = "in a network that is denied" if guard.denied(address) else refusal
        raise DialError(Failure(FailureKind.FORBIDDEN, f"the host's address is {kind}", address=address))
    return allowed


class Pool:
    """The connections of one sender. `idle`: how many unused ones are kept at most."""

    def __init__(
        self, guard: Guard, tls: ssl.SSLContext, *, idle: int, proxy: Proxy | None, look_up: LookUp | None
    ) -> None:
        self._guard = guard
        self._tls = tls
        self._most_idle = idle
        self._proxy = proxy
        self._resolver = Resolver(look_up)
        self._idle: defaultdict[Endpoint, deque[Connection]] = defaultdict(deque)
        self._count = 0
        self._sweep: asyncio.TimerHandle | None = None

    def take(self, endpoint: Endpoint) -> Connection | None:
        """Return the connection that was used last, or None: then dial."""
        unused = self._idle.get(endpoint)
        while unused:
            connection = unused.pop()
            self._count -= 1
            if not connection.closed:
                return connection
        return None

    def put(self, endpoint: Endpoint, connection: Connection) -> None:
        """Keep a connection that may be used again."""
        if self._count >= self._most_idle:
            self._close_one()
        connection.idle_since = time.monotonic()
        self._idle[endpoint].append(connection)
        self._count += 1
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(_SWEEP, self._close_unused)

    async def dial(self, endpoint: Endpoint, end: float) -> Connection:
        """Open a connection; `end`: the loop's time until when it is of use.

        Raises DialError, UnsentError, OSError (socket.gaierror, ssl.SSLError) or UnicodeError.
        """
        if refusal := self._guard.refusal(endpoint):
            raise DialError(Failure(FailureKind.FORBIDDEN, refusal))
        try:
            connected = await self._connected(endpoint, end)
        except OSError as error:
            if not _is_shortage(error):
                raise
            self.close()  # what is unused has descriptors that are needed now
            raise UnsentError(f"This machine has too little left for a connection: {_words(error)}.") from error
        try:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _, connection = await asyncio.get_running_loop().create_connection(
                Connection,
                sock=connected,
                ssl=self._tls if endpoint.is_tls else None,
                server_hostname=endpoint.host if endpoint.is_tls else None,
            )
        except BaseException as error:
            with contextlib.suppress(OSError):
                connected.close()
            if endpoint.is_tls and isinstance(error, ConnectionError):
                message = "TLS failed: the server broke off the handshake"
                raise DialError(Failure(FailureKind.TLS, message)) from error
            raise
        return connection

    async def _connected(self, endpoint: Endpoint, end: float) -> socket.socket:
        """Return a socket that is connected to an address that may be dialled, itself or through the proxy."""
        addresses = permitted(await self._resolver.addresses(endpoint.host, endpoint.port), self._guard)
        if self._proxy is None:
            return await aiohappyeyeballs.start_connection(addresses, happy_eyeballs_delay=_NEXT_ADDRESS)
        return await self._through(self._proxy, addresses, end)

    async def _through(self, proxy: Proxy, addresses: list[AddressInfo], end: float) -> socket.socket:
        """Return a socket whose other end is, by way of the proxy, the first of the addresses that it reaches."""
        unreached = None
        for address in dict.fromkeys((str(each[4][0]), int(each[4][1])) for each in addresses):
            connected = await self._to(proxy, end)
            try:
                await open_tunnel(connected, proxy, *address)
            except UnreachedError as error:
                connected.close()
                unreached = error
            except BaseException:
                connected.close()
                raise
            else:
                return connected
        raise DialError(Failure(FailureKind.CONNECT, f"no connection: {unreached}")) from unreached

    async def _to(self, proxy: Proxy, end: float) -> socket.socket:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout((end - loop.time()) * _PROXY_SHARE):
                found = await self._resolver.addresses(proxy.host, proxy.port)
                return await aiohappyeyeballs.start_connection(found, happy_eyeballs_delay=_NEXT_ADDRESS)
        except OSError as error:
            if _is_shortage(error):
                raise
            raise UnsentError(f"The proxy can not be reached: {_words(error)}.") from error

    def close(self) -> None:
        """Close what is unused."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for unused in self._idle.values():
            for connection in unused:
                connection.close()
        self._idle.clear()
        self._count = 0

    def _close_one(self) -> None:
        """Close an unused connection of the endpoint that has most of them: one with many takes none from others."""
        endpoint, unused = max(self._idle.items(), key=lambda item: len(item[1]))
        unused.popleft().close()
        self._count -= 1
        if not unused:
            del self._idle[endpoint]

    def _close_unused(self) -> None:
        self._sweep = None
        since = time.monotonic() - KEEP_ALIVE
        for endpoint, unused in list(self._idle.items()):
            while unused and (unused[0].closed or unused[0].idle_since < since):
                unused.popleft().close()
                self._count -= 1
            if not unused:
                del self._idle[endpoint]
        if self._count:
            self._sweep = asyncio.get_running_loop().call_later(_SWEEP, self._close_unused)


def _is_shortage(error: OSError) -> bool:
    """Tell whether it is this machine that lacks something, and not the host that can not be reached."""
    if not isinstance(error, socket.gaierror):
        return error.errno in _SHORTAGES
    # A resolver that can open no file says that there is no such name.
    if error.errno == socket.EAI_MEMORY:
        return True
    try:
        lowest_free = os.open(os.devnull, os.O_RDONLY)
    except OSError as fault:
        return fault.errno in _NO_DESCRIPTOR
    os.close(lowest_free)
    # Others may have given back theirs since.
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] - lowest_free <= _SCARCE


def _words(error: OSError) -> str:
    """Return what went wrong, and neither address nor file."""
    if error.errno is None:
        return "no connection in time" if isinstance(error, TimeoutError) else "no connection"
    return str(error.strerror) if isinstance(error, socket.gaierror) else os.strerror(error.errno)
