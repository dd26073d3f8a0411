"""What stands around the whole API: counting, the access log and cross-origin requests. Made by ``main``.

One middleware, the outermost: it sees every request first and every answer as the client gets it. The books are kept
once the answer has left.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from router.access_log import Answered
from router.cors import Cors
from router.handlers import Handlers
from router.metrics.meter import Meter
from router.prefix import TAKEN_OFF
from router.visit import VISIT, Visit

#: Opens a span for a request; the returned function ends it with the answer's status.
Trace = Callable[[web.Request, Visit], Callable[[int], None]]

_UNMATCHED: Final = "unmatched"
#: In place of a dialect, for what is not about models.
_OURS: Final = "server"
#: As nginx has it: the client was gone before its answer.
_CLIENT_LEFT: Final = 499


def make_entrance(
    meter: Meter,
    cors: Cors,
    handlers: Handlers,
    write: Callable[[Answered], None] | None = None,
    trace: Trace | None = None,
) -> Middleware:
    """Return the middleware."""
    labels: dict[object, tuple[str, str]] = {}

    def label(request: web.Request) -> tuple[str, str]:
        """Return route and dialect, both of a bounded number; which dialect's a body was is known afterwards."""
        resource = request.match_info.route.resource
        if resource is None:
            return _UNMATCHED, _OURS
        dialect = handlers.spoken(request)
        key = (resource, dialect)
        found = labels.get(key)
        if found is None:
            found = labels[key] = (resource.canonical, dialect or _OURS)
        return found

    def record(
        request: web.Request,
        response: web.StreamResponse | None,
        visit: Visit,
        took_s: float,
        end: Callable[[int], None] | None,
    ) -> None:
        status = _CLIENT_LEFT if response is None else response.status
        visit.route, visit.dialect = label(request)
        meter.answered(visit, status, took_s)
        if write is not None:
            write(_tell(request, response, visit, status, took_s))
        if end is not None:
            end(status)
        visit.result = None

    @web.middleware
    async def entrance(request: web.Request, handler: Handler) -> web.StreamResponse:
        preflight = cors.preflight(request.method, request.headers)
        if preflight is not None:
            return web.Response(status=204, headers=preflight)
        visit = Visit()
        VISIT.set(visit)
        meter.in_flight += 1
        began_s = time.perf_counter()
        end = trace(request, visit) if trace is not None else None
        response = None
        try:
            response = await handler(request)
            if more := cors.headers(request.headers):
                response.headers.update(more)
            return response
        finally:
            meter.in_flight -= 1
            took_s = time.perf_counter() - began_s
            # A short answer is written before the loop comes to this; the client need not wait for what is counted.
            request.task.get_loop().call_soon(record, request, response, visit, took_s, end)

    return entrance


def _tell(
    request: web.Request, response: web.StreamResponse | None, visit: Visit, status: int, took_s: float
) -> Answered:
    result = visit.result
    size = response.content_length if response is not None else None
    return Answered(
        time_s=time.time(),
        client=request.remote or "unix",
        method=request.method,
        path=request.get(TAKEN_OFF, "") + request.path,
        http_version=f"{request.version.major}.{request.version.minor}",
        status=status,
        size_bytes=size,
        took_ms=took_s * 1000,
        request_id=visit.request_id,
        model=visit.model,
        tokens=result.prompt_tokens if result is not None else None,
        inputs=visit.inputs if result is not None else None,
        user_agent=request.headers.get("User-Agent", ""),
        error=visit.error,
    )
