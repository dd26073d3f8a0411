"""Which path a client means that asks for one that is not there: for a hint, not for an answer. Pure.

Used by ``app`` and, for whose errors its client reads, by ``dialects.table``.
Most often its base URL has a part too many or a wrong slash: ``/v1`` where the client adds it, a slash at the end.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_GET: Final = "GET"
_HEAD: Final = "HEAD"


class NearPaths:
    """Holds the methods and paths that are served; one with a part for a model's name is nobody's hint."""

    def __init__(self, served: Iterable[tuple[str, str]]) -> None:
        self._by_method: dict[str, list[str]] = {}
        for method, path in served:
            if "{" not in path and path != "/":
                self._by_method.setdefault(method, []).append(path)
        for paths in self._by_method.values():
            paths.sort(key=len, reverse=True)

    def nearest(self, method: str, path: str) -> str | None:
        """Return the longest served path that ``path``, with its slashes put right, ends with."""
        tidied = tidy(path)
        served = self._by_method.get(_GET if method == _HEAD else method, ())
        return next((one for one in served if tidied.endswith(one)), None)


def tidy(path: str) -> str:
    """Return a path with its slashes put right."""
    return "/" + "/".join(filter(None, path.lower().replace("%2f", "/").split("/")))
