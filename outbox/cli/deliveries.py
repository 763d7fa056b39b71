"""`outbox deliveries` and `outbox replay`: see what became of the deliveries, and send them again."""

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
from outbox.postgres.replay import REPLAYABLE, replay
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


def _key(text: str) -> DeliveryKey:
    try:
        return DeliveryKey.parse(text)
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is no delivery: that is EVENT_ID.CONFIG_ID, two UUIDs joined by a dot."
        ) from None


def _one_of(states: Collection[State]) -> "click.Choice[str]":
    # Their texts: of an enumeration click would take the names.
    return click.Choice([state.value for state in states])


class _ListByDefault(click.Group):
    """Without a name of a command it is `list`, with all of its options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


def _narrowing(command: options.Command) -> options.Command:
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
@_narrowing
@click.option("--state", "states", type=_one_of(LISTED), multiple=True, help="Only in this state; repeatable.")
@click.option("--limit", type=click.IntRange(1, _MOST), default=50, show_default=True, help="How many at most.")
@options.as_json
def list_(settings: Settings, *, states: tuple[str, ...], limit: int, as_json: bool, **narrowing: Any) -> None:  # noqa: ANN401 - the shared filters
    """List deliveries, newest first."""
    found = options.run_async(_list(settings, tuple(map(State, states)) or LISTED, limit, narrowing))
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
@click.argument("key", metavar="EVENT_ID.CONFIG_ID", type=_key)
@options.as_json
def show(settings: Settings, key: DeliveryKey, *, as_json: bool) -> None:
    """Show one delivery: the data that is sent, and every try with the beginning of its answer."""
    found = options.run_async(_show(settings, key))
    if found is None:
        raise _unknown(key)
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


@click.command("replay")
@options.settings("dsn")
@click.option("--delivery", type=_key, metavar="EVENT_ID.CONFIG_ID", help="Only this delivery.")
@_narrowing
@click.option(
    "--state",
    "states",
    type=_one_of(REPLAYABLE),
    multiple=True,
    help="Only in this state; repeatable. Default: both with --delivery or --event, otherwise dead.",
)
@click.option("--dry-run", is_flag=True, help="Change nothing; say how many would be replayed.")
@options.as_json
def replay_(
    settings: Settings,
    *,
    delivery: DeliveryKey | None,
    states: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
    **narrowing: Any,  # noqa: ANN401 - the shared filters
) -> None:
    """Send dead or delivered ones again: the same bytes and webhook-id, a fresh budget, a counter that goes on.

    At least one filter is needed. Pending deliveries are left as they are. Times: ISO 8601 or an age such as 2h.
    """
    given = {name for name, value in narrowing.items() if value is not None}
    if delivery is not None:
        if clash := given & {"event", "config"}:
            raise UsageError(f"--delivery names the event and the config already: leave out --{min(clash)}.")
        narrowing |= {"event": delivery.event_id, "config": delivery.config_id}
    elif not given and not states:
        raise UsageError(
            "What is to be replayed? Give at least one of "
            "--delivery, --event, --config, --record, --state, --since, --until."
        )
    wanted = tuple(map(State, states)) or (REPLAYABLE if narrowing["event"] else (State.DEAD,))
    if State.DELIVERED in wanted and delivery is None and not given & {"event", "config", "record", "since"}:
        raise UsageError(
            "--state delivered by itself would send the whole history again: "
            "add --event, --config, --record or --since."
        )
    done = options.run_async(_replay(settings, delivery, wanted, dry_run, narrowing))
    if as_json:
        options.print_json({"replayed": done, "dry_run": dry_run})
        return
    amount = plain.count(done, "delivery", "deliveries")
    click.echo(f"{amount} would be replayed." if dry_run else f"Replayed {amount}.")
    if not done and delivery is None and State.DELIVERED not in wanted:
        click.echo("Only dead ones were looked for; others: --state delivered.")


async def _list(settings: Settings, states: tuple[State, ...], limit: int, narrowing: dict[str, Any]) -> list[Summary]:
    async with options.connect(settings) as conn:
        now = await history.now(conn)
        return await history.deliveries(conn, _filter(states, now, **narrowing), limit=limit)


async def _show(settings: Settings, key: DeliveryKey) -> Detail | None:
    async with options.connect(settings) as conn:
        return await history.delivery(conn, key)


async def _replay(
    settings: Settings,
    key: DeliveryKey | None,
    states: tuple[State, ...],
    dry_run: bool,  # noqa: FBT001 - internal
    narrowing: dict[str, Any],
) -> int:
    async with options.connect(settings) as conn:
        now = await history.now(conn)
        done = await replay(conn, _filter(states, now, **narrowing), dry_run=dry_run)
        if not done and key is not None and await history.delivery(conn, key) is None:
            raise _unknown(key)
        return done


def _filter(
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
    if resource is not None and record is None:
        raise UsageError("--resource only says of what kind --record is: give --record too.")
    return Filter(
        states=states, config=config, event=event, record=record, resource=resource,
        since=_moment(since, now), until=_moment(until, now),
    )  # fmt: skip


def _moment(when: When | None, now: dt.datetime) -> dt.datetime | None:
    if not isinstance(when, dt.timedelta):
        return when
    try:
        return now - when
    except OverflowError:
        return dt.datetime.min.replace(tzinfo=dt.UTC)


def _unknown(key: DeliveryKey) -> OutboxError:
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
