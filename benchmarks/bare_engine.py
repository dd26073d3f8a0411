"""The engine without its server, and the matrix multiplication that it is held against; each in a worker process.

Only ``load_encoder`` knows how a shard loads a model.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    import torch

    from emb_model_provider.modelmap import Precision
    from shard.encoder import Encoder, Tokenized

#: What a shard takes at once on a CPU.
BATCH_TOKENS: Final = 2048
_GEMM_SIZE: Final = 2048
#: Of one large square product.
GEMM_FLOPS: Final = 2.0 * _GEMM_SIZE**3


def worker_environment(threads: int) -> dict[str, str]:
    """Return what a shard's environment says of threads and memory, and no progress bars."""
    return {
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "RAYON_NUM_THREADS": str(threads),
        "TQDM_DISABLE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false",
    }


def load_encoder(directory: Path, precision: str, threads: int) -> Encoder:
    """Load a model as a shard does."""
    import tempfile  # noqa: PLC0415 - as all of this: only in the worker

    from emb_model_provider.modelmap import ModelSpec  # noqa: PLC0415
    from shard.loader import load  # noqa: PLC0415

    spec = ModelSpec(id="bench", name=str(directory), precision=cast("Precision", precision), device="cpu")
    with tempfile.TemporaryDirectory() as cache:
        return load(
            directory, spec, source="local", trust_remote_code=False, threads=threads, cache_directory=Path(cache)
        )


class BareEngine:
    """An encoder that is called directly: tokenise, sort by length, encode in batches of ``BATCH_TOKENS``."""

    def __init__(self, directory: str, precision: str, threads: int) -> None:
        self._encoder = load_encoder(Path(directory), precision, threads)
        config = json.loads((Path(directory) / "config.json").read_text("utf-8"))
        self._layers: int = config["num_hidden_layers"]
        self._hidden: int = config["hidden_size"]
        self._inner: int = config["intermediate_size"]

    def describe(self) -> dict[str, float | str]:
        """Return the encoder's kernel, batching and cosine to fp32."""
        info = self._encoder.info
        return {"kernel": info.kernel, "batching": info.batching, "cosine": info.cosine or 0.0}

    def seconds(self, texts: Sequence[str], max_texts: int = 1_000_000) -> float:
        """Encode all texts, in batches of at most ``max_texts``; return the seconds from texts to vectors."""
        began_s = time.perf_counter()
        tokenized = self._encoder.tokenize(texts)
        for batch in batches(tokenized, max_texts):
            self._encoder.encode(batch)
        return time.perf_counter() - began_s

    def seconds_beside_products(self, texts: Sequence[str]) -> tuple[float, float, float]:
        """Encode all texts, with a large product of ``torch.mm`` after every batch.

        Returns the seconds of tokenising, those of encoding, and the mean of one product: a rate that both sides were
        held to by the machine at the same time, not the best that one of them ever reached.
        """
        import torch  # noqa: PLC0415

        a, b = torch.rand(_GEMM_SIZE, _GEMM_SIZE), torch.rand(_GEMM_SIZE, _GEMM_SIZE)
        out = torch.empty(_GEMM_SIZE, _GEMM_SIZE)
        torch.mm(a, b, out=out)
        began_s = time.perf_counter()
        ready = list(batches(self._encoder.tokenize(texts)))
        tokenize_s, encode_s, products_s = time.perf_counter() - began_s, 0.0, 0.0
        for batch in ready:
            began_s = time.perf_counter()
            self._encoder.encode(batch)
            encoded_s = time.perf_counter()
            torch.mm(a, b, out=out)
            encode_s += encoded_s - began_s
            products_s += time.perf_counter() - encoded_s
        return tokenize_s, encode_s, products_s / len(ready)

    def slice_seconds(self, texts: Sequence[str]) -> list[float]:
        """Return the seconds of each full batch of ``BATCH_TOKENS``."""
        times: list[float] = []
        for batch in batches(self._encoder.tokenize(texts)):
            began_s = time.perf_counter()
            self._encoder.encode(batch)
            times.append(time.perf_counter() - began_s)
        return times[:-1]

    def flops(self, texts: Sequence[str]) -> float:
        """Return the floating-point operations of the matrix products that these texts need; no padding counted."""
        lengths = [len(one.ids) for one in self._encoder.tokenize(texts)]
        return sum(bert_flops(length, self._layers, self._hidden, self._inner) for length in lengths)

    def tokens(self, texts: Sequence[str]) -> int:
        """Return how many tokens the model reads of these texts."""
        return sum(len(one.ids) for one in self._encoder.tokenize(texts))

    def onednn_flops_per_s(self, repeats: int) -> float:
        """Return the best rate of oneDNN's linear layer on a large product, its weights put in order beforehand."""
        import torch  # noqa: PLC0415

        a, weights = torch.rand(_GEMM_SIZE, _GEMM_SIZE), torch.rand(_GEMM_SIZE, _GEMM_SIZE)
        linear = torch.ops.mkldnn
        with torch.inference_mode():
            packed = linear._reorder_linear_weight(weights, _GEMM_SIZE)  # noqa: SLF001

            def multiply() -> torch.Tensor:
                product: torch.Tensor = linear._linear_pointwise(a, packed, None, "none", [], "")  # noqa: SLF001
                return product

            return _best_rate(multiply, repeats)


def batches(tokenized: Sequence[Tokenized], max_texts: int = 1_000_000) -> Iterator[list[Tokenized]]:
    """Cut into batches of at most ``BATCH_TOKENS`` tokens, texts of like length together."""
    batch: list[Tokenized] = []
    tokens = 0
    for one in sorted(tokenized, key=lambda text: len(text.ids)):
        if batch and (tokens + len(one.ids) > BATCH_TOKENS or len(batch) == max_texts):
            yield batch
            batch, tokens = [], 0
        batch.append(one)
        tokens += len(one.ids)
    if batch:
        yield batch


def bert_flops(tokens: int, layers: int, hidden: int, inner: int) -> float:
    """Return the operations of a BERT encoder for one text: four projections, the feed-forward pair, attention."""
    linear = 2 * tokens * (4 * hidden * hidden + 2 * hidden * inner)
    attention = 4 * tokens * tokens * hidden
    return float(layers * (linear + attention))


def _best_rate(multiply: object, repeats: int) -> float:
    assert callable(multiply)
    multiply()
    times = []
    for _ in itertools.repeat(None, repeats):
        began_s = time.perf_counter()
        multiply()
        times.append(time.perf_counter() - began_s)
    return GEMM_FLOPS / min(times)
