"""How the daemon logs: one event a line with its keys; JSON unless a person reads it on a terminal.

Names are constant, dotted and in the past tense. No payload, no URL's query and no secret is ever a value.
"""

import json
import logging
import sys
from datetime import UTC, datetime

import structlog
from structlog.typing import EventDict, WrappedLogger

# Made once: json.dumps makes an encoder for each line, which takes longer than the line.
_encode = json.JSONEncoder(default=str, ensure_ascii=False).encode


def configure(*, level: int = logging.INFO, colours: bool | None = None) -> None:
    """Set up structlog for this process. `colours`: for a person; by default if stderr is a terminal."""
    for_people = sys.stderr.isatty() if colours is None else colours
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            _add_time,
            structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback) if for_people else _render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )


def _add_time(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    event["timestamp"] = datetime.now(UTC).isoformat()
    return event


def _render(_logger: WrappedLogger, _name: str, event: EventDict) -> str:
    return _encode(event)
