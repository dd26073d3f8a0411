"""All routes below one more path: taken off before anything looks at a request. Used by ``connection`` and ``app``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from aiohttp import web
from aiohttp.http_parser import RawRequestMessage

from emb_model_provider.errors import NotFoundError, RequestError

#: Stands in a request that no handler is to see: the error that it is answered with.
REFUSAL: Final = web.RequestKey("refusal", RequestError)
#: What was taken off the path of a request: what is told of a path begins with it.
TAKEN_OFF: Final = web.RequestKey("taken_off", str)

#: Makes a request of a message and the connection it came on; aiohttp's own.
RequestFactory = Callable[..., web.BaseRequest]


def without_prefix(prefix: str, make: RequestFactory) -> RequestFactory:
    """Return ``make`` for clients that put ``prefix`` before every path; empty for none."""
    if not prefix:
        return make

    def make_inside(message: RawRequestMessage, *connection: Any) -> web.BaseRequest:  # noqa: ANN401 - handed on
        path = message.url.raw_path
        is_inside = path == prefix or path.startswith(prefix + "/")
        if is_inside:
            url = message.url.with_path(path[len(prefix) :] or "/", encoded=True, keep_query=True)
            message = message._replace(url=url)
        request = make(message, *connection)
        if is_inside:
            request[TAKEN_OFF] = prefix
        else:
            request[REFUSAL] = NotFoundError("Everything here is below the path that EMB_PROVIDER_URL_PREFIX names.")
        return request

    return make_inside
