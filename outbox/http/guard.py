"""Which addresses may be posted to: globally routable unicast, and what the operator allows. Pure; opens no socket.

Whoever edits a config chooses the URL, so without this the daemon would post into the operator's own network.
"""

import ipaddress
from collections.abc import Sequence

from outbox.settings import Network

# Our own table, because `is_global` differs between versions of Python and gives no reason. The first match counts.
# IPv6 addresses that carry an IPv4 address are refused whole: what they reach depends on the network between.
_SPECIAL: tuple[tuple[Network, str], ...] = tuple(
    (ipaddress.ip_network(network), reason)
    for network, reason in (
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


def verdict(address: str, allowed: Sequence[Network]) -> str | None:
    """Return None when a numeric address may be posted to, else what it is that it may not ("a loopback address")."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return "no IP address"
    if any(ip in network for network in allowed):
        return None
    for network, reason in _SPECIAL:
        if ip in network:
            return reason
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.scope_id is not None:
            return "an address with a zone"
        if ip not in _GLOBAL_UNICAST:
            return "a reserved address"
    return None
