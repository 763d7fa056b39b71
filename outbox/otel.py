"""The way to outbox.tracing, which needs the extra `otel`: for the daemon, and for the doctor, who tries what it does.

What can keep a daemon that is to trace from starting is told here, once.
"""

from typing import TYPE_CHECKING

from outbox.errors import UsageError

if TYPE_CHECKING:
    from outbox.tracing import Tracing


def begin_tracing() -> "Tracing":
    """Return what begins the spans, as OpenTelemetry's own variables say; somebody has to close it.

    Raises UsageError where the extra is missing or not whole, and for a variable that OpenTelemetry can not read.
    """
    try:
        from outbox.tracing import Tracing  # noqa: PLC0415 - of an extra, which few install

        return Tracing.by_environment()
    except ImportError as error:
        # The tempting look for `opentelemetry` finds the API alone, which other packages bring along.
        raise UsageError(f"OUTBOX_TRACING needs {error.name}: install outbox with its extra `otel`.") from None
    except ValueError as error:
        # Some of its variables are read as it is imported.
        said = str(error).rstrip(".")
        raise UsageError(f"OUTBOX_TRACING: OpenTelemetry can not read one of its variables: {said}.") from None
