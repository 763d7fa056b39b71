"""A small real DNS server over UDP on loopback whose answers change from one question to the next; for tests only."""

import socket
import struct
import threading
from collections import deque
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Self

from outbox.http.resolver import AddressInfo, LookUp

A, AAAA = 1, 28
_HEADER = struct.Struct("!6H")
_RESPONSE = 0x8580  # an authoritative answer, recursion wanted and there


class NameServer:
    """Answers each question for an address with the next of its answers, and with the last one ever after.

    An answer is a list of addresses of both families. `asked`: how often a family's addresses were asked for.
    """

    def __init__(self, *answers: Sequence[str], address: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        self._scripts = {kind: deque(answers) for kind in (A, AAAA)}
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(address)
        self._thread = threading.Thread(target=self._serve, name="nameserver")
        self.address: tuple[str, int] = self._socket.getsockname()
        self.asked = {A: 0, AAAA: 0}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # An empty datagram, because closing a socket does not wake the thread that reads from it.
        self._socket.sendto(b"", self.address)
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            query, client = self._socket.recvfrom(512)
            if not query:
                return
            self._socket.sendto(self._answer(query), client)

    def _answer(self, query: bytes) -> bytes:
        number, _, _, _, _, _ = _HEADER.unpack_from(query)
        end = query.index(b"\0", _HEADER.size) + 5
        (kind,) = struct.unpack_from("!H", query, end - 4)
        records = []
        if kind in self._scripts:
            self.asked[kind] += 1
            script = self._scripts[kind]
            addresses = script.popleft() if len(script) > 1 else script[0]
            packed = [ip_address(each).packed for each in addresses]
            records = [each for each in packed if len(each) == (4 if kind == A else 16)]
        # A name that points to the question's, a time to live of none.
        rows = [struct.pack("!HHHIH", 0xC00C, kind, 1, 0, len(each)) + each for each in records]
        header = _HEADER.pack(number, _RESPONSE, 1, len(rows), 0, 0)
        return header + query[_HEADER.size : end] + b"".join(rows)


def asking(server: tuple[str, int]) -> LookUp:
    """Return a look-up that asks this server over a socket, once for each family, as the system's resolver does."""

    def look_up(host: str, port: int) -> list[AddressInfo]:
        found: list[AddressInfo] = []
        for kind, family in ((A, socket.AF_INET), (AAAA, socket.AF_INET6)):
            for packed in _ask(server, host, kind):
                sockaddr = (socket.inet_ntop(family, packed), port, *((0, 0) if kind == AAAA else ()))
                found.append((family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", sockaddr))
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return found

    return look_up


def _ask(server: tuple[str, int], host: str, kind: int) -> list[bytes]:
    labels = b"".join(bytes([len(label)]) + label.encode("ascii") for label in host.split("."))
    query = _HEADER.pack(7, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", kind, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.settimeout(30)
        asker.connect(server)
        asker.send(query)
        answer = asker.recv(512)
    count = _HEADER.unpack_from(answer)[3]
    found, at = [], len(query)
    for _ in range(count):
        (length,) = struct.unpack_from("!H", answer, at + 10)
        found.append(answer[at + 12 : at + 12 + length])
        at += 12 + length
    return found
