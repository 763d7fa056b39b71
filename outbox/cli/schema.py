"""`outbox migrate`, `attach` and `detach`: what a DBA does to the database, as commands."""

import click
import psycopg

from outbox.cli import options
from outbox.errors import OutboxError
from outbox.postgres import migrations
from outbox.settings import Settings


@click.command()
@options.settings("dsn", required=())
@click.option("--check", is_flag=True, help="Change nothing; exit 1 if the schema is not the one this program knows.")
@click.option("--sql", "show", is_flag=True, help="Change nothing; print what would be run.")
def migrate(settings: Settings, *, check: bool, show: bool) -> None:
    """Install or update the schema `outbox`. `psql -1 -f` of the files in sql/ does the same."""
    dsn = settings.dsn
    known = migrations.known_migrations()
    if show:
        ledger = options.run_async(_ledger(dsn)) if dsn else {}
        for migration in known:
            if migration.version not in ledger:
                click.echo(migration.text)
    elif check:
        if problems := migrations.differences(options.run_async(_ledger(options.needed(dsn))), known):
            raise OutboxError("\n".join(problems))
        click.echo("The schema is the one that this program knows.")
    else:
        done = options.run_async(migrations.migrate(options.needed(dsn)))
        for migration in done:
            click.echo(f"applied {migration.file_name}")
        if not done:
            click.echo("Nothing to do: the schema is up to date.")


async def _ledger(dsn: str) -> dict[int, str]:
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        return await migrations.applied(conn)
