"""Where may be posted to: globally routable unicast, and what the operator allows. Pure; opens no socket.

Whoever edits a config chooses the URL, so without this the daemon would post into the operator's own network.
"""

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self

from outbox.core.url import UrlFaultError, parse
from outbox.settings import DEFAULT_PORTS, Network, Settings

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Our own table, because `is_global` differs between versions of Python and gives no reason. The first match counts.
# IPv6 addresses that carry an IPv4 address are refused whole: what they reach depends on the network between.
_SPECIAL: tuple[tuple[Network, str], ...] = tuple(
    (ipaddress.ip_network(network), reason)
    for network, reason in (
        ("100.100.100.200/32", "a cloud's metadata address"),
        ("168.63.129.16/32", "a cloud's metadata address"),
        ("169.254.169.254/32", "a cloud's metadata address"),
        ("fd00:ec2::254/128", "a cloud's metadata address"),
        ("0.0.0.0/8", "an unspecified address"),
        ("10.0.0.0/8", "a private address"),
        ("100.64.0.0/10", "a carrier-grade NAT address"),
        ("127.0.0.0/8", "a loopback address"),
        ("169.254.0.0/16", "a link-local address"),
        ("172.16.0.0/12", "a private address"),
        ("192.0.0.0/24", "a reserved address"),
        ("192.0.2.0/24", "a documentation address"),
        ("192.88.99.0/24", "a 6to4 relay address"),
        ("192.168.0.0/16", "a private address"),
        ("198.18.0.0/15", "a benchmarking address"),
        ("198.51.100.0/24", "a documentation address"),
        ("203.0.113.0/24", "a documentation address"),
        ("224.0.0.0/4", "a multicast address"),
        ("240.0.0.0/4", "a reserved address"),
        ("::/128", "an unspecified address"),
        ("::1/128", "a loopback address"),
        ("::/96", "an IPv4-compatible address"),
        ("::ffff:0:0/96", "an IPv4-mapped address"),
        ("64:ff9b::/96", "a NAT64 address"),
        ("64:ff9b:1::/48", "a NAT64 address"),
        ("2001::/32", "a Teredo address"),
        ("2001:2::/48", "a benchmarking address"),
        ("2001:db8::/32", "a documentation address"),
        ("2001::/23", "a reserved address"),
        ("2002::/16", "a 6to4 address"),
        ("3fff::/20", "a documentation address"),
        ("fc00::/7", "a private address"),
        ("fe80::/10", "a link-local address"),
        ("fec0::/10", "a private address"),
        ("ff00::/8", "a multicast address"),
    )
)
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")
_CARRY_IPV4 = (
    *(ipaddress.IPv6Network(network) for network in ("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96")),
    _LOCAL_NAT64,
)
"""Where the last 32 bits are an IPv4 address that may be reached."""


class Endpoint(NamedTuple):
    """Where a connection leads. A tuple, because it is looked up for each POST."""

    is_tls: bool
    host: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """What the operator lets out. `ports`: of URLs; `deny` counts more than `allow`."""

    allow: tuple[Network, ...] = ()
    deny: tuple[Network, ...] = ()
    ports: tuple[range, ...] = DEFAULT_PORTS
    require_https: bool = False

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the guard of these settings."""
        return cls(
            allow=settings.allow_networks,
            deny=settings.deny_networks,
            ports=settings.allow_ports,
            require_https=settings.require_https,
        )

    def url_fault(self, url: str) -> str | None:
        """Return what is wrong with a new config's URL, as the rest of a sentence, or None.

        No name is looked up: what it means is known only when it is dialled.
        """
        try:
            read = parse(url)
        except UrlFaultError as fault:
            return str(fault)
        refusal = self.refusal(Endpoint(read.is_tls, read.host, read.port))
        return None if refusal is None else f"is forbidden: {refusal}."

    def refusal(self, endpoint: Endpoint) -> str | None:
        """Return why nothing is sent to an endpoint, as far as its scheme, port and host tell, or None."""
        if self.require_https and not endpoint.is_tls:
            return "http is not allowed, only https"
        if not any(endpoint.port in ports for ports in self.ports):
            return f"port {endpoint.port} is not allowed, only {', '.join(map(_ports_in_words, self.ports))}"
        if is_numeric(endpoint.host):
            what = self.address_refusal(endpoint.host)
            return None if what is None else f"{endpoint.host} is {what}"
        return None

    def address_refusal(self, address: str) -> str | None:
        """Return what it is that keeps an address from being posted to ("a loopback address, …"), or None."""
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            return "no IP address"
        if (denied := self.denied(address)) is not None:
            return f"in {denied}, which is denied"
        if any(ip in network for network in self.allow):
            return None
        kind = _kind(ip)
        return None if kind is None else f"{kind}, and no allowed network has it"

    def denied(self, address: str) -> Network | None:
        """Return the denied network that an address is in, itself or by the IPv4 address that it carries, or None."""
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            return None
        for network in self.deny:
            if any(each in network for each in (ip, *_carried(ip))):
                return network
        return None


def is_numeric(host: str) -> bool:
    """Tell whether a host is an address in full, and no name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _kind(ip: Address) -> str | None:
    """Return what an address is that is not globally routable unicast, or None."""
    for network, kind in _SPECIAL:
        if ip in network:
            return kind
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.scope_id is not None:
            return "an address with a zone"
        if ip not in _GLOBAL_UNICAST:
            return "a reserved address"
    return None


def _carried(ip: Address) -> Iterator[ipaddress.IPv4Address]:
    """Give the IPv4 addresses that may be reached by way of an IPv6 address."""
    if isinstance(ip, ipaddress.IPv4Address):
        return
    packed = ip.packed
    if any(ip in network for network in _CARRY_IPV4):
        yield ipaddress.IPv4Address(packed[12:])
    if ip in _LOCAL_NAT64:
        # Whoever runs it chooses how long the prefix is: 48, 56 or 64 bits as well, around byte 8 (RFC 6052).
        for carried in (packed[6:8] + packed[9:11], packed[7:8] + packed[9:12], packed[9:13]):
            yield ipaddress.IPv4Address(carried)
    if ip.sixtofour:
        yield ip.sixtofour
    if ip.teredo:
        yield from ip.teredo


def _ports_in_words(ports: range) -> str:
    return str(ports[0]) if len(ports) == 1 else f"{ports[0]}-{ports[-1]}"
