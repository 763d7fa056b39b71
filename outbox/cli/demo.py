"""`outbox demo`: the whole workflow on a throw-away PostgreSQL, to watch."""

import logging
import sys

import click

from outbox import logs
from outbox.cli import options
from outbox.demo.embedded import EmbeddedPostgres
from outbox.demo.stage import play


@click.command()
@click.option(
    "--once", is_flag=True, help="End after the walk: exit 0 only if everything arrived as the contract says."
)
@click.option("--verbose", is_flag=True, help="Show the daemon's log as well, on stderr.")
def demo(*, once: bool, verbose: bool) -> None:
    """Watch contact changes arrive at a subscriber, on a PostgreSQL that is gone afterwards.

    It creates a config, changes contacts and checks each postback against the contract; then it goes on until Ctrl-C.
    """
    logs.configure(level=logging.INFO if verbose else logging.WARNING)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)
    with EmbeddedPostgres(fsync=False) as server:
        options.run_async(play(server, once=once, say=click.echo))
    if not once:
        click.echo("\nStopped. Nothing is left behind.")
