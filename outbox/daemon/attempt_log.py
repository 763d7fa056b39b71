"""The line `delivery.attempted`, one for each try: the only one that is written as often as something is sent.

structlog takes as long for it as for half of the POST, so where lines are JSON it is put together here. A person's
terminal gets it from structlog, as all the others.
"""

import logging
from datetime import UTC, datetime

import structlog

from outbox import logs
from outbox.core.model import Attempt, Retry

_EVENT = "delivery.attempted"
_TAIL = f'"event": "{_EVENT}", "level": "info", "timestamp": "'


class AttemptLog:
    """Logs tries the way that this process logs."""

    def __init__(self) -> None:
        self._is_shown = logs.shows(logging.INFO)
        self._write = logs.json_lines()
        self._log = structlog.get_logger("outbox").bind()  # once: the lazy one would look for its configuration

    def note(self, attempt: Attempt) -> None:
        """Log a try."""
        if not self._is_shown:
            return
        if self._write is not None:
            self._write(line(attempt, datetime.now(UTC)))
            return
        self._log.info(
            _EVENT,
            event_id=attempt.delivery.webhook_id,
            config_id=attempt.delivery.config_id,
            attempt=attempt.delivery.attempt,
            status=attempt.status,
            duration_ms=attempt.duration_ms,
            outcome=attempt.outcome.name,
            **({"due_in_s": attempt.outcome.after} if isinstance(attempt.outcome, Retry) else {}),
            **({} if attempt.outcome.reason is None else {"error": attempt.outcome.reason}),
        )


def line(attempt: Attempt, now: datetime) -> str:
    """Return the line as structlog would have it, to the letter."""
    outcome = attempt.outcome
    due = f'"due_in_s": {outcome.after}, ' if isinstance(outcome, Retry) else ""
    error = "" if outcome.reason is None else f'"error": {logs.in_json(outcome.reason)}, '
    status = "null" if attempt.status is None else attempt.status
    return (
        f'{{"event_id": "{attempt.delivery.webhook_id}", "config_id": "{attempt.delivery.config_id}", '
        f'"attempt": {attempt.delivery.attempt}, "status": {status}, "duration_ms": {attempt.duration_ms}, '
        f'"outcome": "{outcome.name}", {due}{error}{_TAIL}{now.isoformat()}"}}'
    )
