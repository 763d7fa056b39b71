"""A span for each try, child of the writer's own. Of the extra `otel`: only who was asked for it may import this.

Where the spans go, and which of them, is said by OpenTelemetry's own variables (OTEL_EXPORTER_OTLP_ENDPOINT,
OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME, …). Nothing here waits for the collector.
"""

from typing import Self

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from outbox import __version__
from outbox.core.model import Answer, Attempt, Delivery, Failure
from outbox.core.url import UrlFaultError, parse

LAST_EXPORT_SECONDS = 5.0
"""How long the last spans may take to leave at the end."""


class Tracing:
    """Begins the spans. Made once in a process."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("outbox", __version__)
        self._context = TraceContextTextMapPropagator()

    @classmethod
    def by_environment(cls) -> Self:
        """Return one that exports by OTLP over HTTP, as the environment says."""
        resource = Resource.create({SERVICE_VERSION: __version__})
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: "outbox"}))
        provider = TracerProvider(resource=resource)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider)

    def begin(self, delivery: Delivery, url: str) -> "TrySpan":
        """Begin the span of a try, now."""
        attributes: dict[str, str | int] = {
            "http.request.method": "POST",
            "outbox.event_id": delivery.webhook_id,
            "outbox.config_id": delivery.config_id,
            "outbox.attempt": delivery.attempt,
            "outbox.resource": delivery.resource or "",
            "outbox.type": delivery.type or "",
        }
        try:
            # Neither path nor query: subscribers keep keys there.
            where = parse(url)
            attributes |= {"server.address": where.host, "server.port": where.port}
        except UrlFaultError:
            pass
        parent = {} if delivery.traceparent is None else {"traceparent": delivery.traceparent}
        return TrySpan(
            self._tracer.start_span(
                "POST", context=self._context.extract(parent), kind=trace.SpanKind.CLIENT, attributes=attributes
            )
        )

    def close(self) -> None:
        """Send the last spans, and end. It may block for some seconds."""
        self._provider.force_flush(round(LAST_EXPORT_SECONDS * 1000))
        self._provider.shutdown()


class TrySpan:
    """The span of one try."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    @property
    def traceparent(self) -> str | None:
        """What the subscriber gets, so that his spans are children of this one (W3C Trace Context).

        None where nothing is traced, by OTEL_SDK_DISABLED: an id of zeros is no header that he could read.
        """
        context = self._span.get_span_context()
        if not context.is_valid:
            return None
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def end(self, attempt: Attempt, result: Answer | Failure) -> None:
        """End it, with what came of the try."""
        self._span.set_attribute("outbox.outcome", attempt.outcome.name)
        if result.status is not None:
            self._span.set_attribute("http.response.status_code", result.status)
        if attempt.outcome.reason is not None:
            self._span.set_attribute("error.type", result.kind if isinstance(result, Failure) else str(result.status))
            self._span.set_status(trace.StatusCode.ERROR, attempt.outcome.reason)
        self._span.end()

    def abandon(self) -> None:
        """End it for a try that was not made, or that was cut off."""
        self._span.set_attribute("outbox.outcome", "given back")
        self._span.end()
