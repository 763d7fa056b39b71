"""Reads a subscriber's URL, once and strictly: the rules, the guard and the sender all go by what is read here.

Every other reader is more lenient somewhere, and a difference between who checks and who dials is a way in.
"""

import ipaddress
import re
from dataclasses import dataclass

LAST_PORT = 65_535

_URL = re.compile(r"(?P<scheme>https?)://(?P<authority>[^/?#]+)(?P<target>[^#]*)", re.IGNORECASE)
_AUTHORITY = re.compile(r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]+))(?P<colon>:(?P<port>[0-9]*))?")
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_NUMERIC = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")
_LONGEST_HOST_NAME = 253
_DEFAULT_PORTS = {"http": 80, "https": 443}


class UrlFaultError(ValueError):
    """The URL can not be posted to; the message is the rest of a sentence that begins with the field's name."""


@dataclass(frozen=True, slots=True)
class Url:
    """Where a URL leads."""

    is_tls: bool
    host: str
    """A name or an address, without brackets and without a name's final dot, in lower case."""
    port: int
    authority: str
    """What the Host field says."""
    target: str
    """Path and query, to the letter; a path is never empty."""


def parse(url: str) -> Url:
    """Return where a URL leads; raises UrlFaultError."""
    if not all("!" <= character <= "~" for character in url):
        raise UrlFaultError(
            "must be printable ASCII without spaces: percent-encode all other characters, and write a host as xn--…."
        )
    if "#" in url:
        raise UrlFaultError("must not have a fragment (#…): no server ever receives it.")
    parts = _URL.fullmatch(url)
    if parts is None:
        raise UrlFaultError("must be an absolute http or https URL.")
    scheme, target = parts["scheme"].lower(), parts["target"]
    host, port = _host_and_port(parts["authority"])
    number = _DEFAULT_PORTS[scheme] if port is None else port
    authority = f"[{host}]" if ":" in host else host
    return Url(
        scheme == "https",
        host,
        number,
        authority if number == _DEFAULT_PORTS[scheme] else f"{authority}:{number}",
        target if target.startswith("/") else f"/{target}",
    )


def _host_and_port(text: str) -> tuple[str, int | None]:
    if "@" in text:
        raise UrlFaultError("must not contain a user or password: use basic_auth_username and basic_auth_password.")
    authority = _AUTHORITY.fullmatch(text)
    if authority is None or not _is_host(authority["name"], authority["ipv6"]):
        raise UrlFaultError("must have a valid host: a name, an IPv4 address or an IPv6 address in brackets.")
    host = (authority["ipv6"] or authority["name"].removesuffix(".")).lower()
    if not authority["colon"]:
        return host, None
    port = authority["port"]
    if not (0 < len(port) <= len(str(LAST_PORT)) and 1 <= int(port) <= LAST_PORT):
        raise UrlFaultError(f"must have a port from 1 to {LAST_PORT}, or none.")
    return host, int(port)


def _is_host(name: str | None, ipv6: str | None) -> bool:
    if name is None:
        return _is_address(ipaddress.IPv6Address, ipv6 or "")
    labels = name.removesuffix(".").split(".")
    # Resolvers read 127.1, 0x7f.1 and 2130706433 as addresses. One who writes an address writes it in full.
    if _NUMERIC.fullmatch(labels[-1]):
        return _is_address(ipaddress.IPv4Address, name)
    return len(name) <= _LONGEST_HOST_NAME and all(_LABEL.fullmatch(label) for label in labels)


def _is_address(kind: type[ipaddress.IPv4Address | ipaddress.IPv6Address], text: str) -> bool:
    try:
        kind(text)
    except ValueError:
        return False
    return True
