"""The HTTP endpoints: thin, each reads a request, asks the service and writes the answer."""

from __future__ import annotations

import asyncio

import orjson
from aiohttp import web

from emb_model_provider.errors import (
    InvalidRequestError,
    PayloadTooLargeError,
    RequestTimeoutError,
    UnsupportedMediaError,
)
from router import openai
from router.registry import Registry
from router.service import EmbeddingService

_BODY_TIMEOUT_S = 60.0
_JSON = "application/json"


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
        call = openai.parse_embeddings(await self._read_body(request))
        result = await self._service.embed(call.request)
        pieces: list[bytes] = []
        for piece in openai.render_embeddings(result, call.encoding_format):
            pieces.append(piece)
            await asyncio.sleep(0)
        response = web.Response(body=b"".join(pieces), content_type=_JSON)
        if result.truncated:
            response.headers["x-truncated-inputs"] = str(len(result.truncated))
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

    async def _read_body(self, request: web.Request) -> bytes:
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise UnsupportedMediaError("Compressed bodies are not taken: send the JSON as it is.")
        if (request.content_length or 0) > self._max_request_bytes:
            raise self._too_large()
        try:
            async with asyncio.timeout(_BODY_TIMEOUT_S):
                body = await request.read()
        except TimeoutError:
            raise RequestTimeoutError(f"The body did not arrive within {_BODY_TIMEOUT_S:.0f} s.") from None
        except web.HTTPRequestEntityTooLarge:
            raise self._too_large() from None
        if not body:
            raise InvalidRequestError("The body is empty: send a JSON object with 'model' and 'input'.")
        return body

    def _too_large(self) -> PayloadTooLargeError:
        return PayloadTooLargeError(
            f"The body is over the limit of {self._max_request_bytes // 2**20} MiB: split the request, "
            "or raise EMB_PROVIDER_MAX_REQUEST_MB on the server."
        )
