"""A file of API keys, one a line. Read by ``settings``."""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from emb_model_provider.errors import ConfigurationError
from emb_model_provider.small_file import read_small_file
from emb_model_provider.value_kinds import WrongValueError
from emb_model_provider.value_shapes import ApiKeys

_MAX_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class KeyFile:
    """The keys of a file in their order, and what is unwise about the file."""

    keys: tuple[str, ...] = field(repr=False)
    warnings: tuple[str, ...] = ()


def read_key_file(path: Path, *, again: bool = False) -> KeyFile:
    """Return what the file holds; raise ``ConfigurationError`` that names path and line, and never a key.

    ``again`` is for a reload.
    """
    try:
        data, mode = read_small_file(path, _MAX_BYTES + 1, again=again)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from None
    if len(data) > _MAX_BYTES:
        raise ConfigurationError(f"{path} is larger than 1 MiB; that is no list of keys.")
    keys: dict[str, None] = {}
    for number, line in enumerate(data.decode("utf-8-sig", "replace").splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        try:
            keys.update(dict.fromkeys(ApiKeys().parse(text)))
        except WrongValueError as error:
            raise ConfigurationError(f"{path}:{number}: {error}.") from None
    if not keys:
        # Reading this as "no keys" would open a server that was meant to be closed.
        raise ConfigurationError(f"{path} holds no key; leave the setting out to serve without keys.")
    others = stat.S_IMODE(mode) & (stat.S_IRGRP | stat.S_IROTH | stat.S_IWGRP | stat.S_IWOTH)
    warning = f"{path} holds API keys and other users can read or change it; run: chmod 600 {path}"
    return KeyFile(tuple(keys), (warning,) if others else ())
