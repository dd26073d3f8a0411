"""A backend of models of every kind whose outputs can be worked out by hand, and an application around it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from aiohttp import web

from emb_model_provider.messages.link import (
    Detokenize,
    Encode,
    Encoded,
    InputError,
    SparseRows,
    Texts,
    Timing,
    Token,
    Tokenize,
    Tokens,
    TokenVectors,
)
from emb_model_provider.messages.status import ShardTable
from router.app import build_app
from router.auth import Authenticator
from router.handlers import Handlers
from router.registry import Registry
from router.service import EmbeddingService, Policy
from tests.support.statuses import make_info, make_status

LIMIT = 1024 * 1024
MAX_TOKENS = 8

KINDS = {
    "embed": {"task": "embed", "outputs": ("dense",), "prompts": ("query", "passage"), "fingerprint": "f00d"},
    "m3": {"task": "embed", "outputs": ("dense", "sparse", "multi_vector"), "matryoshka": (2, 4)},
    "splade": {"task": "sparse", "outputs": ("sparse",)},
    "colbert": {"task": "multi_vector", "outputs": ("multi_vector",), "prompts": ("query", "document")},
    "rerank": {"task": "rerank", "outputs": ("scores",), "labels": ("LABEL_0",), "activation": "identity"},
    "classify": {
        "task": "classify",
        "outputs": ("scores",),
        "labels": ("no", "maybe", "yes"),
        "activation": "softmax",
    },
}


def dense_of(text: str) -> list[float]:
    """The counts of a, b, c and of all else, made one long."""
    counts = np.array([text.count("a"), text.count("b"), text.count("c"), 0.1], dtype=np.float32)
    return (counts / np.linalg.norm(counts)).tolist()


def logit_of(query: str, document: str) -> float:
    """How many characters they share, less three."""
    return float(len(set(query) & set(document)) - 3)


class MadeUpBackend:
    """Tokens are characters. A text with ``BAD`` in it fails, alone where the request is partial."""

    def __init__(self) -> None:
        self.seen: list[Encode] = []
        self.asked: list[Tokenize | Detokenize] = []
        self.on_encode: Callable[[], None] = lambda: None

    async def encode(self, model_id: str, message: Encode) -> Encoded:
        self.on_encode()
        self.seen.append(message)
        texts = list(message.texts) or ["".join(map(chr, ids)) for ids in message.token_ids]
        errors = tuple(
            InputError(index, 422, "invalid_request_error", "bad_input", "no vector for this")
            for index, text in enumerate(texts)
            if "BAD" in text + "".join(message.seconds[index : index + 1]) and message.partial
        )
        if "scores" in message.outputs:
            seconds = message.seconds or ("",) * len(texts)
            labels = len(KINDS[model_id]["labels"])
            rows = [
                [logit_of(text, second)] if labels == 1 else [len(text) - 3.0, 0.0, 3.0 - len(text)]
                for text, second in zip(texts, seconds, strict=True)
            ]
        else:
            rows = [dense_of(text)[: message.dimensions] for text in texts] if "dense" in message.outputs else []
        for error in errors:
            if rows:
                rows[error.index] = [0.0] * len(rows[error.index])
        return Encoded(
            vectors=np.array(rows, dtype="<f4").tobytes(),
            dimension=len(rows[0]) if rows else 0,
            tokens=tuple(min(len(text), MAX_TOKENS) for text in texts),
            truncated=tuple(index for index, text in enumerate(texts) if len(text) > MAX_TOKENS),
            original_tokens=tuple(len(text) for text in texts),
            sparse=_sparse(texts) if "sparse" in message.outputs else None,
            token_vectors=_token_vectors(texts) if "multi_vector" in message.outputs else None,
            errors=errors,
            timing=Timing(1.0, 2.0, 3.0),
        )

    async def tokenize(self, model_id: str, message: Tokenize) -> Tokens:
        self.asked.append(message)
        special = (Token(1, "[CLS]", special=True, start=None, stop=None),) if message.add_special_tokens else ()
        return Tokens(
            tuple(
                special
                + tuple(
                    Token(ord(character), character, special=False, start=place, stop=place + 1)
                    for place, character in enumerate(text)
                )
                for text in message.texts
            )
        )

    async def detokenize(self, model_id: str, message: Detokenize) -> Texts:
        self.asked.append(message)
        return Texts(tuple("".join(map(chr, ids)) for ids in message.token_ids))


def _sparse(texts: list[str]) -> SparseRows:
    rows = [sorted({ord(character) for character in text}) for text in texts]
    offsets = np.cumsum([0, *map(len, rows)]).astype("<u4")
    values = [float(text.count(chr(code))) for text, row in zip(texts, rows, strict=True) for code in row]
    indices = np.array([code for row in rows for code in row], dtype="<u4")
    return SparseRows(offsets.tobytes(), indices.tobytes(), np.array(values, dtype="<f4").tobytes())


def _token_vectors(texts: list[str]) -> TokenVectors:
    vectors = [[float(character == one) for one in "abc"] for text in texts for character in text]
    return TokenVectors(np.array(vectors, dtype="<f4").tobytes(), 3, tuple(map(len, texts)))


def make_app(
    *kinds: str,
    backend: MadeUpBackend | None = None,
    keys: tuple[bytes, ...] = (),
    policy: Policy | None = None,
) -> web.Application:
    """Return an application that serves these kinds (by default all), each under its own name."""
    registry = Registry(ready_wait_s=0.05)
    registry.update(
        ShardTable(
            tuple(
                make_status(kind, name=f"owner/{kind}", info=make_info(**KINDS[kind])) for kind in kinds or tuple(KINDS)
            )
        )
    )
    service = EmbeddingService(registry, backend or MadeUpBackend(), policy)
    return build_app(Handlers(service, registry, LIMIT), Authenticator(keys), LIMIT)
