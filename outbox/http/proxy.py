"""A tunnel through a forward proxy, by CONNECT to an address that was checked here.

The proxy is given addresses and no names: what it would look up itself nobody could check. CONNECT for http as well,
because a proxy that forwards a request writes the Host field anew, with the address.
"""

import asyncio
import base64
import re
import socket

from outbox.errors import UnsentError
from outbox.settings import Proxy

MAX_HEAD = 1 << 14
"""Bytes of the proxy's answer; a longer one is no answer of a proxy."""

_BLOCK = 4096
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])(?: [^\r\n]*)?\r\n")
_UNREACHED = (502, 503, 504)
_REFUSED_SIGN_IN = 407


class UnreachedError(Exception):
    """The proxy works, and says that it could not reach the address."""


async def open_tunnel(connected: socket.socket, proxy: Proxy, address: str, port: int) -> None:
    """Make a tunnel to the address of a socket that is connected to the proxy.

    Raises UnreachedError for what is the subscriber's fault, UnsentError for the proxy's own.
    """
    loop = asyncio.get_running_loop()
    try:
        await loop.sock_sendall(connected, _request(proxy, address, port))
        head = await _read_head(loop, connected)
    except OSError as error:
        raise UnsentError(f"The proxy broke the connection: {error.strerror}.") from error
    answer = _STATUS.match(head)
    _, end, rest = head.partition(b"\r\n\r\n")
    status = int(answer[1]) if answer and end else 0
    if status in _UNREACHED:
        raise UnreachedError(f"the proxy reached no server there (status {status})")
    if status == _REFUSED_SIGN_IN:
        raise UnsentError("The proxy wants another user name and password (status 407): see OUTBOX_PROXY.")
    if status >= 300:  # noqa: PLR2004 - a tunnel takes a 2xx
        raise UnsentError(f"The proxy refused CONNECT to port {port} (status {status}).")
    # A refusal may have a body. A tunnel begins behind its head, and the one who speaks first there is us.
    if status < 200 or rest:  # noqa: PLR2004 - as above
        raise UnsentError("The proxy gave no proper answer to CONNECT.")


def _request(proxy: Proxy, address: str, port: int) -> bytes:
    authority = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
    if proxy.username is not None:
        credentials = base64.b64encode(f"{proxy.username}:{proxy.password}".encode()).decode()
        lines.append(f"Proxy-Authorization: Basic {credentials}")
    return "\r\n".join([*lines, "", ""]).encode("ascii")


async def _read_head(loop: asyncio.AbstractEventLoop, connected: socket.socket) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head and len(head) < MAX_HEAD:
        block = await loop.sock_recv(connected, _BLOCK)
        if not block:
            break
        head += block
    return head
