"""Where a request goes: its path alone. Used by ``connection``.

A request line may name a whole address, as proxies are asked (RFC 9112, 3.2.2). aiohttp (3.14) looks at its host where
it makes the request, and one that is no name (``xn--``) ends the connection's task, with nobody left to close it.
"""

from __future__ import annotations

from typing import Any

from aiohttp import web
from aiohttp.http_parser import RawRequestMessage

from router.prefix import RequestFactory


def without_address(make: RequestFactory) -> RequestFactory:
    """Return ``make`` for messages whose target may be a whole address: there is one server here."""

    def make_here(message: RawRequestMessage, *connection: Any) -> web.BaseRequest:  # noqa: ANN401 - handed on
        if message.url.absolute:
            message = message._replace(url=message.url.relative())
        return make(message, *connection)

    return make_here
