"""Draws `outbox top`: what is seen becomes lines for a terminal of some size. The only module that needs rich.

All text of strangers goes through `clean`, and none of it is read as rich's markup.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from outbox.cli.top_view import HELP, View, place, window
from outbox.cli.top_words import age, compact, milliseconds, rate, state
from outbox.core.activity import ConfigLook, Daemon, Look, Sort, Totals
from outbox.core.printable import clean

_LEAST_COLUMNS, _LEAST_LINES = 20, 4
_FULL_LINES = 10
"""A window with fewer lines shows the sums and the table, and nothing else."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a moment has to show."""

    title: str
    look: Look
    totals: Totals
    configs: Sequence[ConfigLook]
    """In the order of the view."""
    looked_s: float
    """Seconds since the look."""
    took_s: float
    """Seconds that the look took."""
    problem: str | None
    """What keeps from looking again."""


@dataclass(frozen=True, slots=True)
class _Column:
    name: str
    width: int
    cell: Callable[[ConfigLook], str]
    sort: Sort | None = None
    grows: bool = False


def _location(config: ConfigLook) -> str:
    return "(all)" if config.location_id is None else clean(config.location_id)


_COLUMNS = (
    _Column("CONFIG", 8, lambda each: str(each.id)[:8]),
    _Column("OUT/S", 6, lambda each: rate(each.delivered.per_second), Sort.RATE),
    _Column("FAIL/S", 6, lambda each: rate(each.failed.per_second), Sort.FAILING),
    _Column("P95", 6, lambda each: milliseconds(each.p95_ms), Sort.LATENCY),
    _Column("FLIGHT", 6, lambda each: compact(each.in_flight), Sort.IN_FLIGHT),
    _Column("DUE", 6, lambda each: compact(each.due), Sort.DUE),
    _Column("RETRY", 6, lambda each: compact(each.retrying), Sort.RETRYING),
    _Column("DEAD", 6, lambda each: compact(each.dead), Sort.DEAD),
    _Column("OLDEST", 6, lambda each: age(each.oldest_due_s) if each.due else "-", Sort.OLDEST),
    _Column("STATE", 8, state),
    _Column("LOCATION", 12, _location),
    _Column("RESOURCE", 11, lambda each: clean(each.resource)),
    _Column("URL", 16, lambda each: clean(each.url), grows=True),
)
_BY_WORTH = (
    "CONFIG", "DUE", "FAIL/S", "OUT/S", "STATE", "DEAD", "RETRY", "P95", "OLDEST", "FLIGHT", "URL", "LOCATION",
    "RESOURCE",
)  # fmt: skip
"""Which columns a narrow window has: the first of these."""


def draw(seen: Seen, view: View, *, columns: int, lines: int) -> list[str]:
    """Return lines with a terminal's colours, at most `lines` of them, each shorter than `columns`."""
    if columns < _LEAST_COLUMNS or lines < _LEAST_LINES:
        return ["too small"[: columns - 1]]
    width = columns - 1
    console = Console(
        file=io.StringIO(), force_terminal=True, width=width, height=lines, highlight=False, markup=False, emoji=False,
        legacy_windows=False,
    )  # fmt: skip
    with console.capture() as capture:
        console.print(Group(*(_help() if view.shows_help else _parts(seen, view, width, lines))))
    drawn = capture.get().rstrip("\n").split("\n")
    footer = lines - 1
    return drawn if len(drawn) <= lines else [*drawn[:footer], drawn[-1]]


def shown_columns(width: int) -> list[str]:
    """Return the names of the columns that there is room for, in the order of the table."""
    widths = {each.name: each.width for each in _COLUMNS}
    chosen: set[str] = set()
    used = 1  # the mark of the selected row
    for name in _BY_WORTH:
        if used + 1 + widths[name] > width:
            break
        chosen.add(name)
        used += 1 + widths[name]
    return [each.name for each in _COLUMNS if each.name in chosen]


def _parts(seen: Seen, view: View, width: int, lines: int) -> list[RenderableType]:
    head = _sums(seen.totals)[: lines - 3]
    if lines >= _FULL_LINES:
        head = [_title(seen), *head, _daemons(seen), Text("")]
    foot = [_footer(seen, view)]
    if lines >= _FULL_LINES:
        foot = [_selected(seen.configs, view), *foot]
    room = lines - len(head) - len(foot) - 1
    rows = window(len(seen.configs), place(view, seen.configs), max(1, room))
    empty = max(0, room - len(rows))
    return [*head, _table(seen.configs, rows, view, width), *(Text("") for _ in range(empty)), *foot]


def _title(seen: Seen) -> Text:
    line = _line(("outbox top", "bold"), (f"  {clean(seen.title)}  ", ""))
    line.append(f"{datetime.fromtimestamp(seen.look.at, UTC):%H:%M:%SZ}, ")
    line.append(f"looked {seen.looked_s:.0f} s ago, which took {seen.took_s * 1000:.0f} ms")
    return line


def _sums(totals: Totals) -> list[Text]:
    def count(number: int, style: str) -> tuple[str, str]:
        return compact(number), style if number else ""

    return [
        _line(
            ("in ", "dim"), (rate(totals.captured_rate), "bold"), ("/s  delivered ", "dim"),
            (rate(totals.delivered_rate), "bold green"), ("/s  failed ", "dim"),
            (rate(totals.failed_rate), "bold red" if totals.failed_rate else "bold"), ("/s  in flight ", "dim"),
            (compact(totals.in_flight), "bold"), ("  unrouted ", "dim"), (compact(totals.unrouted), ""),
        ),
        _line(
            ("due ", "dim"), (compact(totals.due), "bold"), ("  retrying ", "dim"), count(totals.retrying, "yellow"),
            ("  held ", "dim"), count(totals.held, "yellow"), ("  dead ", "dim"), count(totals.dead, "red"),
            ("  oldest ", "dim"), (age(totals.oldest_s), ""), ("  circuits open ", "dim"),
            count(totals.open_circuits, "yellow"), ("  disabled ", "dim"), count(totals.disabled, "red"),
        ),
    ]  # fmt: skip


def _daemons(seen: Seen) -> Text:
    daemons = seen.look.daemons
    if not daemons:
        return _line(("no daemon is connected", "bold red"))
    line = _line((f"daemons {len(daemons)}: ", "dim"))
    return line.append(", ".join(_daemon(each, seen.look.at) for each in daemons))


def _daemon(daemon: Daemon, now: float) -> str:
    since = "" if daemon.since is None else f" for {age(max(0.0, now - daemon.since.timestamp()))}"
    return f"{clean(daemon.host or 'local')} pid {daemon.pid}{since}"


def _table(configs: Sequence[ConfigLook], rows: range, view: View, width: int) -> Table:
    names = shown_columns(width)
    columns = [each for each in _COLUMNS if each.name in names]
    grows = any(each.grows for each in columns)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="reverse", expand=grows)
    table.add_column("", width=1)
    for each in columns:
        table.add_column(
            Text(each.name, style="bold" if each.sort is view.sort else ""),
            justify="right" if each.sort else "left", no_wrap=True, overflow="ellipsis",
            width=None if each.grows else each.width, ratio=1 if each.grows else None,
        )  # fmt: skip
    selected = place(view, configs)
    for number in rows:
        config = configs[number]
        table.add_row(
            ">" if number == selected else " ",
            *(Text(each.cell(config)) for each in columns),
            style=_style(config) + (" reverse" if number == selected else ""),
        )
    return table


def _style(config: ConfigLook) -> str:
    if not config.sends:
        return "dim"
    if config.circuit_is_open:
        return "red"
    return "yellow" if config.failed.per_second else "default"


def _selected(configs: Sequence[ConfigLook], view: View) -> Text:
    if not configs:
        return _line(("No config yet: outbox config add --help", "dim"))
    config = configs[place(view, configs)]
    line = _line(
        (str(config.id), "bold"), (f"  {_location(config)}  {clean(config.resource)}  {clean(config.url)}", "")
    )
    if config.held:
        line.append(f"  holds {compact(config.held)}", style="yellow")
    if config.disabled_reason is not None:
        line.append(f"  {clean(config.disabled_reason)}", style="red")
    return line


def _footer(seen: Seen, view: View) -> Text:
    if view.asks is not None:
        what = "Pause" if view.asks.pauses else "Let send again:"
        return _line((f"{what} {view.asks.config_id}? y: yes, any other key: no", "bold yellow"))
    if view.note:
        return _line((clean(view.note), "bold"))
    if seen.problem is not None:
        return _line((f"The database can not be asked: {clean(seen.problem)}", "bold red"))
    return _line(
        (f"by {view.sort}", "bold"), ("  q quit  s sort  p pause  ? help", "dim"),
    )  # fmt: skip


def _help() -> list[RenderableType]:
    return [
        _line(("outbox top", "bold")),
        *(_line((f"{key:<15}", "bold"), (f"  {what}", "")) for key, what in HELP),
        _line(("any key goes back", "dim")),
    ]


def _line(*parts: tuple[str, str]) -> Text:
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")
