"""What keys do to the view of `outbox top`, and what is drawn of it, by values."""

import re
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import pytest
from rich.cells import cell_len

from outbox.cli.top_screen import Seen, draw, shown_columns
from outbox.cli.top_view import HELP, Quit, Switch, View, keys, place, press, window
from outbox.cli.top_words import age, compact, milliseconds, rate, state
from outbox.core.activity import ConfigLook, Daemon, Look, Sort, Tries, totals

CONFIG = ConfigLook(
    id=UUID(int=1 << 96), location_id="L", resource="contact", url="http://x.invalid/hook", is_active=True,
    is_paused=False, circuit_is_open=False, disabled_reason=None, pending=0, due=0, in_flight=0, dead=0,
    oldest_due_s=0.0,
)  # fmt: skip
CONFIGS = [replace(CONFIG, id=UUID(int=number << 96)) for number in range(1, 31)]
STYLE = re.compile(r"\x1b\[[0-9;]*m")


def seen(*configs: ConfigLook, **changes: object) -> Seen:
    look = Look(
        at=0.0, captured=0, unrouted=0, oldest_unrouted_s=0.0, configs=configs,
        daemons=(Daemon(77, "10.0.0.5", datetime(1969, 12, 31, 21, tzinfo=UTC)),),
    )  # fmt: skip
    whole = Seen(
        title="app@db", look=look, totals=totals(look, None), configs=configs, looked_s=0.0, took_s=0.012, problem=None
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


def drawn(found: Seen, view: View | None = None, *, columns: int = 120, lines: int = 24) -> list[str]:
    return [STYLE.sub("", line) for line in draw(found, view or View(), columns=columns, lines=lines)]


def pressed(view: View, *names: str) -> View:
    for name in names:
        view, wanted = press(view, name, CONFIGS)
        assert wanted is None
    return view


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        (b"qs", ["q", "s"]),
        (b"\x1b[A\x1bOBj", ["up", "down", "j"]),
        (b"\x1b[5~\x1b[F", ["page up", "end"]),
        (b"\x1b", ["other"]),
        (b"\x1b[200~p\x1b[1;5Cq", ["other", "p", "other", "q"]),
        (b"\x1b[", ["other"]),
        ("é\0 ".encode(), ["other"] * 4),
    ],
)
def test_bytes_of_a_terminal_are_keys(typed: bytes, names: list[str]) -> None:
    """Sequences that are none of ours are one unknown key each, and no letter of them is taken for one."""
    assert keys(typed) == names


def test_sorting_goes_round_and_by_letter() -> None:
    """`s` and `S` undo each other, and each sort has a letter that the help tells."""
    view = pressed(View(), "s")
    assert view.sort is Sort.FAILING
    assert pressed(view, "S").sort is Sort.RATE
    assert pressed(View(), *["s"] * len(Sort)).sort is Sort.RATE
    letters = {what.removeprefix("sort by "): key for key, what in HELP}
    assert {pressed(View(), letters[sort]).sort for sort in Sort} == set(Sort)


def test_the_selection_moves_within_the_rows_and_stays_with_its_config() -> None:
    """Another order, or one that is gone, does not select what nobody chose."""
    view = pressed(View(), "up", "j", "down", "k")
    assert place(view, CONFIGS) == 1
    assert place(view, CONFIGS[::-1]) == 28
    assert place(view, CONFIGS[5:]) == 0
    assert place(pressed(view, "end", "down"), CONFIGS) == 29
    assert place(pressed(view, "page down", "page up", "home"), CONFIGS) == 0
    assert press(View(), "down", []) == (View(), None)
    assert press(View(), "p", []) == (View(), None)


def test_a_pause_is_confirmed() -> None:
    """Only `y` does it; everything else, even `q`, does not, and says so."""
    asking = pressed(View(), "down", "p")
    assert asking.asks == Switch(CONFIGS[1].id, pauses=True)
    view, wanted = press(asking, "y", CONFIGS)
    assert (view.asks, wanted) == (None, asking.asks)
    view, wanted = press(asking, "q", CONFIGS)
    assert (view.asks, view.note, wanted) == (None, "Nothing was changed.", None)
    assert pressed(view, "down").note == ""
    assert press(View(), "q", CONFIGS)[1] is Quit.QUIT
    paused, _ = press(View(), "p", [replace(CONFIG, is_paused=True)])
    assert paused.asks == Switch(CONFIG.id, pauses=False)


def test_the_selected_row_is_always_among_those_that_are_seen() -> None:
    """However many there are, and however small the window."""
    for selected in range(30):
        for rows in (1, 2, 7, 29, 30, 40):
            shown = window(30, selected, rows)
            assert selected in shown
            assert len(shown) == min(rows, 30)
    assert list(window(0, 0, 5)) == []


def test_numbers_fit_their_columns() -> None:
    """Six letters at most."""
    assert [compact(n) for n in (0, 99_999, 100_000, 999_499, 999_500, 1_234_567, 9_999_999_999, 10**13)] == [
        "0", "99999", "100k", "999k", "1.0M", "1.2M", "10G", "many",
    ]  # fmt: skip
    assert [rate(n) for n in (None, 0, 0.04, 12.34, 999.9, 17_000.4)] == ["-", "0", "0.0", "12.3", "999.9", "17000"]
    assert [milliseconds(n) for n in (None, 0, 999, 15_000)] == ["-", "0ms", "999ms", "15.0s"]
    assert [age(n) for n in (0.4, 119, 120, 7200, 172_800)] == ["0s", "119s", "2m", "2h", "2d"]
    assert state(replace(CONFIG, circuit_is_open=True)) == "circuit"
    assert state(replace(CONFIG, circuit_is_open=True, is_paused=True)) == "paused"
    assert state(replace(CONFIG, is_active=False)) == "inactive"
    assert state(replace(CONFIG, is_active=False, disabled_reason="x")) == "disabled"


def test_a_screen_has_the_sums_the_daemons_and_the_configs() -> None:
    """Each number stands under its name, the selected config is told in full, and the last line has the keys."""
    busy = replace(
        CONFIG, pending=9, due=5, in_flight=3, dead=2, oldest_due_s=61, delivered=Tries(7, 7, None), p95_ms=12
    )
    lines = drawn(seen(busy, CONFIGS[1]))
    text = "\n".join(lines)
    assert "app@db" in lines[0]
    assert "took 12 ms" in lines[0]
    assert "delivered 0.7/s" in lines[1]
    assert "due 5  retrying 1  held 0  dead 2  oldest 61s" in lines[2]
    assert "daemons 1: 10.0.0.5 pid 77 for 3h" in text
    header, first, second = lines[5:8]
    for name, value in {
        "OUT/S": "0.7",
        "P95": "12ms",
        "FLIGHT": "3",
        "DUE": "5",
        "RETRY": "1",
        "OLDEST": "61s",
    }.items():
        end = header.index(name) + len(name)
        assert first[:end].endswith(f" {value}"), name
    assert first.startswith("> 00000001")
    assert second.startswith("  00000002")
    assert str(busy.id) in lines[-2]
    assert lines[-1] == "by rate  q quit  s sort  p pause  ? help"
    assert len(lines) == 24


def test_the_last_line_asks_answers_and_complains() -> None:
    """A question goes before a note, a note before trouble with the database."""
    view = View(asks=Switch(CONFIG.id, pauses=True), note="Paused.")
    broken = seen(CONFIG, problem="connection\nlost \x1b[2J")
    assert drawn(broken, view)[-1] == f"Pause {CONFIG.id}? y: yes, any other key: no"
    assert drawn(broken, replace(view, asks=None))[-1] == "Paused."
    assert drawn(broken)[-1] == r"The database can not be asked: connection\nlost \x1b[2J"


@pytest.mark.parametrize("columns", [1, 10, 20, 40, 80, 100, 300])
@pytest.mark.parametrize("lines", [1, 3, 4, 9, 10, 24])
def test_no_window_is_too_small(columns: int, lines: int) -> None:
    """Never more lines than there are, none as wide as the window: neither scrolls. The selected one is on it."""
    configs = [replace(each, url="http://x.invalid/" + "長" * 90, resource="r" * 128) for each in CONFIGS]
    for view in (View(selected=CONFIGS[17].id), View(shows_help=True), View(asks=Switch(CONFIG.id, pauses=True))):
        found = drawn(seen(*configs), view, columns=columns, lines=lines)
        assert len(found) <= lines
        assert all(cell_len(line) < max(2, columns) for line in found)
    if columns >= 20 and lines >= 4:
        assert any(
            line.startswith("> 00000012")
            for line in drawn(seen(*configs), View(selected=CONFIGS[17].id), columns=columns, lines=lines)
        )


def test_a_narrow_window_has_the_columns_that_matter_most() -> None:
    """They keep their order."""
    assert shown_columns(40) == ["CONFIG", "OUT/S", "FAIL/S", "DUE", "STATE"]
    assert shown_columns(79)[-1] == "STATE"
    assert shown_columns(200)[-3:] == ["LOCATION", "RESOURCE", "URL"]


def test_strangers_text_commands_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No escape, no line break and no markup of theirs reaches the terminal as such. NO_COLOR is obeyed."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    hostile = replace(
        CONFIG, url="http://x/[red]\x1b[2J\n\u202e", resource="\x9b2J[/]", location_id="\r:smile:", is_active=False,
        disabled_reason="\x1b]0;x\x07",
    )  # fmt: skip
    raw = "\n".join(draw(seen(hostile, failing()), View(), columns=250, lines=24))
    assert set(STYLE.findall(raw)) <= {"\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[7m", "\x1b[1;7m", "\x1b[2;7m"}
    text = STYLE.sub("", raw)
    assert all(line.isprintable() for line in text.split("\n"))
    assert r"http://x/[red]\x1b[2J\n\u202e" in text
    assert r"\x9b2J[/]" in text
    assert r"\r:smile:" in text


def failing() -> ConfigLook:
    return replace(CONFIGS[2], failed=Tries(5, 5, None), circuit_is_open=True, dead=4)
