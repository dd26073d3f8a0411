"""Spans for OpenTelemetry, in every process that handles requests. Used by ``router.tracing`` and ``shard.tracing``.

Off unless the environment names an exporter in OpenTelemetry's own words (``OTEL_EXPORTER_OTLP_ENDPOINT`` and its kin).
Then its SDK is imported, which is the extra ``otel``, and spans leave in a thread of its own. The standards:
https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables, https://www.w3.org/TR/trace-context.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from emb_model_provider.logs import EventLog

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

log = EventLog("tracing")

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_NAME: Final = "emb-model-provider"
_TRACEPARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")

Attributes = Mapping[str, str | int | float]


def is_traceparent(text: str) -> bool:
    """Tell whether ``text`` is a ``traceparent`` of W3C Trace Context."""
    return _TRACEPARENT.fullmatch(text) is not None


class Tracer:
    """Makes spans of one process. Times are nanoseconds since 1970."""

    def __init__(self, process: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

        name = os.environ.get("OTEL_SERVICE_NAME", _NAME)
        resource = Resource.create({"service.name": name, "service.instance.id": process})
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer(_NAME)
        self._propagator = TraceContextTextMapPropagator()

    def open(self, name: str, traceparent: str, attributes: Attributes) -> OpenSpan:
        """Begin a span of a request that comes from elsewhere, below ``traceparent`` where that is one."""
        from opentelemetry.trace import SpanKind  # noqa: PLC0415

        span = self._tracer.start_span(name, self._below(traceparent), SpanKind.SERVER, dict(attributes))
        return OpenSpan(span)

    def record(self, name: str, traceparent: str, began_ns: int, ended_ns: int, attributes: Attributes) -> None:
        """Make a span of what is over already."""
        span = self._tracer.start_span(name, self._below(traceparent), attributes=dict(attributes), start_time=began_ns)
        span.end(ended_ns)

    def close(self) -> None:
        """Send what is left; takes as long as the exporter's own limit at most."""
        self._provider.shutdown()

    def _below(self, traceparent: str) -> Context:
        return self._propagator.extract({"traceparent": traceparent} if is_traceparent(traceparent) else {})


class OpenSpan:
    """A span that has begun; ``traceparent`` is for those below it."""

    def __init__(self, span: Span) -> None:
        self._span = span
        context = span.get_span_context()
        self.traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"

    def end(self, name: str, attributes: Attributes, *, failed: bool) -> None:
        """End it under the name and with the facts that are known by now."""
        from opentelemetry.trace import StatusCode  # noqa: PLC0415

        self._span.update_name(name)
        self._span.set_attributes(dict(attributes))
        if failed:
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


def make_tracer(process: str) -> Tracer | None:
    """Return a tracer for this process, ``None`` where tracing is off or its packages are missing."""
    is_named = any(os.environ.get(name) for name in _ENDPOINTS)
    if not is_named or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    try:
        return Tracer(process)
    except ImportError as error:
        log.warning("tracing_off", missing=error.name, do="pip install 'emb-model-provider[otel]'")
        return None
