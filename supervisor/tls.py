"""Reads certificate and key, and refuses what no router could use. Used by ``cli``."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NoReturn

from emb_model_provider.certificate import Certificate
from emb_model_provider.errors import ConfigurationError
from emb_model_provider.setting_table import TLS_KEY_FILE
from emb_model_provider.small_file import read_small_file

_MAX_BYTES: Final = 1024 * 1024


def read_certificate(certificate: str, key: str) -> Certificate:
    """Return what is in both files; raise ``ConfigurationError`` where it cannot be used."""
    import ssl  # noqa: PLC0415 - ten milliseconds and a megabyte that most servers do without

    try:
        # Read again by each reload: a pipe would not last.
        chain, private = (read_small_file(Path(name), _MAX_BYTES, again=True)[0] for name in (certificate, key))
        found = Certificate(chain, private)
        found.load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), _refuse_to_ask)
    except ssl.SSLError as error:
        reason = _lack(certificate, key, found) or error.reason or "they are no PEM files"
        raise ConfigurationError(
            f"{certificate} and {key} cannot be used: {reason}. Both must be PEM files, and the key that of the first"
            " certificate."
            if certificate != key
            else f"{certificate} cannot be used: {reason}. Set {TLS_KEY_FILE.name} where the key is in another file."
        ) from None
    except OSError as error:
        raise ConfigurationError(f"{error.filename or certificate} cannot be read: {error.strerror}.") from None
    return found


def _lack(certificate: str, key: str, found: Certificate) -> str:
    """Say which file lacks what it is read for; nothing where both have it (RFC 7468)."""
    for path, content, label in ((certificate, found.chain, "CERTIFICATE"), (key, found.key, "PRIVATE KEY")):
        if f"{label}-----".encode() not in content:
            return f"{path} holds no {label.lower()}"
    return ""


def _refuse_to_ask() -> NoReturn:
    raise ConfigurationError(
        "the key is encrypted with a pass phrase, and nobody is there to type it:"
        " write it without one (openssl pkey -in KEY -out NEW) in a file that only this user can read."
    )
