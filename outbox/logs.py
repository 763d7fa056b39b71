"""How the daemon logs: one event a line with its keys; JSON unless a person reads it on a terminal.

Names are constant, dotted and in the past tense. No payload, no URL's query and no secret is ever a value.
"""

import logging
import sys

import structlog


def configure(*, level: int = logging.INFO, colours: bool | None = None) -> None:
    """Set up structlog for this process. `colours`: for a person; by default if stderr is a terminal."""
    for_people = sys.stderr.isatty() if colours is None else colours
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.dev.ConsoleRenderer() if for_people else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
