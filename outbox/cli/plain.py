"""Plain text for people: aligned columns, times, and nothing that a terminal would obey."""

import datetime as dt
from collections.abc import Sequence

import click

from outbox.core.printable import clean

__all__ = ["cell", "clean", "count", "print_fields", "print_table"]


def cell(value: object, *, width: int | None = None) -> str:
    """Return a value as one clean piece of text; None is `-`, a time is UTC, too long ends in `…`."""
    match value:
        case None | "":
            return "-"
        case dt.datetime():
            return f"{value.astimezone(dt.UTC):%Y-%m-%d %H:%M:%SZ}"
        case bool():
            return "yes" if value else "no"
        case _:
            text = clean(str(value))
            return text if width is None or len(text) <= width else f"{text[: width - 1]}…"


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of clean cells under their header, the columns aligned."""
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        click.echo("  ".join(part.ljust(width) for part, width in zip(line, widths, strict=True)).rstrip())


def print_fields(fields: Sequence[tuple[str, str]]) -> None:
    """Print names and clean values, the values aligned."""
    width = max(len(name) for name, _ in fields)
    for name, value in fields:
        click.echo(f"{name.ljust(width)}  {value}".rstrip())


def config_state(*, is_active: bool, is_paused: bool, circuit_is_open: bool, disabled_reason: str | None) -> str:
    """Return how a config stands, in a word or two."""
    words = ["active" if is_active else "inactive" if disabled_reason is None else "disabled"]
    words += ["paused"] if is_paused else []
    words += ["circuit open"] if circuit_is_open else []
    return ",".join(words) + (f" ({cell(disabled_reason, width=40)})" if disabled_reason is not None else "")


def count(number: int, one: str, many: str) -> str:
    """Return `1 delivery`, `2 deliveries`."""
    return f"{number} {one if number == 1 else many}"
