"""Which way to multiply and to attend is fastest here? Asked of the processor itself, once, in milliseconds.

Called by ``shard.paths``. Which library is best differs from one processor to the next by a factor of two or more.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Final

import torch
from torch import fx
from torch.nn import functional

from shard.encoders.graph.attention import attend_plainly
from shard.encoders.graph.capture import ATTEND, LINEAR
from shard.encoders.graph.fusion import linear_nodes, weight_of
from shard.encoders.graph.lowering import Kernel, onednn_linear

#: Above it a private copy of the weights costs more memory than it saves time.
_MAX_PREPACKED_BYTES: Final = 64 * 1024 * 1024
#: Enough rows for the product and not the call to be measured.
_ROWS: Final = 256
_ROUNDS: Final = 7
#: Tried in this order. Beyond the last, the scores of all pairs of tokens would take too much memory.
_LENGTHS: Final = (16, 64, 128, 192)


def choose_float_kernel(graph: fx.GraphModule, *, prepack: bool | None) -> Kernel:
    """Return the quicker of torch's own product and oneDNN's for the largest matrix of ``graph``.

    ``prepack`` says whether oneDNN keeps the matrices in its own order too; ``None`` is: if they are small. Who asks
    for it gets oneDNN's, which then is the quicker one for short texts.
    """
    used = [node.args[1].meta["val"] for node in graph.graph.nodes if node.target is LINEAR]
    if not torch.backends.mkldnn.is_available() or not used:  # type: ignore[no-untyped-call]
        return "stock"
    largest = max(used, key=lambda weight: int(weight.numel()))
    is_wished = prepack is True and largest.dtype == torch.float32
    if not is_wished and not _is_onednn_quicker(int(largest.shape[0]), int(largest.shape[1]), largest.dtype):
        return "stock"
    held = sum(weight.nbytes for node in linear_nodes(graph.graph) if (weight := weight_of(node)) is not None)
    packs = held > 0 and (held <= _MAX_PREPACKED_BYTES if prepack is None else prepack)
    return "onednn-packed" if packs and largest.dtype == torch.float32 else "onednn"


def _is_onednn_quicker(outputs: int, inputs: int, dtype: torch.dtype) -> bool:
    rows, weight = torch.ones((_ROWS, inputs), dtype=dtype), torch.ones((outputs, inputs), dtype=dtype)
    with torch.inference_mode():
        stock_s, onednn_s = _race(lambda: functional.linear(rows, weight), lambda: onednn_linear(rows, weight))
    return onednn_s < stock_s


def choose_plain_tokens(graph: fx.GraphModule) -> int:
    """Return up to which length of text the plain steps of attention are quicker than torch's fused one."""
    queries = [node.args[0].meta["val"] for node in graph.graph.nodes if node.target is ATTEND]
    _, heads, _, size = queries[0].shape
    found = 0
    with torch.inference_mode():
        for length in _LENGTHS:
            text = torch.ones((1, int(heads), length, int(size)), dtype=queries[0].dtype)
            plain_s, fused_s = _race(
                partial(attend_plainly, text, text, text, None),
                partial(functional.scaled_dot_product_attention, text, text, text),
            )
            if plain_s > fused_s:
                break
            found = length
    return found


def _race(*runners: Callable[[], object]) -> list[float]:
    """Return the best time of each in seconds, taken in turns: a noise of the machine then falls on both."""
    best = [float("inf")] * len(runners)
    for _ in range(_ROUNDS):
        for number, run in enumerate(runners):
            began_s = time.perf_counter()
            run()
            best[number] = min(best[number], time.perf_counter() - began_s)
    return best
