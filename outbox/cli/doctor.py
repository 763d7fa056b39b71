"""`outbox doctor`: looks at all that the outbox depends on, and says what to do about what is wrong."""

import dataclasses
import os
from collections import Counter

import click

from outbox.cli import options, plain
from outbox.core.finding import Finding, Level
from outbox.doctor.examination import examine
from outbox.settings import Settings

_COLOURS = {Level.OK: "green", Level.WARNING: "yellow", Level.PROBLEM: "red"}


@click.command()
@options.settings(*options.DAEMON)
@options.as_json
def doctor(settings: Settings, *, as_json: bool) -> None:
    """Examine the database, the capture, the queue, the configs and these settings. It changes nothing.

    Each line is ok, a warning or a problem, with what to do. Exits 1 when there is a problem. Run it where the daemon
    runs, with the daemon's settings: it looks at what a daemon with them would meet.
    """
    found = options.run_async(examine(settings))
    counts = Counter(finding.level for finding in found)
    if as_json:
        options.print_json(
            {
                **{level.value: counts[level] for level in Level},
                "findings": [dataclasses.asdict(finding) for finding in found],
            }
        )
    else:
        _print(found)
        click.echo()
        click.echo(
            f"{plain.count(counts[Level.PROBLEM], 'problem', 'problems')}, "
            f"{plain.count(counts[Level.WARNING], 'warning', 'warnings')}, {counts[Level.OK]} ok."
        )
    if counts[Level.PROBLEM]:
        raise click.exceptions.Exit(1)


def _print(found: list[Finding]) -> None:
    level_width = max(map(len, Level))
    check_width = max(len(finding.check) for finding in found)
    colour = False if os.environ.get("NO_COLOR") else None  # None: where it is a terminal
    for finding in found:
        level = click.style(finding.level.value.ljust(level_width), fg=_COLOURS[finding.level])
        click.echo(f"{level}  {finding.check.ljust(check_width)}  {plain.clean(finding.message)}", color=colour)
        if finding.advice is not None:
            click.echo(f"{'':{level_width + check_width + 4}}> {plain.clean(finding.advice)}")
