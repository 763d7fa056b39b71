"""`outbox migrate`, `attach` and `detach`: what a DBA does to the database, as commands."""

import csv
from typing import Any

import click

from outbox.cli import options, plain
from outbox.errors import OutboxError, UsageError
from outbox.postgres import capture, migrations
from outbox.postgres.pool import connected
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
    async with connected(dsn, "command") as conn:
        return await migrations.applied(conn)


@click.command()
@options.settings("dsn")
@click.argument("table")
@click.option("--resource", required=True, help="What subscribers call it, such as contact.")
@click.option("--key", help="Column, or columns separated by commas, of the record's id. Default: id, else the key.")
@click.option("--location", help="Column of the location. Default: location_id where there is one. '' for none.")
@click.option(
    "--product-transaction",
    help="Column of the merchant account. Default: product_transaction_id where there is one. '' for none.",
)
@click.option("--serializer", help="Function of one row that returns the json to send. Default: the row's columns.")
@click.option(
    "--columns", help="The only columns to send, by commas: id,name; one with a comma in quotes. Default: all."
)
@click.option("--condition", help='Capture only rows that fulfil this SQL over their columns: "total > 0".')
def attach(
    settings: Settings,
    *,
    table: str,
    resource: str,
    key: str | None,
    location: str | None,
    product_transaction: str | None,
    serializer: str | None,
    columns: str | None,
    condition: str | None,
) -> None:
    """Capture each change of TABLE as an event of the resource.

    TABLE is named as in SQL: public.contacts. It may be partitioned; it needs a primary key or another unique key.

    Again on the same table: all options anew. One that is not named has its default, so without --columns all columns
    are sent. Where `outbox doctor` advises to attach again, it prints the whole command.
    """
    attachment = options.run_async(
        _attach(
            settings, table, resource, key=key, location=location,
            product_transaction=product_transaction, serializer=serializer,
            columns=None if columns is None else _names(columns),
            condition=condition,
        )
    )  # fmt: skip
    click.echo(f"Attached {plain.clean(attachment.relation)}:")
    plain.print_fields(
        [
            ("resource", plain.cell(attachment.resource)),
            ("key", plain.cell(attachment.key)),
            ("location", plain.cell(attachment.location)),
            ("product transaction", plain.cell(attachment.product_transaction)),
            ("serializer", plain.cell(attachment.serializer)),
            ("columns", plain.cell(None if attachment.columns is None else ", ".join(attachment.columns))),
            ("condition", plain.cell(attachment.condition)),
        ]
    )


def _names(text: str) -> list[str]:
    try:
        return next(csv.reader([text], skipinitialspace=True, strict=True))
    except csv.Error:
        raise UsageError(
            f'--columns: {plain.clean(text)} has a quote without its other: id,name, or with a comma in it id,"a,b".'
        ) from None


@click.command()
@options.settings("dsn")
@click.argument("table")
def detach(settings: Settings, table: str) -> None:
    """Stop capturing TABLE. What was captured is still delivered."""
    was_attached = options.run_async(_detach(settings, table))
    name = plain.clean(table)
    click.echo(f"Detached {name}." if was_attached else f"Nothing to do: {name} is not attached.")


async def _attach(settings: Settings, table: str, resource: str, **how: Any) -> capture.Attachment:  # noqa: ANN401 - as capture.attach takes it
    async with options.connect(settings) as conn:
        return await capture.attach(conn, table, resource, **how)


async def _detach(settings: Settings, table: str) -> bool:
    async with options.connect(settings) as conn:
        return await capture.detach(conn, table)
