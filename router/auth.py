"""API keys: compared in constant time, held as SHA-256 digests only."""

from __future__ import annotations

import hashlib
import hmac

from emb_model_provider.errors import AuthenticationError

_SCHEME = "bearer "


class Authenticator:
    """Accepts any one of several keys; with none configured, everybody."""

    def __init__(self, digests: tuple[bytes, ...]) -> None:
        self._digests = digests

    def check(self, authorization: str | None) -> None:
        """Raise ``AuthenticationError`` unless the header's value carries one of the keys."""
        if not self._digests:
            return
        if not authorization:
            raise AuthenticationError("You didn't provide an API key. Send it as 'Authorization: Bearer YOUR_KEY'.")
        key = authorization[len(_SCHEME) :] if authorization.lower().startswith(_SCHEME) else authorization
        digest = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        # Every key is compared, so that the time taken does not tell which one matched.
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if not any(matches):
            raise AuthenticationError("Incorrect API key provided. Check EMB_PROVIDER_API_KEYS on the server.")
