"""Every setting: its name, its form, its default. Read from strings, all faults told at once; used by no core module.

A setting `name` is the flag `--name` and the environment variable `OUTBOX_NAME`; a secret is a variable only,
because a process list shows flags.
"""

import dataclasses
import ipaddress
import logging
import re
import ssl
import urllib.parse
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from outbox.core.url import LAST_PORT, UrlFaultError, parse
from outbox.errors import UsageError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

DEFAULT_PORTS = (range(80, 81), range(443, 444), range(1024, LAST_PORT + 1))
"""Web servers', and those that no system service of old has: a subscriber reaches no SMTP, SSH or DNS through us."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """The forward proxy through which all POSTs leave."""

    host: str
    port: int
    username: str | None = None
    password: str = field(default="", repr=False)


_LOG_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?")


class Pooling(StrEnum):
    """Whose a session of the database is."""

    AUTO = "auto"
    """That of the connection, unless a pooler stands between: then the transaction's."""
    SESSION = "session"
    """That of the connection: PgBouncer in session mode."""
    TRANSACTION = "transaction"
    """That of each transaction: PgBouncer in transaction mode, or another pooler like it."""


class _WrongError(ValueError):
    """A value that a setting does not accept; the message says what it accepts."""


def _count(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"\d{1,9}", text) or not least <= int(text) <= most:
            raise _WrongError(f"a whole number from {least} to {most}")
        return int(text)

    return parse


def _seconds(least: float, most: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        found = _DURATION.fullmatch(text)
        value = float(found[1]) * _UNITS[found[2] or "s"] if found else -1.0
        if not least <= value <= most:
            raise _WrongError(
                f"a time from {_in_words(least)} to {_in_words(most)}, such as 15 (seconds), 500ms, 30s, 5m, 12h or 30d"
            )
        return value

    return parse


def _in_words(seconds: float) -> str:
    for unit, size in reversed(_UNITS.items()):
        count = round(seconds / size, 6)
        if count >= 1 and count == int(count):
            return f"{count:g}{unit}"
    return f"{seconds:g}s"


def _networks(text: str) -> tuple[Network, ...]:
    try:
        return tuple(ipaddress.ip_network(each.strip()) for each in text.split(",") if each.strip())
    except ValueError as error:
        raise _WrongError(
            f"networks in CIDR form, separated by commas, such as 127.0.0.0/8,10.1.0.0/16 ({error})"
        ) from None


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not re.fullmatch(r"\d{1,5}", port) or int(port) > 65535:  # noqa: PLR2004 - the last port
        raise _WrongError("host:port, such as 127.0.0.1:8080 or [::1]:8080")
    return host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port)


def _ports(text: str) -> tuple[range, ...]:
    found = []
    for each in text.split(","):
        ends = re.fullmatch(r"\s*(\d{1,5})(?:-(\d{1,5}))?\s*", each, re.ASCII)
        ports = range(int(ends[1]), int(ends[2] or ends[1]) + 1) if ends else range(0)
        if not ports or ports[0] < 1 or ports[-1] > LAST_PORT:
            raise _WrongError(
                f"ports from 1 to {LAST_PORT} and ranges of them, separated by commas, such as 443,8000-8999"
            )
        found.append(ports)
    return tuple(found)


def _yes_or_no(text: str) -> bool:
    match text.lower():
        case "true" | "1" | "yes":
            return True
        case "false" | "0" | "no":
            return False
    raise _WrongError("true or false")


def _unread(error: OSError) -> str:
    # Of a file's content OpenSSL says no more than "PEM lib".
    return "it holds no such thing" if isinstance(error, ssl.SSLError) else str(error.strerror)


def _authorities(text: str) -> Path:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(text)
    except OSError as error:
        raise _WrongError(f"a readable file of PEM certificates ({_unread(error)})") from None
    return Path(text)


def _certificate(text: str) -> Path:
    try:
        # An empty password, because OpenSSL would ask the terminal for one.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(text, password="")
    except OSError as error:
        raise _WrongError(
            f"a readable PEM file of a certificate, its chain and its key without a password ({_unread(error)})"
        ) from None
    return Path(text)


def _proxy(text: str) -> Proxy | None:
    if not text:
        return None
    scheme, _, rest = text.removesuffix("/").partition("://")
    credentials, at, host_and_port = rest.rpartition("@")
    wrong = _WrongError("a forward proxy: http://host:port or http://user:password@host:port, both percent-encoded")
    if scheme != "http" or not re.fullmatch(r"[^/?#]+:\d+", host_and_port, re.ASCII):
        raise wrong
    try:
        read = parse(f"http://{host_and_port}")
    except UrlFaultError:
        raise wrong from None
    username, _, password = (urllib.parse.unquote(part) for part in credentials.partition(":"))
    return Proxy(read.host, read.port, username if at else None, password)


def _dsn(text: str) -> str:
    try:
        conninfo_to_dict(text)
    except psycopg.ProgrammingError:
        # libpq's own words quote what it could not read, and so a password.
        raise _WrongError(
            "a libpq URL, such as postgresql://user:password@host/name with special characters percent-encoded, or a "
            "list of key=value, with values that have spaces quoted"
        ) from None
    return text


def _pooling(text: str) -> Pooling:
    try:
        return Pooling(text)
    except ValueError:
        raise _WrongError(f"one of {', '.join(Pooling)}") from None


def _log_level(text: str) -> int:
    if text.lower() not in _LOG_LEVELS:
        raise _WrongError(f"one of {', '.join(_LOG_LEVELS)}")
    return _LOG_LEVELS[text.lower()]


def _keys(text: str) -> tuple[str, ...]:
    keys = tuple(each.strip() for each in text.split(",") if each.strip())
    if not all(re.fullmatch(r"[A-Za-z0-9_-]{43}=", each) for each in keys):
        raise _WrongError("Fernet keys (44 characters of URL-safe base64), newest first, separated by commas")
    return keys


def _setting(parse: Callable[[str], Any], default: str | None, text: str, *, secret: bool = False) -> Any:  # noqa: ANN401 - a field descriptor, which dataclasses type as its value
    return field(
        default=None if default is None else parse(default),
        metadata={"parse": parse, "default": default, "help": text, "secret": secret},
    )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings in their final types. Times are seconds."""

    dsn: str | None = _setting(_dsn, None, "The database: a libpq URL or key=value list.")
    pooling: Pooling = _setting(  # noqa: RUF009 - a descriptor, as the others
        _pooling, "auto", "How a pooler between here and the database lends sessions: auto, session or transaction."
    )
    concurrency: int = _setting(_count(1, 10_000), "200", "POSTs in flight at most, in each process.")
    max_in_flight_per_config: int = _setting(_count(1, 10_000), "20", "POSTs in flight at most, for one config.")
    poll_interval: float = _setting(_seconds(0.05, 3600), "1", "Longest sleep before the database is asked again.")
    request_timeout: float = _setting(_seconds(0.1, 600), "15", "One deadline over connect, headers and body.")
    drain_timeout: float = _setting(_seconds(0, 3600), "30", "How long POSTs in flight may take to finish at the end.")
    workers: int = _setting(_count(1, 256), "1", "Processes that share the work.")
    retention: float = _setting(_seconds(86_400, 86_400 * 3650), "30d", "How long events and tries are kept.")
    retention_dead: float = _setting(_seconds(86_400, 86_400 * 3650), "90d", "How long dead deliveries are kept.")
    min_attempt_interval: int = _setting(_count(1, 300), "300", "Least attempt_interval that a config may have.")
    disable_after: float = _setting(
        _seconds(0, 86_400 * 365),
        "5d",
        "A config that did nothing but fail for so long, 20 times or more, is switched off. 0: never.",
    )
    allow_networks: tuple[Network, ...] = _setting(
        _networks, "", "Networks that may be posted to although they are not globally routable, separated by commas."
    )
    deny_networks: tuple[Network, ...] = _setting(
        _networks, "", "Networks that are never posted to, whatever is allowed, separated by commas."
    )
    allow_ports: tuple[range, ...] = _setting(
        _ports, "80,443,1024-65535", "Ports that may be posted to, separated by commas."
    )
    require_https: bool = _setting(_yes_or_no, "false", "Whether only https may be posted to: true or false.")
    tracing: bool = _setting(
        _yes_or_no,
        "false",
        "Whether each try is told to OpenTelemetry, as its OTEL_ variables say; needs the extra `otel`.",
    )
    ca_file: Path | None = _setting(  # noqa: RUF009 - a field descriptor, as all of these
        _authorities, None, "PEM certificates of authorities to trust beside the system's. Default: none."
    )
    client_certificate: Path | None = _setting(  # noqa: RUF009 - as above
        _certificate, None, "PEM file of the certificate, and its key, for servers that ask for one. Default: none."
    )
    proxy: Proxy | None = _setting(  # noqa: RUF009 - as above
        _proxy, "", "A forward proxy for all POSTs: http://user:password@host:port.", secret=True
    )
    secret_key: tuple[str, ...] = _setting(
        _keys, "", "Keys that encrypt what configs keep secret, newest first, separated by commas.", secret=True
    )
    listen: tuple[str, int] | None = _setting(
        _address, None, "host:port of /livez, /readyz and /metrics. Default: nowhere."
    )
    metrics_configs: int = _setting(_count(0, 1000), "20", "Configs that /metrics names: those that fare worst.")
    log_level: int = _setting(
        _log_level, "info", "The least that is logged: info, a line for each try too; warning; or error."
    )

    def __repr__(self) -> str:
        """Show no secret: the DSN may hold a password."""
        return "Settings(…)"


BY_NAME = {each.name: each for each in dataclasses.fields(Settings)}


def variable(name: str) -> str:
    """Return the environment variable of a setting."""
    return f"OUTBOX_{name.upper()}"


def read(given: Mapping[str, str | None], *, required: Collection[str] = ("dsn",)) -> Settings:
    """Return the settings from strings; a name that is absent or None has its default.

    Raises UsageError that names all that are wrong or missing.
    """
    values: dict[str, Any] = {}
    faults = []
    for name, text in given.items():
        if text is None:
            continue
        try:
            values[name] = BY_NAME[name].metadata["parse"](text)
        except _WrongError as wrong:
            may_tell = name != "dsn" and not BY_NAME[name].metadata["secret"]
            shown = repr(text) if may_tell else "what it holds"
            faults.append(f"{variable(name)}: {shown} is not {wrong}.")
    faults += [str(missing(name)) for name in required if not given.get(name)]
    if faults:
        raise UsageError("\n".join(faults))
    return Settings(**values)


def read_duration(flag: str, text: str, *, least: float, most: float) -> float:
    """Return the seconds of a time that a command was given; UsageError says what `flag` accepts."""
    try:
        return _seconds(least, most)(text)
    except _WrongError as wrong:
        raise UsageError(f"{flag}: {text!r} is not {wrong}.") from None


def missing(name: str) -> UsageError:
    """Return the error for a setting that is needed and not set."""
    if name == "dsn":
        return UsageError("OUTBOX_DSN is not set: name the database, e.g. postgresql://user@host/name, or use --dsn.")
    return UsageError(f"{variable(name)} is not set.")
