"""`outbox secrets …`: the keys that seal what configs keep secret."""

import click
from cryptography.fernet import Fernet

from outbox.cli import options, plain
from outbox.errors import OutboxError
from outbox.postgres import resealing
from outbox.postgres.resealing import Resealed
from outbox.secrets import SecretBox
from outbox.settings import Settings


@click.group()
def secrets() -> None:
    """Make keys that encrypt what configs keep secret, and go over to a new one."""


@secrets.command("make-key")
@options.as_json
def make_key(*, as_json: bool) -> None:
    """Print a new key for OUTBOX_SECRET_KEY. It is kept nowhere."""
    key = Fernet.generate_key().decode()
    if as_json:
        options.print_json({"secret_key": key})
    else:
        click.echo(key)


@secrets.command()
@options.settings("dsn", "secret_key", required=("dsn", "secret_key"))
@click.option("--dry-run", is_flag=True, help="Change nothing; say what there is to do.")
@options.as_json
def rotate(settings: Settings, *, dry_run: bool, as_json: bool) -> None:
    """Encrypt all that configs keep secret with the newest key of OUTBOX_SECRET_KEY.

    First give every process the new key in front of the old one, then run this, then take the old one away. It may be
    interrupted and run again: what is done is passed over.
    """
    report = options.run_async(_rotate(settings, dry_run=dry_run))
    if as_json:
        options.print_json(
            {
                "dry_run": dry_run, "configs": report.configs, "resealed": report.secrets, "current": report.current,
                "unreadable": report.unreadable,
            }
        )  # fmt: skip
    else:
        plain.print_fields(
            [
                ("configs with secrets", str(report.configs)),
                ("to be sealed anew" if dry_run else "sealed anew", str(report.secrets)),
                ("by the newest key already", str(report.current)),
            ]
        )
        if dry_run:
            click.echo("Nothing was changed.")
    if report.unreadable:
        raise OutboxError(
            f"{plain.count(len(report.unreadable), 'config has', 'configs have')} a secret that no key of "
            f"OUTBOX_SECRET_KEY reads; they are as they were: {', '.join(map(str, report.unreadable))}."
        )


async def _rotate(settings: Settings, *, dry_run: bool) -> Resealed:
    async with options.connect(settings) as conn:
        return await resealing.reseal(conn, SecretBox(settings.secret_key), dry_run=dry_run)
