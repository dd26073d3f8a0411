"""What a client expects before it sends its body (RFC 9110, 10.1.1). Used by ``connection``.

aiohttp answers ``100-continue`` itself, and anything else in plain text before any middleware: that it does not see.
"""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web
from aiohttp.http_parser import RawRequestMessage

from emb_model_provider.errors import ExpectationError
from router.prefix import REFUSAL, RequestFactory

_HEADER: Final = "Expect"
_KNOWN: Final = "100-continue"


def without_expectation(make: RequestFactory) -> RequestFactory:
    """Return ``make`` for messages without an expectation that aiohttp would refuse."""

    def make_plain(message: RawRequestMessage, *connection: Any) -> web.BaseRequest:  # noqa: ANN401 - handed on
        if message.headers.get(_HEADER, _KNOWN).lower() == _KNOWN:
            return make(message, *connection)
        headers = message.headers.copy()
        del headers[_HEADER]
        request = make(message._replace(headers=type(message.headers)(headers)), *connection)
        request[REFUSAL] = ExpectationError("Of what an 'Expect' header may ask for, only '100-continue' is done.")
        return request

    return make_plain
