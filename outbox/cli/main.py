"""The command `outbox`: puts the groups of commands together and turns errors into one message and an exit code."""

import importlib
import sys

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


class _Commands(click.Group):
    def list_commands(self, _ctx: click.Context) -> list[str]:
        return sorted(_MODULES)

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        if name not in _MODULES:
            return None
        command: click.Command = getattr(importlib.import_module(f"outbox.cli.{_MODULES[name]}"), name)
        return command

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except UsageError as error:
            raise click.UsageError(str(error)) from error
        except OutboxError as error:
            raise click.ClickException(str(error)) from error
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
    _leave_no_core()


def _leave_no_core() -> None:
    # It would hold the keys and the password of the database, on a disk where they outlive the process.
    if sys.platform != "win32":
        import resource  # noqa: PLC0415 - not on every platform

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
