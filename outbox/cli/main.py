"""The command `outbox`: puts the groups of commands together and turns errors into one message and an exit code."""

import sys

import click
import psycopg

from outbox import __version__
from outbox.cli import config, deliveries, demo, doctor, prune, replay, run, schema, secrets, serve, status, top, user
from outbox.errors import OutboxError, UsageError


class _Commands(click.Group):
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


for _command in (
    schema.migrate,
    schema.attach,
    schema.detach,
    config.config,
    run.run,
    serve.serve,
    user.user,
    deliveries.deliveries,
    replay.replay,
    status.status,
    top.top,
    doctor.doctor,
    prune.prune,
    secrets.secrets,
    demo.demo,
):
    main.add_command(_command)
