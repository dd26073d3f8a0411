"""Checks certificate and key before any router meets them, and notes what is in them. Used by ``cli``."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final, NoReturn

from emb_model_provider.errors import ConfigurationError
from emb_model_provider.small_file import read_small_file

_MAX_BYTES: Final = 1024 * 1024


def tls_digest(certificate: str, key: str) -> str:
    """Return a digest of both files, by which a reload notices new ones.

    Raises ``ConfigurationError`` where they cannot be used.
    """
    import ssl  # noqa: PLC0415 - ten milliseconds and a megabyte that most servers do without

    try:
        # Read here and by each router: a pipe would not last.
        contents = [read_small_file(Path(name), _MAX_BYTES, again=True)[0] for name in (certificate, key)]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key, password=_refuse_to_ask)
    except ssl.SSLError as error:
        reason = error.reason or "they are no PEM files"
        raise ConfigurationError(
            f"{certificate} and {key} cannot be used: {reason}. Both must be PEM files, and the key that of the first"
            " certificate."
        ) from None
    except OSError as error:
        raise ConfigurationError(f"{error.filename} cannot be read: {error.strerror}.") from None
    return hashlib.sha256(b"\0".join(contents)).hexdigest()


def _refuse_to_ask() -> NoReturn:
    raise ConfigurationError(
        "the key is encrypted with a pass phrase, and nobody is there to type it:"
        " write it without one (openssl pkey -in KEY -out NEW) in a file that only this user can read."
    )
