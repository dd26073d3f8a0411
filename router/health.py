"""What the server says of itself, from memory: nobody is asked, so it is told in a millisecond whatever the shards do.

``live`` is about this process, ``ready`` about models. Routes for ``handlers``; the rest is pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import orjson
from aiohttp import web

from emb_model_provider.messages.status import Progress, ShardStatus
from router.auth import Authenticator
from router.gate import Gate
from router.planning import find
from router.registry import Registry, retry_after_s
from router.retry_after import LONGEST_S
from router.service import EmbeddingService

#: Xinference's own path. No key is needed to ask.
KEY_QUESTION: Final = "/v1/cluster/auth"
_JSON: Final = "application/json"
_NOTHING_YET: Final = Progress(
    batches_done=0, running_s=0.0, waiting_texts=0, waiting_tokens=0, rss_bytes=0, last_success=0.0
)


class Health:
    """Answers ``/health`` and ``/ready``. ``loop_lag_s`` tells how late this process's event loop has been lately."""

    def __init__(self, service: EmbeddingService, registry: Registry, loop_lag_s: Callable[[], float]) -> None:
        self._service = service
        self._registry = registry
        self._loop_lag_s = loop_lag_s

    def routes(self) -> list[web.RouteDef]:
        """Return the routes; ``app`` asks none of them but the last for a key."""
        return [
            web.get("/health", self.live),
            web.get("/healthz", self.live),
            web.get("/live", self.live),
            # Where clients of Ollama's look whether anybody is there, without a key, and TEI's health is.
            web.get("/", self.live),
            web.get("/ready", self.ready),
        ]

    async def live(self, _request: web.Request) -> web.Response:
        """Say that this process lives, and how promptly; nothing about models."""
        body = {"status": "ok", "loop_lag_s": self._loop_lag_s()}
        return web.Response(body=orjson.dumps(body), content_type=_JSON)

    async def ready(self, request: web.Request) -> web.Response:
        """Say whether every model can answer now, or the one of ``?model=``, and how each one fares."""
        wanted = request.query.get("model")
        statuses = self._registry.all() if wanted is None else [find(self._registry, wanted)[0]]
        is_ready = bool(statuses) and all(self._registry.is_ready(status) for status in statuses)
        body = {
            "status": "ready" if is_ready else "not_ready",
            "models": {
                status.model_id: describe(
                    status, self._service.gate_of(status), is_ready=self._registry.is_ready(status)
                )
                for status in statuses
            },
        }
        response = web.Response(status=200 if is_ready else 503, body=orjson.dumps(body), content_type=_JSON)
        if not is_ready:
            waits_s = (retry_after_s(status) for status in statuses if not self._registry.is_ready(status))
            response.headers["Retry-After"] = str(math.ceil(max(waits_s, default=LONGEST_S)))
        return response


def key_question(authenticator: Authenticator) -> web.RouteDef:
    """Return the route that tells whether a key is asked for: clients of Xinference send theirs only if so."""

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(body=orjson.dumps({"auth": authenticator.asks}), content_type=_JSON)

    return web.get(KEY_QUESTION, answer)


def describe(status: ShardStatus, gate: Gate, *, is_ready: bool) -> dict[str, object]:
    """Return how a model fares: what the supervisor knows of its process, what that says of itself, the queue here.

    Times of day are Unix time, ``None`` for never; ``tokens_per_s`` is ``None`` until it was measured.
    """
    health = status.health
    progress = health.progress or _NOTHING_YET
    rate = gate.tokens_per_s
    return {
        "ready": is_ready,
        "state": status.state,
        "reason": status.reason or None,
        "detail": status.detail or None,
        "pid": status.pid or None,
        "generation": status.generation,
        "restarts": status.restarts,
        "crashes": health.crashes,
        "boot_failures": health.boot_failures,
        "breaker": health.breaker,
        "last_success": max(health.last_success, gate.last_success) or None,
        "oldest_batch_s": round(progress.running_s, 3),
        "shard_waiting_texts": progress.waiting_texts,
        "shard_waiting_tokens": progress.waiting_tokens,
        "rss_bytes": progress.rss_bytes,
        "requests_in_flight": gate.requests,
        "requests_waiting": gate.waiting_slices,
        "tokens_in_flight": gate.tokens,
        "oldest_request_s": round(gate.oldest_s(), 3),
        "answered": gate.answered,
        "failed": gate.failed,
        "refused": gate.refused,
        "tokens_per_s": None if rate is None else round(rate),
    }
