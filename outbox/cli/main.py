"""The command `outbox`: puts the groups of commands together and turns errors into one message and an exit code."""

import asyncio

import click
import psycopg

from outbox import __version__
from outbox.errors import OutboxError, UsageError
from outbox.postgres import migrations


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


@click.group(cls=_Commands)
@click.version_option(__version__, prog_name="outbox")
def main() -> None:
    """Tell subscribers of every committed change of a row."""


@main.command()
@click.option("--dsn", envvar="OUTBOX_DSN", help="The database, as a libpq URL or key=value list.")
@click.option("--check", is_flag=True, help="Change nothing; exit 1 if the schema is not the one this program knows.")
@click.option("--sql", "show", is_flag=True, help="Change nothing; print what would be run.")
def migrate(dsn: str | None, *, check: bool, show: bool) -> None:
    """Install or update the schema `outbox`. `psql -1 -f` of the files in sql/ does the same."""
    if dsn is None and not show:
        raise UsageError("OUTBOX_DSN is not set: name the database, e.g. postgresql://user@host/name, or use --dsn.")
    known = migrations.known_migrations()
    if show:
        ledger = asyncio.run(_ledger(dsn)) if dsn else {}
        for migration in known:
            if migration.version not in ledger:
                click.echo(migration.text)
    elif check:
        if problems := migrations.differences(asyncio.run(_ledger(str(dsn))), known):
            raise OutboxError("\n".join(problems))
        click.echo("The schema is the one that this program knows.")
    else:
        done = asyncio.run(migrations.migrate(str(dsn)))
        for migration in done:
            click.echo(f"applied {migration.file_name}")
        if not done:
            click.echo("Nothing to do: the schema is up to date.")


async def _ledger(dsn: str) -> dict[int, str]:
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        return await migrations.applied(conn)
