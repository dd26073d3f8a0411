"""Puts a kernel in every place that ``capture`` has marked, after ``fusion`` has joined what can be joined.

Called by ``loading.paths``, which also chooses the kernel.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import fx
from torch.fx.node import Argument
from torch.nn import functional

from shard.encoders.graph import fusion
from shard.encoders.graph.attention import Rule, attend, attend_joint
from shard.encoders.graph.capture import ATTEND, LAYER_NORM, LINEAR
from shard.encoders.graph.int8 import (
    activated_dynamic_linear,
    dynamic_linear,
    floor_of,
    narrow_for_products,
    narrow_in_groups,
    pack,
    widening_linear,
)
from shard.encoders.graph.normed_sum import find_normed_sum
from shard.encoders.graph.stock import activated_linear, summed_linear
from shard.encoders.graph.varlen import attend_varlen

_pointwise = torch.ops.mkldnn._linear_pointwise.default  # noqa: SLF001
_pointwise_sum = torch.ops.mkldnn._linear_pointwise.binary  # noqa: SLF001

#: How linear layers are computed. ``stock`` is torch's own choice. ``onednn`` names its library, which multiplies at
#: more than twice the speed of the default one on processors that are not Intel's; ``onednn-packed`` also keeps a copy
#: of each weight in the order the processor wants, which pays most for short texts. ``int8`` has the other two.
#: ``varlen`` is for CUDA devices: torch's own products, and attention that takes texts of all lengths in one call.
Kernel = Literal["stock", "onednn", "onednn-packed", "int8-dynamic", "int8-weight-only", "varlen"]


@dataclass(frozen=True, slots=True)
class Kernels:
    """``kernel`` for passes of up to ``max_tokens``, ``stock`` for longer ones; ``None``: for all."""

    kernel: Kernel
    max_tokens: int | None = None

    @property
    def all(self) -> tuple[Kernel, ...]:
        """The one or two kernels, that for few tokens first."""
        return (self.kernel,) if self.max_tokens is None else (self.kernel, "stock")

    def __str__(self) -> str:
        return self.kernel if self.max_tokens is None else f"{self.kernel}+stock"


_Tensors = tuple[torch.Tensor, ...]
#: What a kernel takes in place of a weight. Layers that share the one (ALBERT's) share the other.
_Made = dict[torch.Tensor, _Tensors]


def onednn_linear(x: torch.Tensor, weight: torch.Tensor, activation: str, algorithm: str) -> torch.Tensor:
    """Return ``activation(x @ weight.T)`` by oneDNN, shape (..., out); names are those of ``fusion.Activation``."""
    product: torch.Tensor = _pointwise(x, weight, None, activation, [], algorithm)
    return product


def lower(captured: fx.GraphModule, kernel: Kernel, plain_tokens: int = 0) -> fx.GraphModule:
    """Return ``captured`` with every mark replaced.

    It takes one more argument, the segments of ``attend`` or the bounds of ``attend_varlen``. ``plain_tokens`` is that
    of the former's ``Rule``.
    The captured graph stays as it is, and the weights it holds are shared where the kernel takes them as they are.
    """
    module = fx.GraphModule(captured, copy.deepcopy(captured.graph))
    graph = module.graph
    if kernel in ("onednn-packed", "int8-dynamic", "varlen"):
        fusion.merge_linears(module)
    if kernel in ("onednn-packed", "int8-dynamic"):
        fusion.join_heads(graph)
    if kernel == "varlen" and (normed_sum := find_normed_sum()) is not None:
        fusion.fuse_norms(graph, normed_sum)
    if kernel in ("stock", "onednn", "onednn-packed", "varlen"):
        fusion.fuse_activations(graph)
        fusion.fuse_residuals(graph)
    made: _Made = {}
    for node in fusion.linear_nodes(graph):
        _LINEARS[kernel](module, node, made)
    _lower_others(graph, kernel, plain_tokens)
    graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    _drop_unused_constants(module)
    for node in graph.nodes:
        node.meta.clear()  # what tracing noted holds megabytes
    module.recompile()
    return module


def _lower_others(graph: fx.Graph, kernel: Kernel, plain_tokens: int) -> None:
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    with graph.inserting_after(placeholders[-1]):
        segments = graph.placeholder("segments")
    for node in graph.nodes:
        if node.target is ATTEND:
            node.target = attend_varlen if kernel == "varlen" else attend
        if node.target in (attend, attend_joint, attend_varlen):
            *inputs, scale, causal, window = node.args
            rule: Any = Rule(scale, causal, window, plain_tokens)
            node.args = (*inputs, rule, segments)
        elif node.target is LAYER_NORM:
            node.target = torch.layer_norm
        elif node.target is LINEAR:  # its weight is computed on the way
            _set_computed(node, kernel)


def _set_computed(node: fx.Node, kernel: Kernel) -> None:
    if kernel in ("onednn", "onednn-packed"):
        _set_pointwise(node, node.args[1])
    else:
        node.target = functional.linear


def _make_once(node: fx.Node, made: _Made, make: Callable[[torch.Tensor], _Tensors]) -> _Tensors:
    weight = fusion.weight_of(node)
    assert weight is not None
    if weight not in made:
        made[weight] = make(weight.detach())
    return made[weight]


def _lower_stock(_module: fx.GraphModule, node: fx.Node, _made: _Made) -> None:
    residual = node.meta.get(fusion.RESIDUAL)
    activation = node.meta.get(fusion.ACTIVATION)
    if residual is not None:
        node.target, node.args = summed_linear, (*node.args, residual)
    elif activation is not None:
        node.target, node.args = activated_linear, (*node.args, *activation)
    else:
        node.target = functional.linear


def _lower_onednn(_module: fx.GraphModule, node: fx.Node, _made: _Made) -> None:
    _set_pointwise(node, node.args[1])


def _lower_onednn_packed(module: fx.GraphModule, node: fx.Node, made: _Made) -> None:
    (reordered,) = _make_once(node, made, lambda weight: (torch.ops.mkldnn._reorder_linear_weight(weight),))  # noqa: SLF001
    with module.graph.inserting_before(node):
        packed = fusion.add_constant(module, reordered)
    _set_pointwise(node, packed)


def _set_pointwise(node: fx.Node, weight: Argument) -> None:
    x, bias = node.args[0], node.args[2]
    residual = node.meta.get(fusion.RESIDUAL)
    if residual is not None:
        node.target, node.args = _pointwise_sum, (x, residual, weight, bias, "add")
    else:
        activation, algorithm = node.meta.get(fusion.ACTIVATION, ("none", ""))
        node.target, node.args = _pointwise, (x, weight, bias, activation, [], algorithm)


def _lower_dynamic(module: fx.GraphModule, node: fx.Node, made: _Made) -> None:
    moved, *packed = _make_once(node, made, _pack_narrow)
    if not fusion.is_activated(node):
        _set_constants(module, node, dynamic_linear, *packed)
        return
    with module.graph.inserting_before(node):
        own = fusion.bias_of(node)
        bias = fusion.add_constant(module, moved if own is None else moved + own.detach())
    node.args = (*node.args[:2], bias)
    _set_constants(module, node, activated_dynamic_linear, *packed)


def _pack_narrow(weight: torch.Tensor) -> _Tensors:
    narrowed = narrow_for_products(weight)
    return floor_of(narrowed), *pack(narrowed)


def _lower_widening(module: fx.GraphModule, node: fx.Node, made: _Made) -> None:
    _set_constants(module, node, widening_linear, *_make_once(node, made, _narrow))


def _narrow(weight: torch.Tensor) -> _Tensors:
    narrowed = narrow_in_groups(weight)
    return narrowed.values, narrowed.scales


def _set_constants(
    module: fx.GraphModule, node: fx.Node, target: Callable[..., torch.Tensor], *tensors: torch.Tensor
) -> None:
    with module.graph.inserting_before(node):
        constants = [fusion.add_constant(module, tensor) for tensor in tensors]
    node.target, node.args = target, (node.args[0], *constants, node.args[2])


_LINEARS: Final = {
    "stock": _lower_stock,
    "onednn": _lower_onednn,
    "onednn-packed": _lower_onednn_packed,
    "int8-dynamic": _lower_dynamic,
    "int8-weight-only": _lower_widening,
    "varlen": _lower_stock,
}


def _drop_unused_constants(module: fx.GraphModule) -> None:
    used = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for holder in (module._parameters, module._buffers):  # noqa: SLF001 - torch has no public way to remove one
        for name in [name for name in holder if name not in used]:
            del holder[name]
