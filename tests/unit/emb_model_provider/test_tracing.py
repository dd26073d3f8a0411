import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emb_model_provider import tracing
from emb_model_provider.tracing import is_traceparent, make_tracer

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
