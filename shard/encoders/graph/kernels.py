"""Which way to multiply is fastest here? Asked of the processor itself, once, in milliseconds. And how to attend.

Called by ``loading.paths``. Which library is best differs from one processor to the next by a factor of two or more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import torch
from torch import fx, nn

from shard.encoders.graph.capture import ATTEND, LINEAR
from shard.encoders.graph.fusion import Activation, activation_behind, linear_nodes, weight_of
from shard.encoders.graph.lowering import Kernel, Kernels, onednn_linear
from shard.encoders.graph.segments import FEWEST_PLACES
from shard.encoders.graph.stock import activated_linear

#: Above it a private copy of the weights costs more memory than it saves time.
_MAX_PREPACKED_BYTES: Final = 64 * 1024 * 1024
#: Rows of the products that are tried, in this order. In the first it is the product that counts and not the call.
_ROWS: Final = (256, 128, 64, 32, 16, 8)
_ROUNDS: Final = 7
#: oneDNN may take so much longer: it sums up a row in the same order among however many others, MKL does not.
_WORTH_OF_ONEDNN: Final = 1.05
#: Races of which one has to say so: what else is at work at a start decides one in four, and with it about last bits.
_TRIES_OF_ONEDNN: Final = 3
#: Where that is no gain, for texts share padded batches, it has to be this much quicker.
_GAIN_OF_ONEDNN: Final = 0.9
#: Up to here the plain steps are not slower than torch's fused one: 0.6 to 1.07 of its time on an Intel Xeon, up to
#: 1.14 where that is held to AVX2 or SSE4.2; at 192 tokens 0.93 to 1.17, and the scores take memory. Not measured at
#: each start: what else is at work then would decide about the last bit of vectors, which shall be the same next time.
_PLAIN_TOKENS: Final = 128


def choose_float_kernels(graph: fx.GraphModule, *, prepack: bool | None) -> Kernels:
    """Return which of torch's own products and oneDNN's are the quicker, by the largest matrix of ``graph``.

    Which it is may depend on how many rows there are; in 16 bit it is oneDNN's. ``prepack`` says whether oneDNN keeps
    the matrices in its own order too; ``None`` is: if they are small. Who asks for it gets it for few rows at least.
    """
    used = [node for node in graph.graph.nodes if node.target is LINEAR]
    if not torch.backends.mkldnn.is_available() or not used:  # type: ignore[no-untyped-call]
        return Kernels("stock")
    largest = max(used, key=lambda node: int(node.args[1].meta["val"].numel()))
    weight = largest.args[1].meta["val"]
    kept = {one for node in linear_nodes(graph.graph) if (one := weight_of(node)) is not None}
    held = sum(one.nbytes for one in kept)
    packs = held > 0 and (held <= _MAX_PREPACKED_BYTES if prepack is None else prepack)
    onednn: Kernel = "onednn-packed" if packs else "onednn"
    if weight.dtype != torch.float32:
        return Kernels(onednn)  # so are torch's own products, but without what comes behind them
    shape = int(weight.shape[0]), int(weight.shape[1])
    ones = torch.ones(shape, dtype=weight.dtype)
    rows = _find_most_rows(onednn, ones, activation_behind(largest), _WORTH_OF_ONEDNN, _TRIES_OF_ONEDNN)
    if rows == _ROWS[0]:
        return Kernels(onednn)
    if rows == 0 and not (prepack and onednn == "onednn-packed"):
        return Kernels("stock")
    return Kernels(onednn, rows or _ROWS[-1])


def is_onednn_quicker(model: nn.Module) -> bool:
    """Tell whether oneDNN is much quicker than torch at the fp32 products of a model's own code, by the largest."""
    weights = [module.weight for module in model.modules() if type(module) is nn.Linear]
    if not torch.backends.mkldnn.is_available() or not weights:  # type: ignore[no-untyped-call]
        return False
    largest = max(weights, key=torch.Tensor.numel)
    return _find_most_rows("onednn", torch.ones(largest.shape), None, _GAIN_OF_ONEDNN) == _ROWS[0]


def _find_most_rows(
    onednn: Kernel, weight: torch.Tensor, activation: Activation | None, worth: float, tries: int = 1
) -> int:
    """Return the first of ``_ROWS`` with which oneDNN takes at most ``worth`` of torch's time, else 0.

    It has so many ``tries`` with the most rows, which are those that decide whether it is taken for all.
    """
    name, algorithm = activation or ("none", "")
    with torch.inference_mode():
        held = torch.ops.mkldnn._reorder_linear_weight(weight) if onednn == "onednn-packed" else weight  # noqa: SLF001
        for count in _ROWS:
            rows = torch.ones((count, weight.shape[1]), dtype=weight.dtype)
            stock = partial(activated_linear, rows, weight, None, name, algorithm)
            ours = partial(onednn_linear, rows, held, name, algorithm)
            races = (_race(ours, stock) for _ in range(tries if count == _ROWS[0] else 1))
            if any(onednn_s < stock_s * worth for onednn_s, stock_s in races):
                return count
    return 0


def find_plain_tokens(graph: fx.GraphModule) -> int:
    """Return up to which length texts take the plain steps of attention, in place of torch's fused one.

    0 where some layer cannot take them at all, and in 16 bit: a text by itself takes half as long without them there,
    and rounding moves its last bits in any case.
    """
    used = [node.args for node in graph.graph.nodes if node.target is ATTEND]
    query: torch.Tensor = used[0][0].meta["val"]
    return _bounded_by_layers(used, _PLAIN_TOKENS) if query.dtype == torch.float32 else 0


def _bounded_by_layers(attending: Sequence[Sequence[Any]], tokens: int) -> int:
    """Return up to which length, ``tokens`` at most, every layer may take the plain steps.

    Texts that share a segment share it in all layers. ``attending`` are the arguments of each layer's attention.
    """
    for query, key, _value, _scale, causal, window in attending:
        if causal or key.meta["val"].shape[1] != query.meta["val"].shape[1]:
            return 0
        tokens = tokens if window is None else min(tokens, window)
    return tokens if tokens >= FEWEST_PLACES else 0


def _race(*runners: Callable[[], object]) -> list[float]:
    """Return the best time of each in seconds, taken in turns: a noise of the machine then falls on both."""
    best = [float("inf")] * len(runners)
    for _ in range(_ROUNDS):
        for number, run in enumerate(runners):
            began_s = time.perf_counter()
            run()
            best[number] = min(best[number], time.perf_counter() - began_s)
    return best
