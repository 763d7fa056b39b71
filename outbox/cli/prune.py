"""`outbox prune`: let go of history by hand, or see what the daemon would let go."""

import dataclasses
import datetime as dt

import click

from outbox.cli import options, plain
from outbox.errors import OutboxError
from outbox.postgres import retention
from outbox.postgres.housekeeping import ElsewhereError
from outbox.postgres.retention import Fate, Pruned, Report
from outbox.settings import Settings

_ERROR_WIDTH = 60
_BECAME = {
    Fate.DROPPED: ("dropped", "to be dropped"),
    Fate.THINNED: ("kept only what is owed", "to be thinned to what is owed"),
    Fate.OWED: ("left: most of it is owed", "to be left: most of it is owed"),
    Fate.BUSY: ("left: the table is being read; the next time will do", "busy"),
    Fate.HELD: ("left: it is in use; the next time will do", "held"),
    Fate.FAILED: ("failed", "failed"),
}


@click.command()
@options.settings("dsn", "retention", "retention_dead")
@click.option("--dry-run", is_flag=True, help="Change nothing; say what would go.")
@options.as_json
def prune(settings: Settings, *, dry_run: bool, as_json: bool) -> None:
    """Let go of the history that is past its retention. The daemon does it every hour.

    Events that are still owed are kept, and so are the dead ones until OUTBOX_RETENTION_DEAD is over.
    """
    report = options.run_async(_prune(settings, dry_run=dry_run))
    if as_json:
        options.print_json(_document(report, dry_run=dry_run))
    else:
        _print(report, dry_run=dry_run)
    if failed := [each.partition for each in report.partitions if each.fate is Fate.FAILED]:
        raise OutboxError(f"Not pruned: {', '.join(failed)}.")


async def _prune(settings: Settings, *, dry_run: bool) -> Report:
    async with options.connect(settings) as conn:
        try:
            return await retention.prune(
                conn, retention=settings.retention, retention_dead=settings.retention_dead, dry_run=dry_run
            )
        except ElsewhereError:
            raise OutboxError("A daemon, or another prune, is pruning at this moment. Try again.") from None


def _document(report: Report, *, dry_run: bool) -> dict[str, object]:
    return {
        "dry_run": dry_run,
        "before": report.before.astimezone(dt.UTC),
        "dead_before": report.dead_before.astimezone(dt.UTC),
        "partitions": [
            dataclasses.asdict(each) | {"until": each.until.astimezone(dt.UTC)} for each in report.partitions
        ],
        "dead_deliveries": report.dead,
        "default_rows": report.default_rows,
    }


def _print(report: Report, *, dry_run: bool) -> None:
    if report.partitions:
        plain.print_table(
            ("PARTITION", "DAY ENDED", "ROWS", "MB", "EVENTS KEPT", "WOULD BE" if dry_run else "BECAME"),
            [_row(each, dry_run=dry_run) for each in report.partitions],
        )
        click.echo()
    rows = sum(report.default_rows.values())
    plain.print_fields(
        [
            ("history before", plain.cell(report.before)),
            ("dead before", plain.cell(report.dead_before)),
            ("partitions", f"{len(report.went)} ({_mb(sum(each.bytes for each in report.went))} MB)"),
            ("dead deliveries", str(report.dead)),
            ("rows of default partitions", str(rows)),
        ]
    )
    if dry_run:
        click.echo("Nothing was changed.")


def _row(each: Pruned, *, dry_run: bool) -> tuple[str, ...]:
    became = _BECAME[each.fate][dry_run] if each.error is None else plain.cell(each.error, width=_ERROR_WIDTH)
    rows = "-" if each.rows is None else f"~{each.rows}"
    return each.partition, plain.cell(each.until), rows, _mb(each.bytes), str(each.kept), became


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f}"
