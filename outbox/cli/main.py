"""The command `outbox`: puts the groups of commands together and turns errors into one message and an exit code."""

import errno
import importlib
import os
import sys
from typing import Any

import click
import psycopg

from outbox import __version__
from outbox.errors import OutboxError, UsageError

_MODULES = {
    "migrate": "schema",
    "attach": "schema",
    "detach": "schema",
    "config": "config",
    "run": "run",
    "serve": "serve",
    "user": "user",
    "deliveries": "deliveries",
    "replay": "replay",
    "status": "status",
    "top": "top",
    "doctor": "doctor",
    "prune": "prune",
    "secrets": "secrets",
    "demo": "demo",
}
"""The module of each command. Only that of the one that is run is loaded: the daemon needs no pages, `top` no API."""


_FULL = (errno.ENOSPC, errno.EDQUOT)


class _Commands(click.Group):
    def list_commands(self, _ctx: click.Context) -> list[str]:
        return sorted(_MODULES)

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        if name not in _MODULES:
            return None
        command: click.Command = getattr(importlib.import_module(f"outbox.cli.{_MODULES[name]}"), name)
        return command

    def main(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - as click's
        try:
            return super().main(*args, **options)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            click.echo(f"Error: The output can not be written: {error.strerror}.", err=True)
            sys.exit(1)

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except UsageError as error:
            raise click.UsageError(str(error)) from error
        except OutboxError as error:
            raise click.ClickException(str(error)) from error
        except psycopg.errors.InsufficientPrivilege as error:
            raise click.ClickException(
                f"Postgres: {str(error).strip()}\nWhich role may do what: sql/README.md, Roles."
            ) from error
        except psycopg.Error as error:
            raise click.ClickException(f"Postgres: {str(error).strip()}") from error
        except UnicodeEncodeError as error:
            if error.encoding != "utf-8":
                raise
            raise click.UsageError("An argument or a variable has bytes that are no UTF-8.") from error


@click.group(cls=_Commands)
@click.version_option(__version__, prog_name="outbox")
def main() -> None:
    """Tell subscribers of every committed change of a row."""
    _fill_standard_streams()
    _leave_no_core()


def _fill_standard_streams() -> None:
    # What is closed would be the number of the next file or socket, and the event loop's own: it aborts then.
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdin = sys.stdin or open(0, encoding="utf-8")  # noqa: SIM115 - to the end of the process
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8")  # noqa: SIM115
    # A terminal that can not show a letter shows its number.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _leave_no_core() -> None:
    # It would hold the keys and the password of the database, on a disk where they outlive the process.
    if sys.platform != "win32":
        import resource  # noqa: PLC0415 - not on every platform

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
