"""One server span per request, by OpenTelemetry's conventions for HTTP. Handed by ``main`` to ``entrance``."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from emb_model_provider.tracing import Tracer
from router.entrance import Trace
from router.visit import Visit


def trace_requests(tracer: Tracer) -> Trace:
    """Return what opens a span for each request; the shard's spans lie below it."""

    def begin(request: web.Request, visit: Visit) -> Callable[[int], None]:
        span = tracer.open(
            request.method, request.headers.get("traceparent", ""), {"http.request.method": request.method}
        )
        visit.traceparent = span.traceparent

        def end(status: int) -> None:
            facts: dict[str, str | int | float] = {
                "http.response.status_code": status,
                "http.route": visit.route,
                "emb.request_id": visit.request_id,
                "emb.dialect": visit.dialect,
                "emb.model": visit.model,
            }
            if visit.error:
                facts["error.type"] = visit.error
            if visit.result is not None:
                facts["emb.tokens"] = visit.result.prompt_tokens
                facts["emb.inputs"] = visit.inputs
            span.end(f"{request.method} {visit.route}", facts, failed=status >= 500)

        return end

    return begin
