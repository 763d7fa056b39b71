"""`outbox deliveries`: see what became of the deliveries. And the filters that `outbox replay` takes too."""

import dataclasses
import datetime as dt
import re
from collections.abc import Collection
from typing import Any
from uuid import UUID

import click

from outbox.cli import options, plain
from outbox.errors import OutboxError, UsageError
from outbox.postgres import history
from outbox.postgres.history import DeliveryKey, Detail, Summary
from outbox.postgres.selection import LISTED, Filter, State
from outbox.settings import Settings

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_ERROR_WIDTH = 60
_MOST = 10_000
"""Rows of one list."""

When = dt.datetime | dt.timedelta


def _when(text: str) -> When:
    """Read a time, or an age that the database's clock turns into one."""
    try:
        if age := re.fullmatch(r"(\d+)([smhd])", text.strip()):
            return dt.timedelta(**{_UNITS[age[2]]: int(age[1])})
        moment = dt.datetime.fromisoformat(text.strip())
        return moment.replace(tzinfo=moment.tzinfo or dt.UTC).astimezone(dt.UTC)
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{text!r} is neither a time such as 2026-01-31T12:00:00Z (UTC where no zone is given) "
            "nor an age such as 90s, 15m, 2h or 7d."
        ) from None


def read_key(text: str) -> DeliveryKey:
    """Read EVENT_ID.CONFIG_ID."""
    try:
        return DeliveryKey.parse(text)
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is no delivery: that is EVENT_ID.CONFIG_ID, two UUIDs joined by a dot."
        ) from None


def one_of(states: Collection[State]) -> "click.Choice[str]":
    """Return the type of an option that is one of these."""
    # Their texts: of an enumeration click would take the names.
    return click.Choice([state.value for state in states])


class _ListByDefault(click.Group):
    """Without a name of a command it is `list`, with all of its options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


def narrowing(command: options.Command) -> options.Command:
    """Give a command the filters that lists and replays share."""
    for option in reversed(
        (
            click.option("--config", type=click.UUID, help="Only to this config."),
            click.option("--event", type=click.UUID, help="Only of this event (its webhook-id)."),
            click.option("--record", help="Only of the record with this id."),
            click.option("--resource", help="With --record: the resource that the record is of."),
            click.option(
                "--since", type=_when, metavar="TIME", help="Delivered, died or (pending) captured since then."
            ),
            click.option(
                "--until", type=_when, metavar="TIME", help="Delivered, died or (pending) captured before then."
            ),
        )
    ):
        command = option(command)
    return command


@click.group(cls=_ListByDefault)
def deliveries() -> None:
    """Show deliveries and their tries. Without a command: list.

    Times for --since and --until: ISO 8601 (UTC where no zone is given), or an age such as 15m, 2h or 7d.
    """


@deliveries.command("list")
@options.settings("dsn")
@narrowing
@click.option("--state", "states", type=one_of(LISTED), multiple=True, help="Only in this state; repeatable.")
@click.option("--limit", type=click.IntRange(1, _MOST), default=50, show_default=True, help="How many at most.")
@options.as_json
def list_(settings: Settings, *, states: tuple[str, ...], limit: int, as_json: bool, **given: Any) -> None:  # noqa: ANN401 - the shared filters
    """List deliveries, newest first."""
    found = options.run_async(_list(settings, tuple(map(State, states)) or LISTED, limit, given))
    if as_json:
        options.print_json([_document(each) for each in found])
        return
    if not found:
        click.echo("No deliveries.")
        return
    plain.print_table(
        ("DELIVERY", "STATE", "SINCE", "EVENT", "RECORD", "TRIES", "DUE", "LAST ERROR"),
        [_row(each) for each in found],
    )
    if len(found) == limit:
        click.echo(f"The newest {limit}; for others use --limit, --until or a filter.")


@deliveries.command()
@options.settings("dsn")
@click.argument("key", metavar="EVENT_ID.CONFIG_ID", type=read_key)
@options.as_json
def show(settings: Settings, key: DeliveryKey, *, as_json: bool) -> None:
    """Show one delivery: the data that is sent, and every try with the beginning of its answer."""
    found = options.run_async(_show(settings, key))
    if found is None:
        raise unknown(key)
    if as_json:
        options.print_json(
            {
                **_document(found.summary),
                "data": found.data,
                "tries": [{**dataclasses.asdict(each), "at": each.at.astimezone(dt.UTC)} for each in found.tries],
            }
        )
        return
    each = found.summary
    plain.print_fields(
        [
            ("delivery", str(each.key)),
            ("state", _state(each)),
            ("since", plain.cell(each.state_at)),
            ("event", f"{plain.cell(each.type)} at {plain.cell(each.event_created_at)}"),
            ("record", _record(each)),
            ("tries", str(each.attempts)),
            ("due", plain.cell(each.due_at)),
            ("last error", plain.cell(each.last_error)),
            ("data", "no longer kept" if found.data is None else plain.clean(found.data)),
        ]
    )
    if found.tries:
        click.echo()
        plain.print_table(
            ("TRY", "AT", "MS", "OUTCOME", "STATUS", "ERROR", "ANSWER"),
            [
                (
                    str(each.number), plain.cell(each.at), str(each.duration_ms), each.outcome,
                    plain.cell(each.status), plain.cell(each.error), plain.cell(each.answer),
                )
                for each in found.tries
            ],
        )  # fmt: skip


async def _list(settings: Settings, states: tuple[State, ...], limit: int, given: dict[str, Any]) -> list[Summary]:
    async with options.connect(settings) as conn:
        now = await history.now(conn)
        return await history.deliveries(conn, filter_of(states, now, **given), limit=limit)


async def _show(settings: Settings, key: DeliveryKey) -> Detail | None:
    async with options.connect(settings) as conn:
        return await history.delivery(conn, key)


def filter_of(
    states: tuple[State, ...],
    now: dt.datetime,
    *,
    config: UUID | None,
    event: UUID | None,
    record: str | None,
    resource: str | None,
    since: When | None,
    until: When | None,
) -> Filter:
    """Return what the shared filters choose, ages counted from `now`."""
    if resource is not None and record is None:
        raise UsageError("--resource only says of what kind --record is: give --record too.")
    first, last = moment(since, now), moment(until, now)
    if first is not None and last is not None and first >= last:
        raise UsageError("--since must be before --until: nothing lies between them.")
    return Filter(states=states, config=config, event=event, record=record, resource=resource, since=first, until=last)


def moment(when: When | None, now: dt.datetime) -> dt.datetime | None:
    """Return the time that was given, or that an age means."""
    if not isinstance(when, dt.timedelta):
        return when
    try:
        return now - when
    except OverflowError:
        return dt.datetime.min.replace(tzinfo=dt.UTC)


def unknown(key: DeliveryKey) -> OutboxError:
    """Return the error for a delivery without a trace."""
    return OutboxError(f"There is no delivery {key}: neither owed nor in the history.")


def _document(each: Summary) -> dict[str, object]:
    return {
        "id": str(each.key),
        **{
            name: value.astimezone(dt.UTC) if isinstance(value, dt.datetime) else value
            for name, value in dataclasses.asdict(each).items()
        },
    }


def _row(each: Summary) -> tuple[str, ...]:
    return (
        str(each.key),
        _state(each),
        plain.cell(each.state_at),
        plain.cell(each.type),
        _record(each),
        str(each.attempts),
        plain.cell(each.due_at),
        plain.cell(each.last_error, width=_ERROR_WIDTH),
    )


def _state(each: Summary) -> str:
    return "in progress" if each.in_progress else str(each.state)


def _record(each: Summary) -> str:
    return "-" if each.resource is None else plain.clean(f"{each.resource} {each.resource_id}")
