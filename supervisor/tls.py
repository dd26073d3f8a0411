"""Checks certificate and key before any router meets them, and notes what is in them. Used by ``cli``."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from emb_model_provider.errors import ConfigurationError
from emb_model_provider.settings import Settings


def with_tls_checked(settings: Settings) -> Settings:
    """Return the settings with a digest of both files, so that a reload notices new ones.

    Raises ``ConfigurationError`` where they cannot be used.
    """
    around = settings.server.around
    if not around.tls_certificate:
        return settings
    import ssl  # noqa: PLC0415 - ten milliseconds and a megabyte that most servers do without

    key_file = around.tls_key or around.tls_certificate
    try:
        contents = [Path(name).read_bytes() for name in (around.tls_certificate, key_file)]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(around.tls_certificate, key_file, password=_refuse_to_ask)
    except ssl.SSLError as error:
        reason = error.reason or "they are no PEM files"
        raise ConfigurationError(
            f"EMB_PROVIDER_TLS_CERT_FILE={around.tls_certificate} and EMB_PROVIDER_TLS_KEY_FILE={key_file} cannot be"
            f" used: {reason}. Both must be PEM files, and the key that of the first certificate."
        ) from None
    except OSError as error:
        raise ConfigurationError(
            f"EMB_PROVIDER_TLS_CERT_FILE or EMB_PROVIDER_TLS_KEY_FILE cannot be read: {error}."
        ) from None
    digest = hashlib.sha256(b"\0".join(contents)).hexdigest()
    return replace(settings, server=replace(settings.server, around=around.replace(tls_digest=digest)))


def _refuse_to_ask() -> NoReturn:
    raise ConfigurationError(
        "EMB_PROVIDER_TLS_KEY_FILE is encrypted with a pass phrase, and nobody is there to type it:"
        " write it without one (openssl pkey -in KEY -out NEW) in a file that only this user can read."
    )
