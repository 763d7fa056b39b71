"""What `outbox top` shows and what a key does to it. Nothing is read, drawn or changed here."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from uuid import UUID

from outbox.core.activity import ConfigLook, Sort

SORT_KEYS = {
    "r": Sort.RATE, "f": Sort.FAILING, "l": Sort.LATENCY, "i": Sort.IN_FLIGHT,
    "d": Sort.DUE, "t": Sort.RETRYING, "x": Sort.DEAD, "o": Sort.OLDEST,
}  # fmt: skip
"""The key that sorts by it."""

HELP = (
    ("q", "quit"),
    ("s", "sort by the next column; S by the one before"),
    *((key, f"sort by {sort}") for key, sort in SORT_KEYS.items()),
    ("up, down, k, j", "select a config; home, end, page up, page down, too"),
    ("p", "pause the selected config, or let it send again"),
    ("?", "this help"),
)

PAGE = 10
"""Rows that page up and page down go."""

_SEQUENCES = {
    b"\x1b[A": "up", b"\x1bOA": "up", b"\x1b[B": "down", b"\x1bOB": "down",
    b"\x1b[5~": "page up", b"\x1b[6~": "page down",
    b"\x1b[H": "home", b"\x1bOH": "home", b"\x1b[1~": "home", b"\x1b[F": "end", b"\x1bOF": "end", b"\x1b[4~": "end",
}  # fmt: skip
_STEPS = {"up": -1, "k": -1, "down": 1, "j": 1, "page up": -PAGE, "page down": PAGE}
_LETTERS = range(ord("!"), ord("~") + 1)


@dataclass(frozen=True, slots=True)
class Switch:
    """To pause a config, or to let it send again."""

    config_id: UUID
    pauses: bool


class Quit(Enum):
    """To end."""

    QUIT = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a person chose to see."""

    sort: Sort = Sort.RATE
    selected: UUID | None = None
    """It stays selected wherever a look moves it to. None, or one that is gone: the first is."""
    asks: Switch | None = None
    """What waits for a yes."""
    shows_help: bool = False
    note: str = ""
    """What became of the last key, until the next one."""


def press(view: View, key: str, shown: Sequence[ConfigLook]) -> tuple[View, Switch | Quit | None]:
    """Return the view after a key, and what is to be done. `shown`: the configs in the order of the view."""
    if view.asks is not None:
        if key in ("y", "Y"):
            return replace(view, asks=None), view.asks
        return replace(view, asks=None, note="Nothing was changed."), None
    if key == "q":
        return view, Quit.QUIT
    if view.shows_help:
        return replace(view, shows_help=False), None
    return _choose(replace(view, note=""), key, shown), None


def _choose(view: View, key: str, shown: Sequence[ConfigLook]) -> View:
    if key == "?":
        return replace(view, shows_help=True)
    if key in SORT_KEYS:
        return replace(view, sort=SORT_KEYS[key])
    if key in ("s", "S"):
        sorts = list(Sort)
        return replace(view, sort=sorts[(sorts.index(view.sort) + (1 if key == "s" else -1)) % len(sorts)])
    return _on_config(view, key, shown) if shown else view


def _on_config(view: View, key: str, shown: Sequence[ConfigLook]) -> View:
    last = len(shown) - 1
    at = place(view, shown)
    if key == "p":
        return replace(view, asks=Switch(shown[at].id, pauses=not shown[at].is_paused), selected=shown[at].id)
    goal = {"home": 0, "end": last}.get(key, min(last, max(0, at + _STEPS.get(key, 0))))
    return replace(view, selected=shown[goal].id)


def place(view: View, shown: Sequence[ConfigLook]) -> int:
    """Return which of the shown configs is selected."""
    return next((number for number, each in enumerate(shown) if each.id == view.selected), 0)


def window(count: int, selected: int, rows: int) -> range:
    """Return which of `count` rows are seen where there is room for `rows`: the selected one is among them."""
    first = max(0, min(selected - rows // 2, count - rows))
    return range(first, min(count, first + rows))


def keys(typed: bytes) -> list[str]:
    """Return the keys that a terminal's bytes stand for. One that is none of ours is `other`."""
    found = []
    while typed:
        sequence = next((each for each in _SEQUENCES if typed.startswith(each)), None)
        if sequence is not None:
            found.append(_SEQUENCES[sequence])
            typed = typed[len(sequence) :]
        elif typed.startswith((b"\x1b[", b"\x1bO")):
            end = next((n for n, byte in enumerate(typed[2:], start=2) if byte in range(0x40, 0x7F)), len(typed))
            found.append("other")
            typed = typed[end + 1 :]
        else:
            found.append(chr(typed[0]) if typed[0] in _LETTERS else "other")
            typed = typed[1:]
    return found
