"""The HTTP endpoints: thin, each reads a request, asks the service and writes the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Final, TypeVar

import orjson
from aiohttp import web

from router import openai
from router.body import PiecedBody, read_body
from router.large_json import LARGE_BYTES
from router.registry import Registry
from router.requests import EncodeResult
from router.service import EmbeddingService

T = TypeVar("T")

_JSON: Final = "application/json"
_JSON_HEADERS: Final = {"Content-Type": _JSON}


class Handlers:
    """Holds what the endpoints need."""

    def __init__(self, service: EmbeddingService, registry: Registry, max_request_bytes: int) -> None:
        self._service = service
        self._registry = registry
        self._max_request_bytes = max_request_bytes

    def routes(self) -> list[web.RouteDef]:
        """Return the table of routes."""
        return [
            web.post("/v1/embeddings", self.embeddings),
            web.get("/v1/models", self.models),
            web.get("/v1/models/{model:.+}", self.model),
            web.get("/health", self.health),
            web.get("/ready", self.ready),
        ]

    async def embeddings(self, request: web.Request) -> web.Response:
        body = await read_body(request, self._max_request_bytes)
        call = openai.parse_embeddings(body) if len(body) < LARGE_BYTES else await _finish(openai.parse_in_steps(body))
        del body  # a large one would stay in memory until the last vector is there
        result = await self._service.embed(call.request)
        response = web.Response(body=await _render(result, call.encoding_format), headers=_JSON_HEADERS)
        if result.truncated:
            response.headers["x-truncated-inputs"] = str(len(result.truncated))
        if result.fingerprint:
            response.headers["x-model-fingerprint"] = result.fingerprint
        return response

    async def models(self, _request: web.Request) -> web.Response:
        return web.Response(body=openai.render_models(self._registry.all()), content_type=_JSON)

    async def model(self, request: web.Request) -> web.Response:
        status = self._registry.find(request.match_info["model"])
        return web.Response(body=orjson.dumps(openai.describe_model(status)), content_type=_JSON)

    async def health(self, _request: web.Request) -> web.Response:
        """Say that this process lives; nothing about models."""
        return web.Response(body=b'{"status":"ok"}', content_type=_JSON)

    async def ready(self, _request: web.Request) -> web.Response:
        """Say whether every model can answer now, with each one's state."""
        statuses = self._registry.all()
        is_ready = bool(statuses) and all(self._registry.is_ready(status) for status in statuses)
        body = {
            "status": "ready" if is_ready else "not_ready",
            "models": {
                status.model_id: {
                    "ready": self._registry.is_ready(status),
                    "state": status.state,
                    "reason": status.reason or None,
                    "detail": status.detail or None,
                    "restarts": status.restarts,
                    "pid": status.pid or None,
                }
                for status in statuses
            },
        }
        return web.Response(status=200 if is_ready else 503, body=orjson.dumps(body), content_type=_JSON)


async def _finish(steps: Generator[None, None, T]) -> T:
    """Run the steps and let others have their turn after each."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            outcome: T = done.value
            return outcome
        await asyncio.sleep(0)


async def _render(result: EncodeResult, encoding_format: openai.EncodingFormat) -> bytes | PiecedBody:
    pieces = openai.render_embeddings(result, encoding_format)
    if openai.is_small(result):
        return b"".join(pieces)
    rendered: list[bytes] = []
    for piece in pieces:
        rendered.append(piece)
        await asyncio.sleep(0)
    return PiecedBody(rendered, _JSON)
