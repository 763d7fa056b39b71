"""Connections to subscribers: dialled where the guard allows it, kept alive for a while, used again.

The address that was checked is the one that the socket is given: nothing is looked up in between.
"""

import asyncio
import contextlib
import socket
import ssl
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import NamedTuple

import aiohappyeyeballs

from outbox.http.connection import Connection
from outbox.http.guard import verdict
from outbox.http.resolver import AddressInfo, Resolver
from outbox.settings import Network

KEEP_ALIVE = 15.0
"""Seconds that an unused connection is kept."""

_SWEEP = 5.0  # seconds from one look for unused connections to the next
_NEXT_ADDRESS = 0.25  # seconds that an address has to itself before the next one is tried too (RFC 8305)


class ForbiddenAddressError(Exception):
    """None of the host's addresses may be posted to; the message says why."""


def permitted(addresses: Sequence[AddressInfo], allowed: Sequence[Network]) -> list[AddressInfo]:
    """Return those of a host's addresses that may be posted to; ForbiddenAddressError when there is none."""
    refusals = {str(each[4][0]): verdict(str(each[4][0]), allowed) for each in addresses}
    found = [each for each in addresses if refusals[str(each[4][0])] is None]
    if not found:
        address, reason = next(iter(refusals.items()))
        raise ForbiddenAddressError(f"{address} is {reason}, and no allowed network has it")
    return found


class Endpoint(NamedTuple):
    """Where a connection leads. A tuple, because it is looked up for each POST."""

    is_tls: bool
    host: str
    port: int


class Pool:
    """The connections of one sender. `idle`: how many unused ones are kept at most."""

    def __init__(self, *, allowed: Sequence[Network], tls: ssl.SSLContext, idle: int) -> None:
        self._allowed = tuple(allowed)
        self._tls = tls
        self._most_idle = idle
        self._resolver = Resolver()
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
            connection.close()
            return
        loop = asyncio.get_running_loop()
        connection.idle_since = loop.time()
        self._idle[endpoint].append(connection)
        self._count += 1
        if self._sweep is None:
            self._sweep = loop.call_later(_SWEEP, self._close_unused)

    async def dial(self, endpoint: Endpoint) -> Connection:
        """Open a connection; ForbiddenAddressError, OSError (socket.gaierror, ssl.SSLError) or UnicodeError."""
        loop = asyncio.get_running_loop()
        addresses = await self._resolver.addresses(endpoint.host, endpoint.port)
        allowed = permitted(addresses, self._allowed)
        connected = await aiohappyeyeballs.start_connection(allowed, happy_eyeballs_delay=_NEXT_ADDRESS)
        try:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _, connection = await loop.create_connection(
                Connection,
                sock=connected,
                ssl=self._tls if endpoint.is_tls else None,
                server_hostname=endpoint.host if endpoint.is_tls else None,
            )
        except BaseException:
            with contextlib.suppress(OSError):
                connected.close()
            raise
        return connection

    def close(self) -> None:
        """Close what is unused."""
        if self._sweep is not None:
            self._sweep.cancel()
        for unused in self._idle.values():
            for connection in unused:
                connection.close()
        self._idle.clear()
        self._count = 0

    def _close_unused(self) -> None:
        self._sweep = None
        loop = asyncio.get_running_loop()
        for endpoint, unused in list(self._idle.items()):
            while unused and (unused[0].closed or unused[0].idle_since < loop.time() - KEEP_ALIVE):
                unused.popleft().close()
                self._count -= 1
            if not unused:
                del self._idle[endpoint]
        if self._count:
            self._sweep = loop.call_later(_SWEEP, self._close_unused)
