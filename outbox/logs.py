"""How the daemon logs: one event a line with its keys; JSON unless a person reads it on a terminal.

Names are constant, dotted and in the past tense. No payload, no URL's query and no secret is ever a value.
"""

import asyncio
import atexit
import json
import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime

import structlog
from structlog.typing import EventDict, WrappedLogger

from outbox.core.printable import clean, clean_json

_level = logging.INFO
_json_lines: "_Lines | None" = None

# Made once: json.dumps makes an encoder for each line, which takes longer than the line.
_encode = json.JSONEncoder(default=str, ensure_ascii=False).encode


LONGEST_ERROR = 300
"""Characters of an error that a line tells."""


def said(error: Exception) -> str:
    """Return what an error says, in one line: PostgreSQL's have several."""
    return " ".join(str(error).split())[:LONGEST_ERROR]


class _Lines:
    """Writes lines to stderr: those of one turn of the event loop at once, outside of one each by itself."""

    def __init__(self) -> None:
        self._waiting: list[str] = []

    def msg(self, line: str) -> None:
        """Take a line."""
        self._waiting.append(line)
        if len(self._waiting) == 1:
            try:
                asyncio.get_running_loop().call_soon(self.flush)
            except RuntimeError:
                self.flush()

    log = debug = info = warning = warn = error = critical = exception = failure = fatal = msg

    def flush(self) -> None:
        """Write what waits."""
        lines, self._waiting = self._waiting, []
        if lines:
            sys.stderr.write("\n".join(lines) + "\n")
            sys.stderr.flush()


def configure(*, level: int = logging.INFO, colours: bool | None = None, with_context: bool = False) -> None:
    """Set up structlog for this process.

    `level`: the least that is shown, as the library `logging` numbers them. `colours`: for a person; by default if
    stderr is a terminal. `with_context`: each line carries what its task has bound to it, such as the id of a request.
    """
    for_people = sys.stderr.isatty() if colours is None else colours
    lines = _Lines()
    global _level, _json_lines
    _level, _json_lines = level, None if for_people else lines
    atexit.register(lines.flush)
    structlog.configure(
        processors=[
            *([structlog.contextvars.merge_contextvars] if with_context else []),
            _complete,
            *([_cleaned, structlog.dev.ConsoleRenderer()] if for_people else [_render]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: lines,
        cache_logger_on_first_use=True,
    )


def shows(level: int) -> bool:
    """Return whether lines of this level are shown."""
    return level >= _level


def json_lines() -> Callable[[str], None] | None:
    """Return what writes a finished JSON line; None where structlog has to make it, for a person."""
    return None if _json_lines is None else _json_lines.msg


def _complete(logger: WrappedLogger, level: str, event: EventDict) -> EventDict:
    event["level"] = level
    event["timestamp"] = datetime.now(UTC).isoformat()
    if "exc_info" in event:
        event = structlog.processors.format_exc_info(logger, level, event)
    return event


def in_json(value: object) -> str:
    """Return a value as JSON that is safe to show, the form in which it stands in a line."""
    return clean_json(_encode(value))


def _render(_logger: WrappedLogger, _level: str, event: EventDict) -> str:
    return in_json(event)


def _cleaned(_logger: WrappedLogger, _level: str, event: EventDict) -> EventDict:
    # What the renderer would show of an object is text of its own.
    return {
        clean(name): "\n".join(map(clean, str(value).split("\n"))) if name == "exception" else _shown(value)
        for name, value in event.items()
    }


def _shown(value: object) -> object:
    return value if value is None or isinstance(value, int | float) else clean(str(value))
