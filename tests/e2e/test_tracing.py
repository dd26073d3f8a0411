"""Spans of real processes, as a collector on this machine receives them."""

import http.server
import json
import threading

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.faulty_server import FaultyModel, FaultyServer
from tests.support.processes import wait_until

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
OTHER_TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


class Collector(http.server.ThreadingHTTPServer):
    """Takes OTLP over HTTP and keeps the spans."""

    def __init__(self):
        self.spans = []
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.server.spans += scope.spans
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_arguments):
        pass


@pytest.fixture(scope="module")
def collector():
    with Collector() as it:
        thread = threading.Thread(target=it.serve_forever)
        thread.start()
        yield it
        it.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def server(collector, tmp_path_factory):
    path = tmp_path_factory.mktemp("traced")
    env = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    with FaultyServer(path / "server", {"en": FaultyModel(path / "en")}, env=env) as it:
        it.wait_ready()
        yield it


def named(collector, name, trace=TRACE):
    return [span for span in collector.spans if span.name == name and span.trace_id.hex() == trace]


def facts(span):
    return {one.key: one.value.string_value or one.value.int_value for one in span.attributes}


def test_a_request_has_a_span_below_its_callers_and_the_shards_three_below_that(server, collector):
    answer = server.post(
        "/v1/embeddings",
        {"model": "en", "input": ["!sleep=0.05 one", "two"]},
        {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "mine"},
    )
    assert answer.status == 200
    wait_until(lambda: named(collector, "POST /v1/embeddings") and named(collector, "encode"), 20, "spans have come")
    (whole,) = named(collector, "POST /v1/embeddings")
    assert whole.parent_span_id.hex() == PARENT
    told = facts(whole)
    assert told["emb.request_id"] == "mine"
    assert told["emb.model"] == "en"
    assert told["emb.inputs"] == 2
    assert told["http.response.status_code"] == 200
    steps = [named(collector, name) for name in ("tokenize", "queue", "encode")]
    assert [len(step) for step in steps] == [1, 1, 1]
    for (step,) in steps:
        assert step.parent_span_id == whole.span_id
        assert whole.start_time_unix_nano - 5e6 <= step.start_time_unix_nano
        assert step.end_time_unix_nano <= whole.end_time_unix_nano + 5e6
    assert steps[2][0].end_time_unix_nano - steps[2][0].start_time_unix_nano >= 0.05e9


def test_texts_are_in_no_span(server, collector):
    headers = {"traceparent": f"00-{OTHER_TRACE}-{PARENT}-01"}
    server.post("/v1/embeddings", {"model": "en", "input": "a secret sentence"}, headers)
    names = ("POST /v1/embeddings", "tokenize", "queue", "encode")
    wait_until(lambda: all(named(collector, name, OTHER_TRACE) for name in names), 20, "spans have come")
    assert "secret" not in json.dumps([str(span) for span in collector.spans])


def test_what_is_no_traceparent_begins_a_trace_of_its_own(server, collector):
    headers = {"traceparent": "00-nonsense-01", "x-request-id": "of-its-own"}
    answer = server.post("/v1/embeddings", {"model": "en", "input": "x"}, headers)
    assert answer.status == 200

    def roots():
        return [span for span in collector.spans if facts(span).get("emb.request_id") == "of-its-own"]

    # By its id: spans of the test before may still be on their way.
    wait_until(roots, 20, "its span has come")
    assert [span.parent_span_id for span in roots()] == [b""]
