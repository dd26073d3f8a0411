"""Every dialect that is spoken here, and which of them a path belongs to. Used by ``handlers``; add a new one here."""

from __future__ import annotations

from typing import Final

from router.dialects.cohere import COHERE
from router.dialects.jina import JINA
from router.dialects.nvidia import NVIDIA
from router.dialects.ollama import OLLAMA
from router.dialects.openai import OPENAI
from router.dialects.seam import Dialect, Route
from router.dialects.tei import TEI
from router.dialects.vllm import VLLM
from router.dialects.weaviate import WEAVIATE
from router.near_paths import tidy

DIALECTS: Final[tuple[Dialect, ...]] = (OPENAI, COHERE, TEI, WEAVIATE, JINA, VLLM, OLLAMA, NVIDIA)

#: In front of any path: the model, for clients that cannot name one. Ids may hold slashes.
MODEL_PREFIX: Final = "/models/{model:.+}"


def by_path() -> dict[tuple[str, str], list[tuple[Dialect, Route]]]:
    """Return, for each method and path, the routes that may take a body, in the order in which they are asked."""
    found: dict[tuple[str, str], list[tuple[Dialect, Route]]] = {}
    for dialect in DIALECTS:
        for route in dialect.routes:
            found.setdefault((route.method, route.path), []).append((dialect, route))
    return found


#: Whose each path is, the longest first; of a path of several dialects it is the first one's.
_OWNERS: Final = sorted(
    ((path, choices[0][0]) for (_, path), choices in by_path().items() if "{" not in path and path != "/"),
    key=lambda owner: -len(owner[0]),
)


def dialect_near(path: str) -> Dialect:
    """Return whose errors a client expects that asks for a path that is not there, or not with its method."""
    for dialect in DIALECTS:
        if path.startswith(dialect.errors_below):
            return dialect
    tidied = tidy(path)
    return next((dialect for end, dialect in _OWNERS if tidied.endswith(end)), OPENAI)
