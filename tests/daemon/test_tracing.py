"""Each try is a span, child of the writer's; a real collector gets it by OTLP, and the subscriber its id."""

import psycopg
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.daemons import add_config, attach_contacts, daemon_process, eventually_true, make_due, owed
from tests.receiver import Receiver, Status
from tests.tried import outbox

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"


def spans(collector: Receiver) -> list[Span]:
    """Return the spans that the collector got, in the order of their beginnings."""
    found = []
    for each in collector.requests:
        assert each.path == "/v1/traces"
        for resource in ExportTraceServiceRequest.FromString(each.body).resource_spans:
            names = {attribute.key: attribute.value.string_value for attribute in resource.resource.attributes}
            assert names["service.name"] == "outbox"
            found += [span for scope in resource.scope_spans for span in scope.spans]
    return sorted(found, key=lambda span: span.start_time_unix_nano)


def attributes(span: Span) -> dict[str, str | int]:
    return {
        each.key: each.value.int_value if each.value.HasField("int_value") else each.value.string_value
        for each in span.attributes
    }


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Receiver:
    """A collector that daemons of this test export to."""
    found = Receiver()
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    return found


def test_each_try_is_a_span_of_the_writers_trace(
    conn: psycopg.Connection, db: str, collector: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused and an accepted try are two children of it; each tells the subscriber its own id, and no secret."""
    attach_contacts(conn)
    with collector, Receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        receiver.answer("/in", Status(503), Status(204))
        config = add_config(conn, receiver.url_for("/in?key=hidden"), number_of_attempts=2)
        with daemon_process(db, tracing="true") as daemon:
            with conn.transaction():
                conn.execute(f"set local outbox.traceparent = '00-{TRACE_ID}-{PARENT_ID}-01'".encode())
                conn.execute("insert into contacts (id) values (1)")
            receiver.wait_for(1)
            eventually_true(lambda: [each[1:] for each in owed(conn)] == [(1, False)])
            make_due(conn)
            eventually_true(lambda: not owed(conn))
            assert daemon.stop() == 0
        refused, accepted = spans(collector)
        for span in (refused, accepted):
            assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE_ID, PARENT_ID)
            assert (span.name, span.kind) == ("POST", Span.SPAN_KIND_CLIENT)
            said = attributes(span)
            assert (said["outbox.config_id"], said["server.address"]) == (str(config), "127.0.0.1")
            assert "hidden" not in str(span)
        assert [attributes(span)["outbox.attempt"] for span in (refused, accepted)] == [1, 2]
        assert [attributes(span)["http.response.status_code"] for span in (refused, accepted)] == [503, 204]
        assert [attributes(span)["outbox.outcome"] for span in (refused, accepted)] == ["retry", "delivered"]
        assert (refused.status.code, refused.status.message) == (refused.status.STATUS_CODE_ERROR, "status 503")
        assert [each.headers["traceparent"] for each in receiver.requests] == [
            f"00-{TRACE_ID}-{span.span_id.hex()}-01" for span in (refused, accepted)
        ]


def test_a_change_without_a_trace_begins_one(
    conn: psycopg.Connection, db: str, collector: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who did not name any gets a trace of the try alone; the last spans leave when the daemon ends."""
    attach_contacts(conn)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    with collector, Receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        add_config(conn, receiver.url)
        conn.execute("insert into contacts (id) values (1)")
        with daemon_process(db, "--until-empty", tracing="true") as daemon:
            assert daemon.process.wait(timeout=60) == 0
        [span] = spans(collector)
        assert span.parent_span_id == b""
        assert receiver.requests[0].headers["traceparent"].split("-")[1] == span.trace_id.hex()


def test_nobody_gets_the_id_of_a_span_that_is_none(
    conn: psycopg.Connection, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where OpenTelemetry is switched off by its own variable, the writer's trace is passed on, and none is made up."""
    attach_contacts(conn)
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    with Receiver() as receiver:
        add_config(conn, receiver.url)
        conn.execute("insert into contacts (id) values (1)")
        with conn.transaction():
            conn.execute(f"set local outbox.traceparent = '00-{TRACE_ID}-{PARENT_ID}-01'".encode())
            conn.execute("insert into contacts (id) values (2)")
        with daemon_process(db, "--until-empty", tracing="true") as daemon:
            assert daemon.process.wait(timeout=60) == 0
        said = [each.headers.get("traceparent") for each in sorted(receiver.requests, key=lambda each: each.data["id"])]
        assert said == [None, f"00-{TRACE_ID}-{PARENT_ID}-01"]


def test_a_collector_that_is_away_costs_nothing(
    conn: psycopg.Connection, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All is delivered, and the daemon ends as it should."""
    attach_contacts(conn)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    with Receiver() as receiver:
        add_config(conn, receiver.url)
        conn.execute("insert into contacts (id) select i from generate_series(1, 50) as i")
        with daemon_process(db, tracing="true") as daemon:
            receiver.wait_for(50)
            eventually_true(lambda: not owed(conn))
            assert daemon.stop() == 0


def test_what_is_neither_true_nor_false_stops_the_start(db: str) -> None:
    """As with every setting."""
    done = outbox(db, "run", "--tracing", "perhaps")
    assert (done.returncode, "OUTBOX_TRACING: 'perhaps' is not true or false." in done.stderr) == (2, True)
