"""Turns a host into socket addresses. Whether they may be posted to is decided in guard.py."""

import asyncio
import contextlib
import socket
import threading
from collections import Counter
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
_OF_A_FAMILY = 4
"""Addresses of a family that are used. Whoever owns a name may give it thousands: each costs memory, and a descriptor
while it does not answer."""


class Resolver:
    """Asks the system, each look-up in a thread of its own, and remembers the answers for some seconds.

    The loop's own resolver has a handful of threads, so a few names whose servers hang would keep all other names
    waiting. Whoever asks for a name that is being looked up waits for the same answer, so that a name whose server
    hangs has one thread, also when those that waited have given up. The threads are daemons: a look-up that hangs does
    not hold up the end of the process. `look_up` is asked in place of the system.
    """

    def __init__(self, look_up: LookUp | None = None) -> None:
        self._look_up = look_up or _ask_the_system
        self._known: dict[tuple[str, int], tuple[float, list[AddressInfo]]] = {}
        self._under_way: dict[tuple[str, int], asyncio.Future[list[AddressInfo]]] = {}

    async def addresses(self, host: str, port: int) -> list[AddressInfo]:
        """Return the addresses of a name, or the one of a numeric address; OSError when there are none.

        UnsentError when it can not be asked.
        """
        loop = asyncio.get_running_loop()
        known = self._known.get((host, port))
        if known is not None and known[0] > loop.time():
            return known[1]
        if is_numeric(host):
            return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST))
        under_way = self._under_way.get((host, port))
        if under_way is None:
            under_way = _in_thread(loop, self._look_up, host, port)
            self._under_way[host, port] = under_way
            under_way.add_done_callback(lambda asked: self._remember(host, port, asked))
        await asyncio.wait((under_way,))  # who gives up waiting does not end it for the others
        return under_way.result()

    def _remember(self, host: str, port: int, asked: "asyncio.Future[list[AddressInfo]]") -> None:
        del self._under_way[host, port]
        if asked.cancelled() or asked.exception() is not None:
            return
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[host, port] = (asked.get_loop().time() + _TTL, asked.result())


def _ask_the_system(host: str, port: int) -> list[AddressInfo]:
    return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG))


def _few(found: list[AddressInfo]) -> list[AddressInfo]:
    counts: Counter[int] = Counter()
    few = []
    for each in found:
        counts[each[0]] += 1
        if counts[each[0]] <= _OF_A_FAMILY:
            few.append(each)
    return few


def _in_thread(
    loop: asyncio.AbstractEventLoop, look_up: LookUp, host: str, port: int
) -> "asyncio.Future[list[AddressInfo]]":
    found: asyncio.Future[list[AddressInfo]] = loop.create_future()

    def settle(act: Callable[[Any], None], value: object) -> None:
        if not found.done():
            act(value)

    def work() -> None:
        act: Callable[[Any], None] = found.set_result
        value: object
        try:
            value = _few(look_up(host, port))
        except Exception as error:  # noqa: BLE001 - it is raised to whoever waits
            act, value = found.set_exception, error
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, act, value)

    try:
        threading.Thread(target=work, name="outbox-resolve", daemon=True).start()
    except RuntimeError as error:
        raise UnsentError("No thread could be started to look up a name.") from error
    return found
