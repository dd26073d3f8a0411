"""Which version of this project answers, for the dialects that tell it."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def our_version() -> str:
    """Return the installed version; ``0`` for a checkout that was never installed."""
    try:
        return version("emb-model-provider")
    except PackageNotFoundError:
        return "0"
