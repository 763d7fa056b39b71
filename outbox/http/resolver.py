"""Turns a host into socket addresses. Whether they may be posted to is decided in guard.py."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Any

from outbox.errors import UnsentError
from outbox.http.guard import is_numeric

AddressInfo = tuple[int, int, int, str, tuple[Any, ...]]
"""Family, type, protocol, "" and the sockaddr, as getaddrinfo gives them."""

LookUp = Callable[[str, int], list[AddressInfo]]
"""Finds the addresses of a name, for a port. It may block; OSError when there are none."""

_TTL = 10.0
"""Seconds that an answer is used again: a burst to one host asks once, and a change is seen soon."""
_REMEMBERED = 10_000


class Resolver:
    """Asks the system, each look-up in a thread of its own, and remembers the answers for some seconds.

    The loop's own resolver has a handful of threads, so a few names whose servers hang would keep all other names
    waiting. The threads are daemons: a look-up that hangs does not hold up the end of the process.
    `look_up` is asked in place of the system.
    """

    def __init__(self, look_up: LookUp | None = None) -> None:
        self._look_up = look_up or _ask_the_system
        self._known: dict[tuple[str, int], tuple[float, list[AddressInfo]]] = {}

    async def addresses(self, host: str, port: int) -> list[AddressInfo]:
        """Return the addresses of a name, or the one of a numeric address; OSError when there are none.

        UnsentError when it can not be asked.
        """
        loop = asyncio.get_running_loop()
        known = self._known.get((host, port))
        if known is not None and known[0] > loop.time():
            return known[1]
        found: list[AddressInfo]
        if is_numeric(host):
            found = list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST))
        else:
            found = await _in_thread(loop, self._look_up, host, port)
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[host, port] = (loop.time() + _TTL, found)
        return found


def _ask_the_system(host: str, port: int) -> list[AddressInfo]:
    return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG))


async def _in_thread(loop: asyncio.AbstractEventLoop, look_up: LookUp, host: str, port: int) -> list[AddressInfo]:
    found: asyncio.Future[list[AddressInfo]] = loop.create_future()

    def settle(act: Callable[[Any], None], value: object) -> None:
        if not found.done():
            act(value)

    def work() -> None:
        act: Callable[[Any], None] = found.set_result
        value: object
        try:
            value = look_up(host, port)
        except Exception as error:  # noqa: BLE001 - it is raised to whoever waits
            act, value = found.set_exception, error
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, act, value)

    try:
        threading.Thread(target=work, name="outbox-resolve", daemon=True).start()
    except RuntimeError as error:
        raise UnsentError("No thread could be started to look up a name.") from error
    return await found
