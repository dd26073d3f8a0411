import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.http import trace_exporter
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from emb_model_provider import tracing
from emb_model_provider.tracing import Tracer, is_traceparent, make_tracer

GOOD = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        (GOOD, True),
        (GOOD.replace("00-", "cc-", 1) + "-more", True),
        (GOOD.replace("00-", "ff-", 1), False),
        ("00-" + "0" * 32 + "-b7ad6b7169203331-01", False),
        ("00-0af7651916cd43dd8448eb211c80319c-" + "0" * 16 + "-01", False),
        (GOOD.upper(), False),
        ("", False),
    ],
)
def test_a_traceparent_is_what_the_recommendation_says(text, is_one):
    assert is_traceparent(text) is is_one


@given(st.text())
def test_any_text_is_told_from_one(text):
    assert isinstance(is_traceparent(text), bool)


def test_without_an_exporter_nothing_is_imported(monkeypatch):
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", raising=False)
    assert make_tracer("router") is None


@pytest.mark.parametrize("name", ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"])
@pytest.mark.parametrize(("disabled", "is_on"), [("", True), ("false", True), ("true", False), ("TRUE", False)])
def test_an_exporter_is_enough_unless_opentelemetry_is_turned_off(monkeypatch, name, disabled, is_on):
    for other in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_SDK_DISABLED", disabled)
    monkeypatch.setattr(tracing, "Tracer", lambda process: f"of {process}")
    assert make_tracer("router") == ("of router" if is_on else None)


def test_missing_packages_are_said_and_nothing_else_happens(monkeypatch, caplog):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    assert make_tracer("router") is None
    assert "tracing_off" in caplog.messages


@pytest.fixture
def exported(monkeypatch):
    """The spans that have left; closing a tracer sends the rest."""
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(trace_exporter, "OTLPSpanExporter", lambda: exporter)
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    return exporter.get_finished_spans


def test_a_span_is_below_the_one_that_the_request_names_and_ends_with_what_is_known_by_then(exported):
    tracer = Tracer("router-0-5")
    span = tracer.open("POST", GOOD, {"http.request.method": "POST"})
    assert exported() == ()
    span.end("POST /v1/embeddings", {"http.response.status_code": 200}, failed=False)
    tracer.close()
    (sent,) = exported()
    assert (sent.name, sent.kind, sent.status.status_code) == ("POST /v1/embeddings", SpanKind.SERVER, StatusCode.UNSET)
    assert sent.attributes == {"http.request.method": "POST", "http.response.status_code": 200}
    assert f"00-{sent.context.trace_id:032x}-{sent.parent.span_id:016x}-01" == GOOD
    assert span.traceparent == f"00-{sent.context.trace_id:032x}-{sent.context.span_id:016x}-01"
    assert sent.resource.attributes["service.name"] == "emb-model-provider"
    assert sent.resource.attributes["service.instance.id"] == "router-0-5"


def test_a_span_of_a_request_that_failed_says_so(exported):
    tracer = Tracer("router")
    tracer.open("POST", "", {}).end("POST", {}, failed=True)
    tracer.close()
    assert exported()[0].status.status_code == StatusCode.ERROR


def test_what_is_over_already_is_below_its_request_and_keeps_its_times(exported):
    tracer = Tracer("en-1")
    tracer.record("encode", GOOD, 1_000, 3_000, {"texts": 2})
    tracer.close()
    (sent,) = exported()
    assert (sent.name, sent.start_time, sent.end_time, sent.attributes) == ("encode", 1_000, 3_000, {"texts": 2})
    assert f"{sent.parent.span_id:016x}" in GOOD


@pytest.mark.parametrize("traceparent", ["", "nonsense", "ff" + GOOD[2:]])
def test_below_what_is_no_traceparent_a_span_begins_a_trace_of_its_own(exported, traceparent):
    tracer = Tracer("router")
    tracer.open("POST", traceparent, {}).end("POST", {}, failed=False)
    tracer.close()
    assert exported()[0].parent is None


def test_the_service_is_called_as_opentelemetrys_own_variable_says(exported, monkeypatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "ours")
    tracer = Tracer("router")
    tracer.record("encode", "", 1, 2, {})
    tracer.close()
    assert exported()[0].resource.attributes["service.name"] == "ours"
