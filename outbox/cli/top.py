"""`outbox top`: what the outbox does just now, in a terminal, with keys."""

import asyncio
import contextlib
import dataclasses
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Coroutine, Iterator
from typing import Any

import click
import psycopg
from psycopg.conninfo import conninfo_to_dict

from outbox.cli import options, plain
from outbox.cli.top_view import Quit, Switch, View, keys, press
from outbox.cli.top_words import age, milliseconds, rate
from outbox.core.activity import RATE_SECONDS, ConfigLook, Look, Sort, Totals, base, ordered, totals
from outbox.errors import OutboxError, UsageError
from outbox.postgres import activity, configs, figures
from outbox.postgres.pool import TRANSIENT, Link, application_name, connected
from outbox.settings import Settings

SHARE = 10
"""The debt is not counted again before so many times the last count's duration have passed."""

_REDRAW_SECONDS = 1.0
_SWITCH_SECONDS = 10.0
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command()
@options.settings("dsn")
@click.option("--once", is_flag=True, help="Print one look as plain text, after a second that shows what comes in.")
@click.option(
    "--interval", type=click.FloatRange(0.2, 3600), default=1.0, show_default=True, help="Seconds between looks."
)
@click.option(
    "--sort", type=click.Choice([each.value for each in Sort]), default=Sort.RATE.value, show_default=True,
    help="What the configs are sorted by.",
)  # fmt: skip
@options.as_json
def top(settings: Settings, *, once: bool, interval: float, sort: str, as_json: bool) -> None:
    """Show what comes in and goes out, what waits, and which configs are slow or fail, live. `?` tells the keys.

    All of it is asked of the database, so it can be run anywhere. --json prints one look, as --once does.
    """
    if once or as_json:
        look, sums = options.run_async(_once(settings))
        shown = ordered(look.configs, Sort(sort))
        if as_json:
            options.print_json(_document(look, sums, shown))
        else:
            _print(look, sums, shown)
        return
    _require_terminal()
    ended_by = options.run_async(_Top(settings, interval=interval, sort=Sort(sort)).run())
    # Ctrl-C is how one leaves; the others are somebody else's will, told as a shell tells it.
    if ended_by not in (None, signal.SIGINT):
        raise click.exceptions.Exit(128 + ended_by)


def _require_terminal() -> None:
    if sys.platform == "win32":
        raise UsageError("outbox top needs a POSIX terminal. Use: outbox top --once, or outbox status")
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or os.environ.get("TERM", "dumb") == "dumb":
        raise UsageError(
            "outbox top needs a terminal that can move its cursor. For scripts there are outbox top --once, with or "
            "without --json, and outbox status."
        )
    try:
        import rich  # noqa: F401, PLC0415 - the daemon does without
    except ImportError:
        raise UsageError(
            "outbox top needs rich, which is not installed: install outbox with its extra `top`. Without it: "
            "outbox top --once"
        ) from None


async def _once(settings: Settings) -> tuple[Look, Totals]:
    name = application_name(options.needed(settings.dsn))
    async with options.connect(settings, session=figures.SETTINGS) as conn:
        before = await activity.look(conn, application_name=name)
        await asyncio.sleep(1)
        now = await activity.look(conn, application_name=name)
    return now, totals(now, before)


class _Top:
    """The live view. `run` returns the signal that ended it, None for a key."""

    def __init__(self, settings: Settings, *, interval: float, sort: Sort) -> None:
        from outbox.cli import terminal, top_screen  # noqa: PLC0415 - neither is on every machine

        self._screen = top_screen
        self._terminal = terminal.Terminal(sys.stdin.fileno(), sys.stdout.fileno())
        self._settings = settings
        self._dsn = options.needed(settings.dsn)
        self._link = Link(self._dsn, "command", settings=figures.SETTINGS, pooling=settings.pooling)
        self._interval = interval
        self._view = View(sort=sort)
        self._looks: deque[Look] = deque()
        self._looked_at = 0.0
        self._took = 0.0
        self._problem: str | None = None
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._switches: set[asyncio.Task[None]] = set()
        self._ended = False
        self._ended_by: signal.Signals | None = None

    async def run(self) -> signal.Signals | None:
        """Show it until somebody has enough."""
        try:
            # What is wrong from the start is told where it can be read.
            await self._look()
            # The signals first: none of them may end us while the terminal is ours.
            with self._signals(), self._terminal:
                self._start(self._look_on())
                await self._show()
            # What was said yes to is done, also by who leaves at once.
            if self._switches:
                await asyncio.wait(self._switches, timeout=_SWITCH_SECONDS)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._link.drop()
        return self._ended_by

    async def _show(self) -> None:
        while not self._ended:
            self._changed.clear()
            self._draw()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), _REDRAW_SECONDS)
            for task in [each for each in self._tasks if each.done()]:
                self._tasks.discard(task)
                self._switches.discard(task)
                task.result()

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        task.add_done_callback(lambda _: self._changed.set())
        self._tasks.add(task)
        return task

    async def _look_on(self) -> None:
        while True:
            await asyncio.sleep(max(self._interval, SHARE * self._took))
            try:
                await self._look()
            except TRANSIENT as error:
                self._problem = str(error).strip()
                await self._link.drop()
            self._changed.set()

    async def _look(self) -> None:
        conn = await self._link.connection()
        began = time.monotonic()
        async with options.explained(conn):
            look = await activity.look(conn, application_name=application_name(self._dsn))
        self._looked_at = time.monotonic()
        self._took = self._looked_at - began
        self._problem = None
        while len(self._looks) > 1 and self._looks[1].at < look.at - RATE_SECONDS:
            self._looks.popleft()
        self._looks.append(look)

    def _draw(self) -> None:
        look = self._looks[-1]
        info = conninfo_to_dict(self._dsn)
        seen = self._screen.Seen(
            title=f"{info.get('dbname') or ''}@{info.get('host') or 'local'}",
            look=look,
            totals=totals(look, base(self._looks, look)),
            configs=ordered(look.configs, self._view.sort),
            looked_s=time.monotonic() - self._looked_at,
            took_s=self._took,
            problem=self._problem,
        )
        try:
            columns, lines = self._terminal.size
            self._terminal.draw(self._screen.draw(seen, self._view, columns=columns, lines=lines))
        except OSError:
            # The window was closed, and its signal is under way.
            self._end(signal.SIGHUP)

    def _type(self) -> None:
        typed = self._terminal.read()
        if not typed:
            self._end(signal.SIGHUP)
        for key in keys(typed):
            self._view, wanted = press(self._view, key, ordered(self._looks[-1].configs, self._view.sort))
            match wanted:
                case Quit():
                    self._end(None)
                case Switch():
                    self._switches.add(self._start(self._switch(wanted)))
                case None:
                    pass
        self._changed.set()

    async def _switch(self, wanted: Switch) -> None:
        # A connection of its own: the other one may be counting for a second.
        change = configs.pause if wanted.pauses else configs.resume
        try:
            async with connected(self._dsn, "command", pooling=self._settings.pooling) as conn:
                changed = await change(conn, wanted.config_id)
        except (OutboxError, psycopg.Error, OSError) as error:
            note = f"Nothing was changed: {str(error).strip()}"
        else:
            note = f"{'Paused' if wanted.pauses else 'Resumed'} {changed.id}."
            self._looks[-1] = _with_pause(self._looks[-1], wanted)
        self._view = dataclasses.replace(self._view, note=note)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        keyboard = sys.stdin.fileno()
        for number in _ENDING:
            loop.add_signal_handler(number, self._end, number)
        loop.add_signal_handler(signal.SIGTSTP, self._stop)
        loop.add_signal_handler(signal.SIGCONT, self._continue)
        loop.add_signal_handler(signal.SIGWINCH, self._changed.set)
        loop.add_reader(keyboard, self._type)
        try:
            yield
        finally:
            loop.remove_reader(keyboard)
            for number in (*_ENDING, signal.SIGTSTP, signal.SIGCONT, signal.SIGWINCH):
                loop.remove_signal_handler(number)

    def _end(self, by: signal.Signals | None) -> None:
        self._ended, self._ended_by = True, by
        self._changed.set()

    def _stop(self) -> None:
        self._terminal.leave()
        # Not SIGTSTP, which is ours: this one stops us here, until a SIGCONT.
        os.kill(os.getpid(), signal.SIGSTOP)

    def _continue(self) -> None:
        self._terminal.enter()
        self._changed.set()


def _with_pause(look: Look, switch: Switch) -> Look:
    """Return the look as it would be now, so that what was done shows before the next one.

    What was held is counted as due; how much of it waits for its next try, the next look tells.
    """
    return dataclasses.replace(
        look,
        configs=tuple(
            dataclasses.replace(
                each,
                is_paused=switch.pauses,
                due=each.held if each.is_active and not switch.pauses else 0,
                oldest_due_s=0.0,
            )
            if each.id == switch.config_id
            else each
            for each in look.configs
        ),
    )


def _print(look: Look, sums: Totals, shown: list[ConfigLook]) -> None:
    oldest = f" (oldest for {age(sums.oldest_s)})" if sums.oldest_s else ""
    plain.print_fields(
        [
            ("in", f"{rate(sums.captured_rate)}/s"),
            ("delivered", f"{rate(sums.delivered_rate)}/s"),
            ("failed", f"{rate(sums.failed_rate)}/s"),
            ("in flight", str(sums.in_flight)),
            ("unrouted", str(sums.unrouted)),
            ("due", f"{sums.due}{oldest}"),
            ("retrying", str(sums.retrying)),
            ("held", str(sums.held)),
            ("dead", str(sums.dead)),
            ("open circuits", str(sums.open_circuits)),
            ("disabled", str(sums.disabled)),
            ("daemons", str(len(look.daemons))),
        ]
    )
    if look.daemons:
        click.echo()
        rows = [(str(each.pid), plain.cell(each.host or "local"), plain.cell(each.since)) for each in look.daemons]
        plain.print_table(("DAEMON", "HOST", "SINCE"), rows)
    if shown:
        click.echo()
        header = (
            "CONFIG", "OUT/S", "FAIL/S", "P95", "FLIGHT", "DUE", "RETRY", "DEAD", "OLDEST", "STATE", "LOCATION",
            "RESOURCE", "URL",
        )  # fmt: skip
        plain.print_table(header, [_row(each) for each in shown])


def _row(config: ConfigLook) -> tuple[str, ...]:
    return (
        str(config.id), rate(config.delivered.per_second), rate(config.failed.per_second), milliseconds(config.p95_ms),
        str(config.in_flight), str(config.due), str(config.retrying), str(config.dead),
        age(config.oldest_due_s) if config.due else "-",
        plain.config_state(
            is_active=config.is_active, is_paused=config.is_paused, circuit_is_open=config.circuit_is_open,
            disabled_reason=config.disabled_reason,
        ),
        "(all)" if config.location_id is None else plain.cell(config.location_id), plain.cell(config.resource),
        plain.cell(config.url),
    )  # fmt: skip


def _document(look: Look, sums: Totals, shown: list[ConfigLook]) -> dict[str, object]:
    rows = []
    for each in shown:
        row = dataclasses.asdict(each)
        del row["delivered"], row["failed"]
        rows.append(
            {
                **row, "retrying": each.retrying, "held": each.held,
                "delivered_rate": each.delivered.per_second, "failed_rate": each.failed.per_second,
            }
        )  # fmt: skip
    return {
        **dataclasses.asdict(sums),
        "daemons": [dataclasses.asdict(each) for each in look.daemons],
        "configs": rows,
    }
