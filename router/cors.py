"""Cross-origin requests of browsers, by the Fetch standard: https://fetch.spec.whatwg.org/#http-cors-protocol. Pure.

Keys travel in a header that a page sets itself, never in cookies, so no credentials are allowed. Used by ``entrance``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_ANY: Final = "*"
_METHODS: Final = "GET, POST, OPTIONS"
_MAX_AGE_S: Final = 600
_HEADER_NAMES: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~, -]{1,1024}")
#: What a page may read beside the body.
EXPOSED: Final = (
    "x-request-id, retry-after, x-should-retry, x-truncated-inputs, x-model-fingerprint, x-compute-time, "
    "x-total-time, x-tokenization-time, x-queue-time, x-inference-time"
)


class Cors:
    """Which origins may ask; none by default."""

    def __init__(self, origins: tuple[str, ...]) -> None:
        self._origins = frozenset(map(_as_browsers_write_it, origins))

    def headers(self, request_headers: Mapping[str, str]) -> dict[str, str]:
        """Return what belongs into any answer to this request."""
        if not self._origins:
            return {}
        origin = request_headers.get("Origin")
        allowed = _ANY if _ANY in self._origins else origin if origin in self._origins else None
        # Caches must not give one origin's answer to another.
        vary = {} if _ANY in self._origins else {"Vary": "Origin"}
        if origin is None or allowed is None:
            return vary
        return vary | {"Access-Control-Allow-Origin": allowed, "Access-Control-Expose-Headers": EXPOSED}

    def preflight(self, method: str, request_headers: Mapping[str, str]) -> dict[str, str] | None:
        """Return the headers of the answer to a preflight request; ``None`` for any other request.

        It comes without a key, for a browser sends none before it knows that it may.
        """
        if method != "OPTIONS" or not self._origins or "Access-Control-Request-Method" not in request_headers:
            return None
        headers = self.headers(request_headers)
        if "Access-Control-Allow-Origin" not in headers:
            return headers
        wanted = request_headers.get("Access-Control-Request-Headers", "")
        headers["Access-Control-Allow-Methods"] = _METHODS
        headers["Access-Control-Max-Age"] = str(_MAX_AGE_S)
        if _HEADER_NAMES.fullmatch(wanted):
            headers["Access-Control-Allow-Headers"] = wanted
        return headers


def _as_browsers_write_it(origin: str) -> str:
    """Return an origin in small letters and without its scheme's own port, as the header ``Origin`` has it.

    https://html.spec.whatwg.org/#ascii-serialisation-of-an-origin
    """
    origin = origin.lower()
    for scheme, port in (("http://", ":80"), ("https://", ":443")):
        if origin.startswith(scheme):
            return origin.removesuffix(port)
    return origin
