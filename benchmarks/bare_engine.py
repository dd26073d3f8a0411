"""The engine without its server, and the matrix multiplication that it is held against; each in a worker process.

Only ``load_encoder`` knows how a shard loads a model.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    import torch

    from emb_model_provider.modelmap import Precision
    from shard.encoder import Encoder, Tokenized

#: What a shard takes at once on a CPU.
BATCH_TOKENS: Final = 2048
#: And on a card.
BATCH_TOKENS_ON_CARD: Final = 32768
_GEMM_SIZE: Final = 2048
_GEMM_SIZE_ON_CARD: Final = 8192
#: One takes a card a millisecond or two; with so many in a row, asking for them and waiting count for nothing.
_PRODUCTS_ON_CARD: Final = 4
_DTYPES: Final = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
#: Those in which sentence-transformers and a large product can be measured beside the engine.
PRECISIONS: Final = tuple(_DTYPES)


def worker_environment(threads: int) -> dict[str, str]:
    """Return what a shard's environment says of threads, memory and the order of cards, and no progress bars.

    What is said to the Rust tokenizer's own pool is for the libraries beside us: a shard does not use it.
    """
    return {
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "RAYON_NUM_THREADS": str(threads),
        "TQDM_DISABLE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false",
    }


def torch_dtype(precision: str) -> torch.dtype:
    """Return torch's name of a precision in which a model's arithmetic is done."""
    import torch  # noqa: PLC0415 - as everywhere here: only in the worker

    dtype: torch.dtype = getattr(torch, _DTYPES[precision])
    return dtype


def load_encoder(directory: Path, precision: str, threads: int, device: str = "cpu") -> Encoder:
    """Load a model as a shard does."""
    import tempfile  # noqa: PLC0415

    from emb_model_provider.modelmap import ModelSpec  # noqa: PLC0415
    from shard.loading.fetched import Fetched  # noqa: PLC0415
    from shard.loading.loader import load  # noqa: PLC0415

    if device != "cpu":
        import torch  # noqa: PLC0415

        # A shard sees its own card only, which is then the current one.
        torch.cuda.set_device(torch.device(device))
    spec = ModelSpec(id="bench", name=str(directory), precision=cast("Precision", precision), device=device)
    with tempfile.TemporaryDirectory() as cache:
        return load(Fetched(directory), spec, threads=threads, cache_directory=Path(cache))


class BareEngine:
    """An encoder that is called directly: tokenise, sort by length, encode in batches as large as a shard's."""

    def __init__(self, directory: str, precision: str, threads: int, device: str = "cpu") -> None:
        self._encoder = load_encoder(Path(directory), precision, threads, device)
        self._device = device
        self._precision = precision
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
        for batch in self._batches(texts, max_texts):
            self._encoder.encode(batch)
        return time.perf_counter() - began_s

    def seconds_beside_products(self, texts: Sequence[str]) -> tuple[float, float, float]:
        """Encode all texts, with a large product of ``torch.mm`` after every batch.

        Returns the seconds of tokenising, those of encoding, and the mean FLOP/s of the products: a rate that both
        sides were held to by the machine at the same time, not the best that one of them ever reached.
        """
        product = _Product(self._device, self._precision)
        began_s = time.perf_counter()
        ready = list(self._batches(texts))
        tokenize_s, encode_s, products_s = time.perf_counter() - began_s, 0.0, 0.0
        for batch in ready:
            began_s = time.perf_counter()
            self._encoder.encode(batch)
            encode_s += time.perf_counter() - began_s
            products_s += product.seconds()
        return tokenize_s, encode_s, product.flops * len(ready) / products_s

    def slice_seconds(self, texts: Sequence[str]) -> list[float]:
        """Return the seconds of each full batch."""
        times: list[float] = []
        for batch in self._batches(texts):
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

    def _batches(self, texts: Sequence[str], max_texts: int = 1_000_000) -> Iterator[list[Tokenized]]:
        max_tokens = BATCH_TOKENS if self._device == "cpu" else BATCH_TOKENS_ON_CARD
        return batches(self._encoder.tokenize(texts), max_texts, max_tokens)


class _Product:
    """A large square product of ``torch.mm``: on a CPU in fp32, on a card in the precision that is measured."""

    def __init__(self, device: str, precision: str) -> None:
        import torch  # noqa: PLC0415

        on_card = device != "cpu"
        size = _GEMM_SIZE_ON_CARD if on_card else _GEMM_SIZE
        dtype = torch_dtype(precision) if on_card else torch.float32
        # Of positive numbers alone, a card makes a product faster than of such as a model has.
        draw = torch.randn if on_card else torch.rand
        a, b = (draw((size, size), dtype=dtype, device=device) for _ in range(2))
        out = torch.empty_like(a)
        self.flops = 2.0 * size**3
        self._repeats = _PRODUCTS_ON_CARD if on_card else 1
        self._multiply: Callable[[], object] = lambda: torch.mm(a, b, out=out)
        self._wait: Callable[[], object] = (lambda: torch.cuda.synchronize(device)) if on_card else (lambda: None)
        self.seconds()

    def seconds(self) -> float:
        """Return the seconds of one product; none is under way before or after."""
        self._wait()
        began_s = time.perf_counter()
        for _ in itertools.repeat(None, self._repeats):
            self._multiply()
        self._wait()
        return (time.perf_counter() - began_s) / self._repeats


def batches(
    tokenized: Sequence[Tokenized], max_texts: int = 1_000_000, max_tokens: int = BATCH_TOKENS
) -> Iterator[list[Tokenized]]:
    """Cut into batches of at most ``max_tokens`` tokens, texts of like length together."""
    batch: list[Tokenized] = []
    tokens = 0
    for one in sorted(tokenized, key=lambda text: len(text.ids)):
        if batch and (tokens + len(one.ids) > max_tokens or len(batch) == max_texts):
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
    return 2.0 * _GEMM_SIZE**3 / min(times)
