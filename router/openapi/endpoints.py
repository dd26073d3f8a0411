"""``GET /openapi.json`` and ``GET /docs``: the same whoever asks. Used by ``main``."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

import orjson
from aiohttp import web

_PAGE: Final = Path(__file__).parent / "page.html"
#: The page needs nothing but itself and the description.
_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def describing_routes(url_prefix: str) -> list[web.RouteDef]:
    """Return both routes; what they answer is made when somebody asks for it the first time."""

    @cache
    def document() -> bytes:
        from router.openapi.document import make_document  # noqa: PLC0415 - few ask, and every start would wait for it

        return orjson.dumps(make_document(url_prefix))

    @cache
    def page() -> bytes:
        return _PAGE.read_bytes()

    async def openapi(_request: web.Request) -> web.Response:
        return web.Response(body=document(), content_type="application/json")

    async def docs(_request: web.Request) -> web.Response:
        headers = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"}
        return web.Response(body=page(), content_type="text/html", charset="utf-8", headers=headers)

    return [web.get("/openapi.json", openapi), web.get("/docs", docs)]
