"""What was checked is what is dialled: by names that move, by names of several addresses, by any URL."""

import ipaddress
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outbox.core.model import Answer, Failure, FailureKind
from outbox.core.url import parse
from outbox.http import resolver
from outbox.http.guard import Guard
from outbox.http.resolver import AddressInfo
from outbox.http.sender import Sender
from tests.dials import dialled
from tests.nameserver import AAAA, A, NameServer, asking
from tests.receiver import CloseWithoutAnswer, Receiver, Refusing

ONE = (ipaddress.ip_network("127.0.0.1/32"),)
"""What these senders may post to: of all loopback addresses one."""
EVERYTHING = (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0"))
BODY = b"type=CREATE"
ROOT = Path(__file__).parents[2]


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


async def test_a_name_that_moves_between_check_and_connect() -> None:
    """The name is looked up once; the next answer, a forbidden address, meets nobody who asks."""
    with NameServer(["127.0.0.1"], ["127.0.0.2"]) as server, Receiver() as receiver:
        async with Sender(timeout=30, allow_networks=ONE, look_up=asking(server.address)) as sender:
            with dialled() as heard:
                result = await sender.post(receiver.url.replace("127.0.0.1", "rebind.example"), BODY, {})
        assert result == Answer(200)
        assert server.asked == {A: 1, AAAA: 1}
        assert [address for address in heard if address != server.address] == [("127.0.0.1", port_of(receiver.url))]


async def test_each_new_connection_is_checked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that was allowed a moment ago has no credit: when its name has moved, nothing is dialled."""
    monkeypatch.setattr(resolver, "_TTL", 0.0)
    with NameServer(["127.0.0.1"], ["127.0.0.1"], ["127.0.0.2"]) as server, Receiver() as receiver:
        url = receiver.url.replace("127.0.0.1", "rebind.example")
        receiver.answer("/", CloseWithoutAnswer())
        async with Sender(timeout=30, allow_networks=ONE, look_up=asking(server.address)) as sender:
            for _ in range(2):
                assert isinstance(await sender.post(url, BODY, {}), Failure)
            with dialled() as heard:
                result = await sender.post(url, BODY, {})
        assert receiver.connections == 2
    assert isinstance(result, Failure)
    assert (result.kind, result.address) == (FailureKind.FORBIDDEN, "127.0.0.2")
    assert result.message == "the host's address is a loopback address, and no allowed network has it"
    assert {address for address in heard if address != server.address} == set()


@pytest.mark.parametrize("order", [1, -1])
async def test_of_several_addresses_only_the_allowed_are_dialled(order: int) -> None:
    """Also when the allowed one refuses the connection: the forbidden ones are no second choice."""
    addresses = ["10.0.0.1", "127.0.0.2", "127.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1", "fe80::1"][::order]
    with NameServer(addresses) as server, Receiver() as receiver, Refusing() as refusing:
        async with Sender(timeout=30, allow_networks=ONE, look_up=asking(server.address)) as sender:
            with dialled() as heard:
                taken = await sender.post(receiver.url.replace("127.0.0.1", "many.example"), BODY, {})
                refused = await sender.post(refusing.replace("127.0.0.1", "many.example"), BODY, {})
    assert taken == Answer(200)
    assert isinstance(refused, Failure)
    assert refused.kind is FailureKind.CONNECT
    assert [address for address in heard if address != server.address] == [
        ("127.0.0.1", port_of(receiver.url)),
        ("127.0.0.1", port_of(refusing)),
    ]


def test_a_name_that_moves_by_the_systems_own_resolver() -> None:
    """The same with getaddrinfo and a resolv.conf that names the moving server, in namespaces of our own."""
    alone = ["unshare", "--map-root-user", "--mount", "--net"]
    try:
        possible = subprocess.run([*alone, "ip", "link", "set", "lo", "up"], capture_output=True, check=False)
    except FileNotFoundError as missing:
        pytest.skip(f"needs {missing.filename}")
    if possible.returncode:
        pytest.skip("needs the right to make user, mount and network namespaces")
    done = subprocess.run(
        [*alone, sys.executable, "-m", "tests.rebinding"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told == {
        "results": [200, "forbidden"], "asked": 2, "port": told["port"], "hosts": [f"rebind.example:{told['port']}"],
    }  # fmt: skip


NAMES = st.from_regex(r"[a-zA-Z_]([a-zA-Z0-9_-]{0,8}[a-z])?(\.[a-zA-Z]{1,9}){0,3}\.?", fullmatch=True)
TARGETS = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="#"), max_size=30)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=NAMES, mark=st.sampled_from(["/", "?", ""]), target=TARGETS)
async def test_what_is_checked_is_what_is_dialled(name: str, mark: str, target: str) -> None:
    """Host, port and target of any accepted URL reach the resolver, the socket and the server as they were read."""
    asked: list[tuple[str, int]] = []

    def look_up(host: str, port: int) -> list[AddressInfo]:
        asked.append((host, port))
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    with Receiver() as receiver:
        url = f"http://{name}:{port_of(receiver.url)}{mark}{target if mark else ''}"
        if (fault := Guard().url_fault(url)) is not None:
            assert fault.startswith("must ")
            return
        async with Sender(timeout=30, allow_networks=ONE, look_up=look_up) as sender:
            with dialled() as heard:
                assert await sender.post(url, BODY, {}) == Answer(200)
        read = parse(url)
        [request] = receiver.requests
    assert asked == [(read.host, read.port)]
    assert heard == [("127.0.0.1", read.port)]
    assert (request.path, request.headers["Host"]) == (read.target, f"{name.lower().removesuffix('.')}:{read.port}")


ADDRESSES = st.one_of(
    st.ip_addresses(network="127.0.0.0/30"),
    st.ip_addresses(network="127.0.0.0/8"),
    st.ip_addresses(network="10.0.0.0/8"),
    st.ip_addresses(network="fd00::/8"),
    st.ip_addresses(network="::ffff:127.0.0.0/104"),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(ADDRESSES, min_size=1, max_size=4))  # more of a family are not used: see test_look_ups.py
async def test_no_answer_of_a_resolver_gets_past_the_guard(
    addresses: list[ipaddress.IPv4Address | ipaddress.IPv6Address],
) -> None:
    """Whatever addresses a name has, each that is dialled was allowed, and FORBIDDEN means that none was dialled."""

    def look_up(_host: str, port: int) -> list[AddressInfo]:
        return [
            (socket.AF_INET if each.version == 4 else socket.AF_INET6, socket.SOCK_STREAM, 6, "",
             (str(each), port) if each.version == 4 else (str(each), port, 0, 0))
            for each in addresses
        ]  # fmt: skip

    with Refusing() as url:
        async with Sender(timeout=30, allow_networks=ONE, look_up=look_up) as sender:
            with dialled() as heard:
                result = await sender.post(url.replace("127.0.0.1", "any.example"), BODY, {})
    assert isinstance(result, Failure)
    assert {address for address, *_ in heard} == {"127.0.0.1"} & {str(each) for each in addresses}
    assert result.kind is (FailureKind.CONNECT if heard else FailureKind.FORBIDDEN)


HALF_RIGHT = st.one_of(
    st.text(max_size=40),
    st.builds("http://{}/".format, st.text(max_size=30)),
    st.builds(
        "{}://{}{}".format,
        st.sampled_from(["http", "https", "HTTP", "ftp"]),
        st.text("[]:.@\\/#?%0123fx", max_size=20),
        st.text(max_size=5),
    ),
    st.builds("http://[{}]:{}/".format, st.text("0123456789abcdef:.%", max_size=40), st.integers(-1, 70_000)),
)


@settings(max_examples=400, deadline=None)
@given(HALF_RIGHT)
async def test_no_url_raises_or_is_dialled_without_having_been_read(url: str) -> None:
    """Any text is read or has a fault; the sender goes by the same reading, and nothing but a Failure comes back."""
    asked: list[str] = []

    def look_up(host: str, _port: int) -> list[AddressInfo]:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async with Sender(timeout=30, look_up=look_up, deny_networks=EVERYTHING) as sender:
        with dialled() as heard:
            result = await sender.post(url, BODY, {})
    assert isinstance(result, Failure)
    assert heard == []
    fault = Guard(deny=EVERYTHING).url_fault(url)
    match result.kind:
        case FailureKind.FORBIDDEN:
            assert fault is not None
            assert fault.startswith("is forbidden: ")
        case FailureKind.RESOLVE if fault is None:
            assert asked == [parse(url).host]
        case kind:
            assert (kind, asked) == (FailureKind.RESOLVE, [])
            assert str(fault).startswith("must ")
