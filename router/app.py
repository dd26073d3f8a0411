"""Puts the front door together: routes, request ids, authentication and errors in the shape of each dialect."""

from __future__ import annotations

import asyncio
import math
import random
import re
import time
from collections.abc import Collection, Sequence

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from emb_model_provider.errors import (
    InternalError,
    MethodNotAllowedError,
    NotFoundError,
    RequestError,
    UnavailableError,
)
from emb_model_provider.logs import EventLog
from router.admission import Budget
from router.auth import Authenticator
from router.body import HELD, HeldBytes, UnreadAnswers
from router.caller import CALLER, Caller, client_of, read_timeout_s
from router.dialects.openai import OPENAI
from router.dialects.seam import Dialect
from router.handlers import REQUEST_ID, Handlers
from router.health import KEY_QUESTION, key_question
from router.near_paths import NearPaths
from router.prefix import REFUSAL, TAKEN_OFF
from router.visit import VISIT

log = EventLog("router")

_REQUEST_ID = "x-request-id"
_SAFE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/-]{1,128}")
_OPEN_PATHS = frozenset({"/health", "/healthz", "/live", KEY_QUESTION})
#: What ``/`` says without a key is what ``/health`` says; what is posted there goes to a model.
_LOOKS = frozenset({"GET", "HEAD"})
#: Stands in a request that was answered with an error.
_FAILED = web.RequestKey("failed", bool)
#: Stands in a request that is cancelled because the time for a stop is over, and not because its client has left.
GIVEN_UP = web.RequestKey("given_up", bool)


def build_app(
    handlers: Handlers,
    authenticator: Authenticator,
    max_request_bytes: int,
    max_queue_bytes: int = 0,
    outer: Sequence[Middleware] = (),
    *,
    open_paths: Collection[str] = (),
) -> web.Application:
    """Return the application; the caller runs it on the socket it was given.

    ``outer`` middlewares see every request and the answer as the client gets it, the first of them outermost.
    ``max_queue_bytes`` bounds the bodies of all requests at once, and as much the answers that nobody has read; 0 does
    not. ``open_paths`` need no key either.
    """
    budget, unread = Budget(max_queue_bytes or math.inf), UnreadAnswers(Budget(max_queue_bytes or math.inf))
    keyless = _OPEN_PATHS.union(open_paths)
    routes = [*handlers.routes(), key_question(authenticator)]
    near = NearPaths((route.method, route.path) for route in routes)

    def refuse(request: web.Request, error: RequestError) -> web.Response:
        _note_error(error)
        request[_FAILED] = True
        response = error_response(error, request[REQUEST_ID], handlers.dialect_of(request))
        _close_before_a_lost_request(request, response)
        return response

    @web.middleware
    async def answer_in_shape(request: web.Request, handler: Handler) -> web.StreamResponse:
        request[REQUEST_ID] = request_id = _request_id(request)
        if (visit := VISIT.get()) is not None:
            visit.request_id = request_id
        began_s = time.monotonic()
        client, held = "", None
        try:
            if request.path not in keyless and not (request.path == "/" and request.method in _LOOKS):
                client = authenticator.identify(request.headers) or client_of(request.remote, request.protocol)
                CALLER.set(Caller(client, read_timeout_s(request.headers)))
                held = request[HELD] = HeldBytes(budget, client)
                unread.check(request, client)
            response = unread.counted(await _answer_unless_refused(request, handler), client)
        except RequestError as error:
            response = refuse(request, error)
        except (web.HTTPNotFound, web.HTTPMethodNotAllowed) as error:
            response = refuse(request, _unrouted(request, error, near))
            if isinstance(error, web.HTTPMethodNotAllowed):
                response.headers["Allow"] = ", ".join(sorted(error.allowed_methods))
        except Exception:  # a bug of ours must reach the log and the client, not end the connection
            log.exception("request_crashed", request_id=request_id, path=request.path)
            response = refuse(request, InternalError("The server made a mistake; its log has this request's id."))
        finally:
            if held is not None:
                held.release()
        response.headers[_REQUEST_ID] = request_id
        _log_request(request, response, request_id, time.monotonic() - began_s)
        return response

    app = web.Application(middlewares=[*outer, answer_in_shape], client_max_size=max_request_bytes)
    app.add_routes(routes)
    return app


async def _answer_unless_refused(request: web.Request, handler: Handler) -> web.StreamResponse:
    if (refusal := request.get(REFUSAL)) is not None:
        raise refusal
    try:
        return await handler(request)
    except asyncio.CancelledError:
        if GIVEN_UP not in request:
            raise
        raise UnavailableError(
            "The server ends, or takes other settings, and this request took longer than it waits for. Send it again.",
            code="server_stopping",
            retry_after_s=1.0,
        ) from None


def _close_before_a_lost_request(request: web.Request, response: web.Response) -> None:
    """Ask for another connection where aiohttp's parser (3.14) may drop the next request, whose client would then wait.

    It drops what comes in one piece with the end of a body whose client offers HTTP/2, as Java's does each time.
    """
    if "Upgrade" in request.headers and not request.content.is_eof():
        response.force_close()


def _note_error(error: RequestError) -> None:
    if (visit := VISIT.get()) is not None:
        visit.error = error.code or error.kind


def _unrouted(
    request: web.Request, error: web.HTTPNotFound | web.HTTPMethodNotAllowed, near: NearPaths
) -> RequestError:
    before = request.get(TAKEN_OFF, "")
    if isinstance(error, web.HTTPNotFound):
        path = request.rel_url.raw_path  # as it was sent: what is escaped in it may be what is wrong
        meant = near.nearest(request.method, path)
        hint = f" Did you mean {before}{meant}? Look at the base URL that your client was given." if meant else ""
        return NotFoundError(f"There is no {request.method} {before}{path[:200]} here.{hint}")
    allowed = ", ".join(sorted(error.allowed_methods))
    return MethodNotAllowedError(f"Use {allowed} for {before}{request.path[:200]}.")


def _request_id(request: web.Request) -> str:
    given = request.headers.get(_REQUEST_ID)
    return given if given is not None and _SAFE_REQUEST_ID.fullmatch(given) else new_request_id()


def new_request_id() -> str:
    """Return an id for a request that brought none."""
    return f"req-{random.getrandbits(128):032x}"


def error_response(error: RequestError, request_id: str, dialect: Dialect = OPENAI) -> web.Response:
    """Return an error in a dialect's shape with the headers that belong to it."""
    response = web.Response(
        status=dialect.status_of(error), body=dialect.render_error(error), content_type="application/json"
    )
    response.headers[_REQUEST_ID] = request_id
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    if error.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if error.status in (408, 413, 417, 429):  # the rest of the body is still on its way and nobody will read it
        response.force_close()
    # The same input would fail or take as long again: clients of OpenAI's would send it three times.
    if error.status in (500, 504):
        response.headers["x-should-retry"] = "false"
    return response


def _log_request(request: web.Request, response: web.StreamResponse, request_id: str, took_s: float) -> None:
    # The 503 of a probe is an answer like any other; what keeps a model from being ready is in the log already.
    has_failed = response.status >= 500 and _FAILED in request
    if not has_failed and not log.shows_debug():
        return
    write = log.warning if has_failed else log.debug
    write(
        "request",
        request_id=request_id,
        method=request.method,
        path=request.path,
        status=response.status,
        took_ms=round(took_s * 1000, 2),
    )
