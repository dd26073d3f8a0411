"""API keys: compared in constant time, held as SHA-256 digests only."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from typing import Final

from emb_model_provider.errors import AuthenticationError

_SCHEME: Final = re.compile(r"^bearer(?:\s+|$)", re.IGNORECASE)
#: Where a key may stand beside ``Authorization``: as clients of Azure, Anthropic and gateways send it.
_OTHER_HEADERS: Final = ("x-api-key", "api-key")


class Authenticator:
    """Accepts any one of several keys; with none configured, everybody."""

    def __init__(self, digests: tuple[bytes, ...]) -> None:
        self._digests = digests

    @property
    def asks(self) -> bool:
        """Whether a key is asked for."""
        return bool(self._digests)

    def accept(self, digests: tuple[bytes, ...]) -> None:
        """Accept these from now on, and no others."""
        self._digests = digests

    def identify(self, headers: Mapping[str, str]) -> str:
        """Return which of the keys the headers carry, as its digest; an empty string where no key is asked for.

        Raises ``AuthenticationError`` unless it is one of them.
        """
        if not self._digests:
            return ""
        key = _key_in(headers)
        if not key:
            raise AuthenticationError("You didn't provide an API key. Send it as 'Authorization: Bearer YOUR_KEY'.")
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        # Every key is compared, so that the time taken does not tell which one matched.
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if not any(matches):
            raise AuthenticationError("Incorrect API key provided. Check EMB_PROVIDER_API_KEYS on the server.")
        return digest.hex()


def _key_in(headers: Mapping[str, str]) -> str:
    authorization = headers.get("Authorization")
    if authorization is not None:  # "Bearer" alone, of a variable that is not set, is no key
        return _SCHEME.sub("", authorization.strip())
    return next((key.strip() for name in _OTHER_HEADERS if (key := headers.get(name))), "")
