"""The HTTP endpoints: each reads a body, lets a dialect make a call of it, asks the service and writes the answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Final, TypeVar

from aiohttp import web
from aiohttp.typedefs import Handler

from emb_model_provider.errors import UnavailableError
from emb_model_provider.logs import EventLog
from emb_model_provider.messages.status import EncoderInfo, ShardStatus
from emb_model_provider.modelmap import Task
from router import planning
from router.body import PiecedBody, read_body
from router.dialects.fields import Fields, read_object
from router.dialects.holes import with_holes
from router.dialects.seam import (
    Answered,
    DescribeCall,
    DetokenizeCall,
    Dialect,
    EncodeCall,
    ListCall,
    Route,
    TokenizeCall,
)
from router.dialects.table import MODEL_PREFIX, by_path, dialect_near
from router.dialects.vectors import is_small
from router.health import Health
from router.large_json import LARGE_BYTES
from router.metrics.scripts import script_shares
from router.registry import Registry
from router.requests import EncodeRequest, EncodeResult
from router.service import EmbeddingService, ModelChangedError
from router.visit import VISIT

log = EventLog("router.handlers")

T = TypeVar("T")

#: How often a request is asked of a model whose settings change meanwhile.
_TRIES: Final = 3
_JSON: Final = "application/json"
_JSON_HEADERS: Final = {"Content-Type": _JSON}
#: Where a request keeps whose errors its client reads, once its body has told.
_DIALECT: Final = web.RequestKey("dialect", Dialect)
REQUEST_ID: Final = web.RequestKey("request_id", str)


class Handlers:
    """Holds what the endpoints need.

    ``more`` are routes that are not about models; ``loop_lag_s`` tells how late this process's loop has been.
    """

    def __init__(
        self,
        service: EmbeddingService,
        registry: Registry,
        max_request_bytes: int,
        more: Sequence[web.RouteDef] = (),
        loop_lag_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._service = service
        self._registry = registry
        self._max_request_bytes = max_request_bytes
        self._more = more
        self._health = Health(service, registry, loop_lag_s)
        self._dialects: dict[object, Dialect] = {}

    def routes(self) -> list[web.RouteDef]:
        """Return the table of routes: each dialect's, and the same again behind a model's name."""
        made = [*self._health.routes(), *self._more]
        behind_a_model: list[web.RouteDef] = []
        for (method, path), choices in by_path().items():
            handler = self._endpoint(choices)
            add = web.get if method == "GET" else web.post  # get answers HEAD too
            self._dialects[handler] = choices[0][0]
            made.append(add(path, handler))
            if "{" not in path:
                behind_a_model.append(add(MODEL_PREFIX + path.rstrip("/"), handler))
        # Ids hold slashes, and the first match counts: "/v1/rerank" before "/rerank", and nothing at all last.
        behind_a_model.sort(key=lambda route: -route.path.count("/"))
        return made + behind_a_model

    def dialect_of(self, request: web.Request) -> Dialect:
        """Return whose errors this request's client reads."""
        known = request.get(_DIALECT) or self._dialects.get(request.match_info.handler)
        return known or dialect_near(request.path)

    def spoken(self, request: web.Request) -> str:
        """Return the name of the dialect that this request's body was in; empty where it is none's."""
        known = request.get(_DIALECT) or self._dialects.get(request.match_info.handler)
        return known.name if known else ""

    def _endpoint(self, choices: list[tuple[Dialect, Route]]) -> Handler:
        async def endpoint(request: web.Request) -> web.StreamResponse:
            fields = await self._read(request, is_get=choices[0][1].method == "GET")
            dialect, route = choices[0] if len(choices) == 1 else _speaker(choices, fields)
            request[_DIALECT] = dialect
            if "model" in request.match_info:
                fields.values["model"] = request.match_info["model"].rstrip("/")  # TEI's "/" behind a model
            return await self._answer(request, dialect, route, fields)

        return endpoint

    async def _read(self, request: web.Request, *, is_get: bool) -> Fields:
        if is_get:
            return Fields({})
        body = await read_body(request, self._max_request_bytes)
        steps = read_object(body)
        return _finish(steps) if len(body) < LARGE_BYTES else await _finish_slowly(steps)

    async def _answer(self, request: web.Request, dialect: Dialect, route: Route, fields: Fields) -> web.Response:
        steps = route.parse(fields)
        is_large = (request.content_length or LARGE_BYTES) >= LARGE_BYTES
        call = await _finish_slowly(steps) if is_large else _finish(steps)
        fields.values.clear()  # a large body's texts would stay in memory until the last vector is there
        path = route.path
        if isinstance(call, EncodeCall):
            return await self._encode(request, dialect, call, path)
        if isinstance(call, TokenizeCall):
            status = self._find_any(call.model, path)
            tokens = await self._service.tokenize(status.model_id, call.message)
            return await _respond_slowly(call.build(tokens, await self._encoder(status)))
        if isinstance(call, DetokenizeCall):
            status = self._find_any(call.model, path)
            texts = await self._service.detokenize(status.model_id, call.message)
            return await _respond_slowly(iter([call.build(texts)]))
        if isinstance(call, DescribeCall):
            status = self._find_any(call.model, path)
            if call.waits:
                status = await self._registry.ready(status.model_id)
            return _respond([call.build(status, self._service.limits)])
        assert isinstance(call, ListCall)
        return _respond([call.build(self._registry.all())])

    async def _encode(self, request: web.Request, dialect: Dialect, call: EncodeCall, path: str) -> web.Response:
        began_s, since_s = time.monotonic(), request.task.get_loop().time()
        status, role = self._find(call.request.model, call.tasks, path)
        visit = VISIT.get()
        if visit is not None:  # already now: what is refused is refused of this model
            visit.model = status.model_id
        asked = call.request
        if asked.model != status.model_id:
            asked = asked.replace(model=status.model_id)
        encoder, characters, result = await self._embed(asked, call, role, since_s)
        if visit is not None:
            visit.result = result
            visit.holes = max(0, call.request.sent - call.request.count)
        if call.holes:
            result = with_holes(result, call.holes)
        answered = Answered(result, encoder, request.get(REQUEST_ID, ""), characters, time.monotonic() - began_s)
        pieces, is_quick = call.build(answered), characters < LARGE_BYTES and is_small(result)
        response = _respond(pieces) if is_quick else await _respond_slowly(pieces)
        response.headers["x-truncated-inputs"] = str(len(result.truncated))
        if result.fingerprint:
            response.headers["x-model-fingerprint"] = result.fingerprint
        if dialect.headers is not None:
            response.headers.update(dialect.headers(answered))
        return response

    async def _embed(
        self, asked: EncodeRequest, call: EncodeCall, role: str | None, since_s: float
    ) -> tuple[EncoderInfo, int, EncodeResult]:
        """Return what the model is, how many characters it was given, and what it has made of them.

        Where another model takes over meanwhile, prompt, role and labels are chosen anew for that one.
        """
        visit = VISIT.get()
        for tried in range(1, _TRIES + 1):
            encoder = await self._service.facts(asked)
            planned = planning.fit(call.plan(asked, encoder), call.role or role, encoder)
            characters = sum(map(len, planned.texts)) + sum(map(len, planned.seconds))
            if visit is not None:
                visit.shares = script_shares(planned.seconds or planned.texts)
            if characters >= LARGE_BYTES:  # planning was a step, measuring is the next
                await asyncio.sleep(0)
            try:
                return encoder, characters, await self._service.embed(planned, since_s, planned_for=encoder.fingerprint)
            except ModelChangedError:
                if tried < _TRIES:
                    log.info("asked_again", model=asked.model, why="its settings have changed meanwhile")
        raise UnavailableError("The model's settings keep changing. Try again in a while.", retry_after_s=1.0)

    def _find(self, model: str, tasks: tuple[Task, ...], path: str) -> tuple[ShardStatus, str | None]:
        if model:
            return planning.find(self._registry, model)
        return planning.only_model(self._registry, tasks, path), None

    def _find_any(self, model: str, path: str) -> ShardStatus:
        status = planning.find(self._registry, model)[0] if model else planning.any_model(self._registry, path)
        if (visit := VISIT.get()) is not None:
            visit.model = status.model_id
        return status

    async def _encoder(self, status: ShardStatus) -> EncoderInfo:
        """Return a model's facts: those of its last load, else once it has loaded."""
        if status.info is None:
            status = await self._registry.ready(status.model_id)
        assert status.info is not None
        return status.info.encoder


def _speaker(choices: list[tuple[Dialect, Route]], fields: Fields) -> tuple[Dialect, Route]:
    """Return whose body this is, of those that share a path."""
    return next((one for one in choices if one[1].takes(fields)), choices[0])


def _finish(steps: Generator[None, None, T]) -> T:
    while True:
        try:
            next(steps)
        except StopIteration as done:
            outcome: T = done.value
            return outcome


async def _finish_slowly(steps: Generator[None, None, T]) -> T:
    """Run the steps and let others have their turn after each."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            outcome: T = done.value
            return outcome
        await asyncio.sleep(0)


def _respond(pieces: Iterable[bytes]) -> web.Response:
    return web.Response(body=b"".join(pieces), headers=_JSON_HEADERS)


async def _respond_slowly(pieces: Iterator[bytes]) -> web.Response:
    """Let others have their turn after each piece."""
    made: list[bytes] = []
    for piece in pieces:
        made.append(piece)
        await asyncio.sleep(0)
    return web.Response(body=PiecedBody(made, _JSON), headers=_JSON_HEADERS)
