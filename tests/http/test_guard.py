"""The guard lets through globally routable unicast and what is allowed, and nothing else."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.http.guard import Guard
from outbox.settings import Network


def networks(*texts: str) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


def verdict(address: str, allow: tuple[Network, ...] = (), deny: tuple[Network, ...] = ()) -> str | None:
    return Guard(allow=allow, deny=deny).address_refusal(address)


@pytest.mark.parametrize(
    "address",
    [
        *("1.1.1.1", "8.8.8.8", "172.15.255.255", "172.32.0.0", "100.63.255.255", "100.128.0.0", "223.255.255.255"),
        *("192.0.1.0", "198.17.255.255", "198.20.0.0", "2606:4700:4700::1111", "2a00:1450::1", "2400::1"),
    ],
)
def test_global_addresses_may_be_posted_to(address: str) -> None:
    """What is routed on the whole internet needs no permission, up to the edges of what is not."""
    assert verdict(address) is None


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("0.0.0.0", "unspecified"),
        ("0.1.2.3", "unspecified"),
        ("10.255.255.255", "private"),
        ("172.16.0.1", "private"),
        ("172.31.255.255", "private"),
        ("192.168.1.1", "private"),
        ("100.64.0.1", "carrier-grade NAT"),
        ("127.0.0.1", "loopback"),
        ("127.255.255.254", "loopback"),
        ("169.254.1.1", "link-local"),
        ("192.0.0.8", "reserved"),
        ("192.0.2.1", "documentation"),
        ("198.51.100.1", "documentation"),
        ("203.0.113.1", "documentation"),
        ("192.88.99.1", "6to4"),
        ("198.19.0.1", "benchmarking"),
        ("224.0.0.1", "multicast"),
        ("239.255.255.255", "multicast"),
        ("240.0.0.1", "reserved"),
        ("255.255.255.255", "reserved"),
        ("::", "unspecified"),
        ("::1", "loopback"),
        ("::7f00:1", "IPv4-compatible"),
        ("::ffff:127.0.0.1", "IPv4-mapped"),
        ("::ffff:8.8.8.8", "IPv4-mapped"),
        ("::ffff:0:7f00:1", "reserved"),
        ("64:ff9b::7f00:1", "NAT64"),
        ("64:ff9b:1::1", "NAT64"),
        ("100::1", "reserved"),
        ("2001::1", "Teredo"),
        ("2001:2::1", "benchmarking"),
        ("2001:10::1", "reserved"),
        ("2001:db8::1", "documentation"),
        ("3fff::1", "documentation"),
        ("2002:7f00:1::", "6to4"),
        ("fc00::1", "private"),
        ("fd12:3456::1", "private"),
        ("fe80::1", "link-local"),
        ("fe80::1%eth0", "link-local"),
        ("2606:4700::1%eth0", "zone"),
        ("fec0::1", "private"),
        ("ff02::1", "multicast"),
        ("5f00::1", "reserved"),
        ("4000::1", "reserved"),
        ("localhost", "no IP address"),
        ("127.1", "no IP address"),
        ("0177.0.0.1", "no IP address"),
        ("", "no IP address"),
    ],
)
def test_everything_else_is_refused_with_its_reason(address: str, reason: str) -> None:
    """A person reads why."""
    found = verdict(address)
    assert found is not None
    assert reason in found


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("127.0.0.1", "127.0.0.0/8"),
        ("10.1.2.3", "10.1.0.0/16"),
        ("::1", "::1/128"),
        ("fe80::1%2", "fe80::/10"),
        ("64:ff9b::808:808", "64:ff9b::/96"),
        ("255.255.255.255", "0.0.0.0/0"),
    ],
)
def test_what_is_inside_an_allowed_network_is_permitted(address: str, allowed: str) -> None:
    """The operator's word counts for whatever the network contains, beside others that do not."""
    assert verdict(address, networks("192.168.0.0/24", "fd00::/8", allowed)) is None


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("10.2.0.1", "10.1.0.0/16"),
        ("::ffff:127.0.0.1", "127.0.0.0/8"),
        ("2002:7f00:1::", "127.0.0.0/8"),
        ("::1", "0.0.0.0/0"),
        ("127.0.0.1", "::/0"),
    ],
)
def test_an_allowed_network_opens_no_other_door(address: str, allowed: str) -> None:
    """An IPv4 network allows no IPv6 address that carries one of its own."""
    assert verdict(address, networks(allowed)) is not None


@given(st.ip_addresses())
def test_nothing_passes_that_python_knows_as_not_global(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    """The table is no weaker than the standard library's."""
    if not address.is_global or address.is_multicast:
        assert verdict(str(address)) is not None
