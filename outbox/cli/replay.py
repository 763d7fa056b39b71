"""`outbox replay`: send deliveries again, or for the first time to a config that came later."""

import asyncio
import contextlib
import datetime as dt
import itertools
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import click

from outbox import signals
from outbox.cli import deliveries, options, plain
from outbox.errors import OutboxError, UsageError
from outbox.postgres import configs, history, missing
from outbox.postgres import replay as again
from outbox.postgres.history import DeliveryKey
from outbox.postgres.pool import TRANSIENT
from outbox.postgres.selection import State
from outbox.settings import Settings

Advance = Callable[[int], object]


@dataclass(slots=True)
class _Course:
    """How it goes: at which pace, how many were made pending, and between which times."""

    rate: int | None
    dry_run: bool
    count: int = 0
    since: dt.datetime | None = None
    until: dt.datetime | None = None
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def size(self) -> int:
        """How many become pending at once: what the pace allows for a second."""
        return again.BATCH if self.rate is None or self.dry_run else min(again.BATCH, self.rate)


@click.command()
@options.settings("dsn")
@click.option("--delivery", type=deliveries.read_key, metavar="EVENT_ID.CONFIG_ID", help="Only this delivery.")
@deliveries.narrowing
@click.option(
    "--state",
    "states",
    type=deliveries.one_of(again.REPLAYABLE),
    multiple=True,
    help="Only in this state; repeatable. Default: both with --delivery or --event, otherwise dead.",
)
@click.option(
    "--missing",
    "is_missing",
    is_flag=True,
    help="Instead: what --config was never owed, because it came later or did not want it then.",
)
@click.option("--rate", type=click.IntRange(min=1), metavar="N", help="At most N a second become due.")
@click.option("--dry-run", is_flag=True, help="Change nothing; say how many would be replayed.")
@options.as_json
def replay(
    settings: Settings,
    *,
    delivery: DeliveryKey | None,
    states: tuple[str, ...],
    is_missing: bool,
    rate: int | None,
    dry_run: bool,
    as_json: bool,
    **narrowing: Any,  # noqa: ANN401 - the shared filters
) -> None:
    """Send dead or delivered ones again: the same bytes and webhook-id, a fresh budget, a counter that goes on.

    At least one filter is needed. Pending deliveries are left as they are. Times: ISO 8601 or an age such as 2h.

    With --missing: make deliveries of the kept events that the config wants as it is now and was never owed; the times
    are those of capture.

    Ctrl-C, SIGTERM and SIGHUP end it after the batch in hand; it says how to go on with the rest.
    """
    course = _Course(rate=rate, dry_run=dry_run)
    wanted: tuple[State, ...] = ()
    if is_missing:
        _check_missing(delivery, states, narrowing)
        work = _make(settings, course, narrowing)
    else:
        wanted = _check_again(delivery, states, narrowing)
        work = _repeat(settings, course, delivery, wanted, narrowing)
    options.run_async(_until_stopped(course, work))
    _tell(course, narrowing, is_missing=is_missing, as_json=as_json)
    if not course.count and not as_json and not is_missing and delivery is None and State.DELIVERED not in wanted:
        click.echo("Only dead ones were looked for; others: --state delivered.")


def _check_again(delivery: DeliveryKey | None, states: tuple[str, ...], narrowing: dict[str, Any]) -> tuple[State, ...]:
    """Return the states that are meant; `narrowing` becomes that of the delivery."""
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
    wanted = tuple(map(State, states)) or (again.REPLAYABLE if narrowing["event"] else (State.DEAD,))
    if State.DELIVERED in wanted and delivery is None and given.isdisjoint(again.NARROWING):
        raise UsageError(
            "--state delivered by itself would send the whole history again: "
            "add --event, --config, --record or --since."
        )
    return wanted


def _check_missing(delivery: DeliveryKey | None, states: tuple[str, ...], narrowing: dict[str, Any]) -> None:
    given = {"delivery": delivery, "state": states or None, **narrowing}
    for name in ("delivery", "state", "event", "resource"):
        if given[name] is not None:
            raise UsageError(f"--missing is narrowed by --since, --until and --record only: leave out --{name}.")
    if narrowing["config"] is None:
        raise UsageError("--missing looks for what one config was never owed: name it with --config.")


async def _repeat(
    settings: Settings, course: _Course, key: DeliveryKey | None, states: tuple[State, ...], narrowing: dict[str, Any]
) -> None:
    async with options.connect(settings) as conn:
        now = await history.now(conn)
        chosen = await again.ending(conn, deliveries.filter_of(states, now, **narrowing))
        course.since, course.until = chosen.since, chosen.until
        # A bar for a few would only be in the way.
        is_long = chosen.by_config and sys.stderr.isatty()
        total = await again.total(conn, chosen) if is_long else None
        with _progress(total, shown=is_long and (total is None or total > course.size)) as advance:
            await _paced(course, again.batches(conn, chosen, size=course.size, dry_run=course.dry_run), advance)
        if not course.count and key is not None and await history.delivery(conn, key) is None:
            raise deliveries.unknown(key)
        config = narrowing["config"]
        if not course.count and config is not None and not await configs.load(conn, [config]):
            raise OutboxError(f"There never was a config {config}. See: outbox config list")


async def _make(settings: Settings, course: _Course, narrowing: dict[str, Any]) -> None:
    async with options.connect(settings) as conn:
        now = await history.now(conn)
        since, until = (deliveries.moment(narrowing[name], now) for name in ("since", "until"))
        config, record = narrowing["config"], narrowing["record"]
        gap = await missing.period(conn, config, since=since, until=until, record=record)
        if gap is None:
            raise OutboxError(f"There is no config {config}, or it was removed. See: outbox config list")
        course.since, course.until = gap.since, gap.until
        with _progress(None, shown=record is None and sys.stderr.isatty()) as advance:
            await _paced(course, missing.batches(conn, gap, most=course.size, dry_run=course.dry_run), advance)
        if since is not None and since < gap.since:
            click.echo(
                f"Events before {plain.cell(gap.since)} were left out: what was tried then is no longer kept.", err=True
            )


async def _until_stopped(course: _Course, work: Any) -> None:  # noqa: ANN401 - a coroutine
    loop = asyncio.get_running_loop()

    def stop() -> None:
        course.stop.set()
        # The second one ends it as it ends any other command.
        for each in ending:
            loop.remove_signal_handler(each)

    ending = signals.ending()
    for signum in ending:
        loop.add_signal_handler(signum, stop)
    await work


async def _paced(course: _Course, batches: AsyncGenerator[int], advance: Advance) -> None:
    """Work through the batches, no sooner than the pace allows, until told to stop."""
    clock = asyncio.get_running_loop().time
    begun = clock()
    try:
        async with contextlib.aclosing(batches):
            async for count in batches:
                course.count += count
                advance(count)
                if course.rate is not None and not course.dry_run:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(course.stop.wait(), max(0, begun + count / course.rate - clock()))
                if course.stop.is_set():
                    return
                begun = clock()
    except TRANSIENT as error:
        if not course.count or course.dry_run:
            raise
        raise OutboxError(
            f"Postgres: {str(error).strip()}\n{plain.count(course.count, 'delivery', 'deliveries')} became pending "
            "before that, and stay so."
        ) from error


@contextlib.contextmanager
def _progress(total: int | None, *, shown: bool) -> Iterator[Advance]:
    """Give what is to be called with each batch's count; `shown`: it moves a bar."""
    if not shown:
        yield lambda _: None
        return
    steps = None if total is not None else itertools.repeat(0)
    with click.progressbar(
        steps, length=total, label="Replaying", show_pos=True, show_eta=True, file=sys.stderr
    ) as bar:
        yield bar.update


def _tell(course: _Course, narrowing: dict[str, Any], *, is_missing: bool, as_json: bool) -> None:
    """Say what was done; raises when it was broken off, with how to go on."""
    interrupted = course.stop.is_set()
    amount = plain.count(course.count, "delivery", "deliveries")
    if as_json:
        document = {"replayed": course.count, "dry_run": course.dry_run, "missing": is_missing}
        times = {"since": _utc(course.since), "until": _utc(course.until)}
        options.print_json({**document, "interrupted": interrupted, **times})
    elif not interrupted:
        done, would = ("Made", "made") if is_missing else ("Replayed", "replayed")
        click.echo(f"{amount} would be {would}." if course.dry_run else f"{done} {amount}.")
    if interrupted:
        raise OutboxError(f"Interrupted after {amount}. {_how_to_go_on(course, narrowing)}")


def _how_to_go_on(course: _Course, narrowing: dict[str, Any]) -> str:
    if course.dry_run:
        return "Nothing was changed."
    # An age means another time by then. And what was replayed may have ended again since: the end leaves that out.
    exact = [
        f"--{name} {time.isoformat()}"
        for name, time in (("since", _utc(course.since)), ("until", _utc(course.until)))
        if time is not None
        and (isinstance(narrowing[name], dt.timedelta) or (name == "until" and narrowing[name] != time))
    ]
    return "For the rest give the same command" + (f" with {' '.join(exact)}." if exact else " again.")


def _utc(time: dt.datetime | None) -> dt.datetime | None:
    return None if time is None else time.astimezone(dt.UTC)
