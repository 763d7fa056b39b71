"""`outbox secrets …`: the keys that seal what configs keep secret."""

import click
from cryptography.fernet import Fernet


@click.group()
def secrets() -> None:
    """Make keys that encrypt what configs keep secret."""


@secrets.command("make-key")
def make_key() -> None:
    """Print a new key for OUTBOX_SECRET_KEY. It is kept nowhere."""
    click.echo(Fernet.generate_key().decode())
