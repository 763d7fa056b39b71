"""What `outbox doctor` finds: one thing that was looked at, how it is, and what to do. Values only."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is. Only a problem makes the command fail."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


OK, WARNING, PROBLEM = Level


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the examination. Values from the database are in it as they are: clean them before a terminal."""

    check: str
    level: Level
    message: str
    advice: str | None = None
    """What to do, as a sentence or a command."""


def and_more(names: list[str], most: int = 5) -> str:
    """Return the first names, separated by commas, and how many more there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def duration(seconds: float) -> str:
    """Return a time for people: `12 s`, `5 min`, `3 h`, `2 d`."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
