"""What a name may cost: one thread while its server hangs, and a few dials, however many addresses it has."""

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Iterator

import pytest

from outbox.core.model import Answer, Failure, FailureKind
from outbox.http.resolver import AddressInfo, Resolver
from outbox.http.sender import Sender
from tests.dials import dialled
from tests.receiver import Receiver, Refusing

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)
BODY = b"type=CREATE"


class Hanging:
    """A look-up that hangs until it is let go; then it finds the loopback address, or raises its `gaierror`."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.let_go = threading.Event()
        self.gaierror: socket.gaierror | None = None

    def __call__(self, host: str, port: int) -> list[AddressInfo]:
        """Note the name, and hang."""
        self.asked.append(host)
        self.let_go.wait()
        if self.gaierror:
            raise self.gaierror
        return addresses(port, "127.0.0.1")


def addresses(port: int, *texts: str) -> list[AddressInfo]:
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in texts]


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    """One that lets go at the end, whatever comes."""
    look_up = Hanging()
    try:
        yield look_up
    finally:
        look_up.let_go.set()


async def test_a_name_whose_server_hangs_costs_one_thread(hanging: Hanging) -> None:
    """Those that wait share it, and so do those that come when the first have given up; another name has its own."""
    async with Sender(timeout=0.1, allow_networks=LOOPBACK, look_up=hanging) as sender:
        for _ in range(3):
            for result in await asyncio.gather(*[sender.post("http://slow.example/", BODY, {}) for _ in range(5)]):
                assert isinstance(result, Failure)
                assert result.kind is FailureKind.TIMEOUT
        await sender.post("http://other.example/", BODY, {})
    assert hanging.asked == ["slow.example", "other.example"]


async def test_an_answer_that_comes_late_is_used(hanging: Hanging) -> None:
    """The POST that asked has timed out; the next one need not ask again."""
    with Receiver() as receiver:
        url = receiver.url.replace("127.0.0.1", "slow.example")
        async with Sender(timeout=0.1, allow_networks=LOOPBACK, look_up=hanging) as hurried:
            assert isinstance(await hurried.post(url, BODY, {}), Failure)
            hanging.let_go.set()
            async with asyncio.timeout(30):
                while not isinstance(await hurried.post(url, BODY, {}), Answer):
                    pass
    assert hanging.asked == ["slow.example"]


async def test_whoever_waits_hears_of_a_failure(hanging: Hanging) -> None:
    """All of them, and a look-up that failed is made again."""
    hanging.gaierror = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    async with Sender(timeout=30, allow_networks=LOOPBACK, look_up=hanging) as sender:
        posts = [asyncio.create_task(sender.post("http://slow.example/", BODY, {})) for _ in range(3)]
        while not hanging.asked:  # noqa: ASYNC110 - it is asked in another thread
            await asyncio.sleep(0.005)
        posts[0].cancel()
        hanging.let_go.set()
        for post in posts[1:]:
            assert await post == Failure(FailureKind.RESOLVE, "the host has no address: Name or service not known")
        await sender.post("http://slow.example/", BODY, {})
    assert hanging.asked == ["slow.example"] * 2


async def test_a_name_of_thousands_of_addresses_is_dialled_a_few_times() -> None:
    """Else one try would search a whole network for whoever owns the name, and take descriptors for each address."""
    many = [f"127.1.{n // 250}.{n % 250 + 1}" for n in range(2000)]
    with Refusing() as url:
        async with Sender(
            timeout=30, allow_networks=LOOPBACK, look_up=lambda _, port: addresses(port, *many)
        ) as sender:
            with dialled() as heard:
                result = await sender.post(url.replace("127.0.0.1", "many.example"), BODY, {})
    assert isinstance(result, Failure)
    assert result.kind is FailureKind.CONNECT
    assert [address for address, _ in heard] == many[:4]


async def test_a_family_of_addresses_leaves_room_for_the_other() -> None:
    """Many IPv6 addresses do not push out the IPv4 address that can be reached."""

    def look_up(_host: str, port: int) -> list[AddressInfo]:
        six = [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", (f"2001:db8::{n}", port, 0, 0)) for n in range(1, 21)]
        return [*six, *addresses(port, "127.0.0.1")]

    found = await Resolver(look_up).addresses("many.example", 80)
    assert [each[4][0] for each in found] == [*(f"2001:db8::{n}" for n in range(1, 5)), "127.0.0.1"]
