"""Through a forward proxy only the way changes: names are looked up and checked here, and its faults are ours."""

import ipaddress
import socket
from pathlib import Path

import pytest

from outbox.core.model import Answer, Failure, FailureKind
from outbox.errors import UnsentError
from outbox.http.proxy import MAX_HEAD
from outbox.http.resolver import AddressInfo, LookUp
from outbox.http.sender import Sender
from outbox.settings import Proxy
from tests.certificates import Authority
from tests.dials import dialled
from tests.proxies import Answering, Deaf, ForwardProxy, hang, saying, status
from tests.receiver import Receiver, Refusing

ONE = (ipaddress.ip_network("127.0.0.1/32"),)
BODY = b"type=CREATE"


def through(proxy: ForwardProxy, credentials: str | None = None) -> Proxy:
    username, _, password = (credentials or "").partition(":")
    return Proxy("127.0.0.1", proxy.port, username if credentials else None, password)


def meaning(*addresses: str) -> LookUp:
    """Return a look-up by which every name has these addresses."""

    def look_up(_host: str, port: int) -> list[AddressInfo]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in addresses]

    return look_up


@pytest.mark.parametrize("credentials", [None, "user:pass:wörd"])
async def test_http_leaves_through_a_tunnel_to_the_checked_address(credentials: str | None) -> None:
    """The proxy is told an address, never the name; the server is told the name, and nothing of the proxy."""
    with ForwardProxy(credentials=credentials) as proxy, Receiver() as receiver:
        url = receiver.url_for("/in?a=%20b").replace("127.0.0.1", "sub.example")
        port = url.split(":")[2].partition("/")[0]
        async with Sender(
            timeout=30, allow_networks=ONE, proxy=through(proxy, credentials), look_up=meaning("127.0.0.1")
        ) as sender:
            with dialled() as heard:
                for _ in range(3):
                    assert await sender.post(url, BODY, {"webhook-id": "1"}) == Answer(200)
        assert heard[0] == ("127.0.0.1", proxy.port)
    [(first, fields)] = proxy.heads  # a tunnel is kept alive like any connection
    assert first == f"CONNECT 127.0.0.1:{port} HTTP/1.1"
    assert fields.keys() == {"host", "proxy-authorization"} if credentials else {"host"}
    assert fields["host"] == f"127.0.0.1:{port}"
    assert [(request.path, request.headers["Host"]) for request in receiver.requests] == [
        ("/in?a=%20b", f"sub.example:{port}")
    ] * 3
    assert {name.lower() for name in receiver.requests[0].headers} == {
        "host", "accept", "accept-encoding", "webhook-id", "content-length",
    }  # fmt: skip


async def test_https_is_between_us_and_the_server(tmp_path: Path) -> None:
    """The certificate is verified for the name, through the tunnel as without one."""
    authority = Authority(tmp_path)
    with ForwardProxy() as proxy:
        for names, accepted in ((("sub.example",), True), (("127.0.0.1",), False)):
            with Receiver(tls=authority.issue(*names)) as receiver:
                async with Sender(
                    timeout=30, allow_networks=ONE, proxy=through(proxy), look_up=meaning("127.0.0.1"),
                    ca_file=authority.ca_file,
                ) as sender:  # fmt: skip
                    result = await sender.post(receiver.url.replace("127.0.0.1", "sub.example"), BODY, {})
            assert (result == Answer(200)) == accepted
            assert accepted or (isinstance(result, Failure) and result.kind is FailureKind.TLS)


@pytest.mark.parametrize("addresses", [["127.0.0.2"], ["10.0.0.1", "169.254.169.254"]])
async def test_the_proxy_is_not_asked_for_what_is_forbidden(addresses: list[str]) -> None:
    """A proxy opens no door: it does not even learn of the try."""
    with ForwardProxy() as proxy:
        async with Sender(timeout=30, allow_networks=ONE, proxy=through(proxy), look_up=meaning(*addresses)) as sender:
            with dialled() as heard:
                for url in ("http://sub.example/", f"https://{addresses[0]}/", "http://sub.example:22/"):
                    result = await sender.post(url, BODY, {})
                    assert isinstance(result, Failure)
                    assert result.kind is FailureKind.FORBIDDEN
        assert (proxy.heads, heard) == ([], [])


async def test_the_next_address_is_tried_when_the_proxy_does_not_reach_one() -> None:
    """One after another, and of the allowed ones only."""
    loopback = (ipaddress.ip_network("127.0.0.0/8"),)
    with ForwardProxy() as proxy, Receiver() as receiver:
        async with Sender(
            timeout=30, allow_networks=loopback, proxy=through(proxy),
            look_up=meaning("10.0.0.1", "127.0.0.3", "127.0.0.1"),
        ) as sender:  # fmt: skip
            assert await sender.post(receiver.url.replace("127.0.0.1", "sub.example"), BODY, {}) == Answer(200)
        assert [first.split(":")[0] for first, _ in proxy.heads] == ["CONNECT 127.0.0.3", "CONNECT 127.0.0.1"]


async def test_a_server_that_the_proxy_does_not_reach_is_its_own_fault() -> None:
    """502, 503 and 504 are the proxy's word on the server: the try counts."""
    with ForwardProxy() as proxy, Refusing() as url:
        async with Sender(timeout=30, allow_networks=ONE, proxy=through(proxy)) as sender:
            result = await sender.post(url, BODY, {})
        assert result == Failure(FailureKind.CONNECT, "no connection: the proxy reached no server there (status 502)")
    for code in (503, 504):
        with ForwardProxy(answering=status(code)) as proxy:
            async with Sender(timeout=30, allow_networks=ONE, proxy=through(proxy)) as sender:
                result = await sender.post("http://127.0.0.1/", BODY, {})
        assert isinstance(result, Failure)
        assert result.kind is FailureKind.CONNECT


async def test_a_tunnel_that_is_never_made_counts_as_a_timeout() -> None:
    """The proxy is there and waits for the server, as far as anybody can tell."""
    with ForwardProxy(answering=hang) as proxy:
        async with Sender(timeout=0.3, allow_networks=ONE, proxy=through(proxy)) as sender:
            result = await sender.post("http://127.0.0.1/", BODY, {})
    assert isinstance(result, Failure)
    assert result.kind is FailureKind.TIMEOUT


async def quit_(_reader: object, _writer: object) -> None:
    """Close without a word."""


@pytest.mark.parametrize(
    ("answering", "words"),
    [
        (status(407), "another user name and password"),
        (status(403), r"refused CONNECT to port 80 \(status 403\)"),
        (status(400), "status 400"),
        (status(302), "status 302"),
        (status(500), "status 500"),
        (status(101), "no proper answer"),
        (quit_, "no proper answer"),
        (saying(b"SSH-2.0-OpenSSH\r\n\r\n"), "no proper answer"),
        (saying(b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"), "no proper answer"),
        (saying(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 2 * MAX_HEAD), "no proper answer"),
        (saying(b"HTTP/1.1 2000 OK\r\n\r\n"), "no proper answer"),
        (saying(b"\x1b[2J\0\r\n\r\n"), "no proper answer"),
    ],
)
async def test_the_proxys_own_failure_is_not_the_subscribers(answering: Answering, words: str) -> None:
    """Nothing was sent, and nobody's try is used up."""
    with ForwardProxy(answering=answering) as proxy, Receiver() as receiver:
        async with Sender(timeout=30, allow_networks=ONE, proxy=through(proxy, "user:secret")) as sender:
            with pytest.raises(UnsentError, match=words) as caught:
                await sender.post("http://127.0.0.1/", BODY, {})
        assert receiver.requests == []
    assert "secret" not in str(caught.value)
    assert str(caught.value).isprintable()


async def test_a_proxy_that_can_not_be_reached_is_not_the_subscribers_fault() -> None:
    """Refused, silent, or without an address."""
    with Refusing() as url, Deaf() as deaf:
        port = int(url.rpartition(":")[2])
        for proxy in (Proxy("127.0.0.1", port), Proxy("127.0.0.1", deaf), Proxy("proxy.invalid", 3128)):
            async with Sender(timeout=1, allow_networks=ONE, proxy=proxy) as sender:
                with pytest.raises(UnsentError, match="The proxy can not be reached: "):
                    await sender.post("http://127.0.0.1/", BODY, {})
