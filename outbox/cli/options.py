"""What commands share: options made from the settings, JSON output, and the way into asyncio."""

import asyncio
import codecs
import contextlib
import datetime as dt
import functools
import inspect
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, TypeVar
from uuid import UUID

import click
import psycopg

from outbox import settings as settings_
from outbox.core.printable import clean_json
from outbox.errors import OutboxError, SchemaError
from outbox.postgres import migrations
from outbox.postgres.pool import connected

DESTINATIONS = ("allow_networks", "deny_networks", "allow_ports", "require_https")
"""The settings of where may be posted to."""
WAY_OUT = (*DESTINATIONS, "ca_file", "client_certificate", "proxy")
"""The settings of whoever posts."""
DAEMON = (
    "dsn",
    "concurrency",
    "max_in_flight_per_config",
    "poll_interval",
    "request_timeout",
    "drain_timeout",
    "workers",
    *WAY_OUT,
    "secret_key",
    "listen",
    "metrics_configs",
    "tracing",
    "min_attempt_interval",
    "disable_after",
    "retention",
    "retention_dead",
    "log_level",
)
"""The settings of a daemon."""

DEFAULT_LISTEN = ("127.0.0.1", 8080)
"""Host and port of whoever serves the API."""

Command = Callable[..., Any]
T = TypeVar("T")


def settings(
    *names: str, required: tuple[str, ...] = ("dsn",), texts: Mapping[str, str] | None = None
) -> Callable[[Command], Command]:
    """Give a command the options of these settings, and itself a `settings: Settings` argument instead of them.

    Its help ends with those that are no options. `texts`: the help of settings that mean something of their own here.
    """
    if "dsn" in names:
        names = ("dsn", "pooling", *(name for name in names if name != "dsn"))
    hidden = [name for name in names if settings_.BY_NAME[name].metadata["secret"]]
    shown = [name for name in names if name not in hidden]
    help_of = {name: settings_.BY_NAME[name].metadata["help"] for name in names} | dict(texts or {})

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def wrapper(**arguments: Any) -> Any:  # noqa: ANN401 - click passes anything
            given = {name: arguments.pop(name, None) for name in shown}
            # A flag would show in the process list.
            given |= {name: os.environ.get(settings_.variable(name)) for name in hidden}
            return command(settings=settings_.read(given, required=required), **arguments)

        for name in reversed(shown):
            default = settings_.BY_NAME[name].metadata["default"]
            wrapper = click.option(
                f"--{name.replace('_', '-')}",
                name,
                envvar=settings_.variable(name),
                show_envvar=True,
                help=help_of[name] + (f" Default: {default}." if default else ""),
            )(wrapper)
        if hidden:
            told = " and ".join(f"{settings_.variable(name)} ({_within(help_of[name])})" for name in hidden)
            wrapper.__doc__ = (
                f"{inspect.cleandoc(command.__doc__ or '')}\n\n"
                f"Read from the environment only, because a process list shows flags: {told}."
            )
        return wrapper

    return decorate


def _within(sentence: str) -> str:
    """Return a sentence as a part of another one."""
    return sentence[0].lower() + sentence[1:].removesuffix(".")


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def print_json(value: object) -> None:
    """Print a value as JSON; times become ISO 8601, ids strings."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    ascii_only = codecs.lookup(encoding).name != "utf-8"  # JSON has escapes of its own for what can not be shown
    click.echo(clean_json(json.dumps(value, default=_plain, ensure_ascii=ascii_only, indent=2)))


def _plain(value: object) -> object:
    match value:
        case dt.datetime():
            return value.isoformat()
        case UUID():
            return str(value)
        case _:
            raise TypeError(f"{type(value)} has no JSON form")


def run_async(main: Coroutine[Any, Any, T]) -> T:
    """Run it to its end, on uvloop where there is one."""
    if sys.platform != "win32":
        try:
            import uvloop  # noqa: PLC0415 - not on every platform
        except ImportError:
            pass
        else:
            return uvloop.run(main)
    return asyncio.run(main)


def needed(dsn: str | None) -> str:
    """Return the DSN of a command whose settings were read; those that require it have it."""
    if dsn is None:
        raise settings_.missing("dsn")
    return dsn


@contextlib.asynccontextmanager
async def connect(
    settings: settings_.Settings, *, session: Mapping[str, str] | None = None
) -> AsyncIterator[psycopg.AsyncConnection]:
    """Open an autocommit connection with these settings of PostgreSQL; what fails on it is told as `explained` does."""
    connecting = connected(needed(settings.dsn), "command", settings=session, pooling=settings.pooling)
    async with connecting as conn, explained(conn):
        yield conn


@contextlib.asynccontextmanager
async def explained(conn: psycopg.AsyncConnection) -> AsyncIterator[None]:
    """Tell a database that lacks our schema, or has another one, as such.

    Raises OutboxError or SchemaError in place of the database's "does not exist".
    """
    try:
        yield
    except psycopg.ProgrammingError as error:
        # Asked only after something was missing: a command that works pays no round trip for it.
        ledger = await migrations.applied(conn)
        if not ledger:
            raise OutboxError("The database has no outbox schema. Run: outbox migrate") from error
        if problems := migrations.differences(ledger, migrations.known_migrations()):
            raise SchemaError("\n".join(problems)) from error
        raise
