"""``GET /metrics``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web

from router.metrics.meter import Meter
from router.registry import Registry


def metrics_endpoint(meter: Meter, registry: Registry) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Return the endpoint."""

    async def metrics(request: web.Request) -> web.Response:
        body, content_type = meter.render(registry.all(), request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    return metrics
