"""Every dialect that is spoken here, and which of them a path belongs to. Used by ``handlers``; add a new one here."""

from __future__ import annotations

from typing import Final

from router.dialects.cohere import COHERE
from router.dialects.jina import JINA
from router.dialects.ollama import OLLAMA
from router.dialects.openai import OPENAI
from router.dialects.seam import Dialect, Route
from router.dialects.tei import TEI
from router.dialects.vllm import VLLM

DIALECTS: Final[tuple[Dialect, ...]] = (OPENAI, COHERE, TEI, JINA, VLLM, OLLAMA)

#: In front of any path: the model, for clients that cannot name one. Ids may hold slashes.
MODEL_PREFIX: Final = "/models/{model:.+}"


def by_path() -> dict[tuple[str, str], list[tuple[Dialect, Route]]]:
    """Return, for each method and path, the routes that may take a body, in the order in which they are asked."""
    found: dict[tuple[str, str], list[tuple[Dialect, Route]]] = {}
    for dialect in DIALECTS:
        for route in dialect.routes:
            found.setdefault((route.method, route.path), []).append((dialect, route))
    return found


def dialect_near(path: str) -> Dialect:
    """Return whose errors a client expects that asks for a path that is not there."""
    for dialect in DIALECTS:
        if path.startswith(dialect.errors_below):
            return dialect
    return OPENAI
