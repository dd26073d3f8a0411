"""Joins neighbouring operations of a captured graph: one pass over memory where there were two or three.

Each function changes the graph in place and keeps what it computes. Called by ``lowering``.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import fx

from shard.encoders.graph.attention import attend_joint
from shard.encoders.graph.capture import ATTEND, LAYER_NORM, LINEAR
from shard.encoders.graph.normed_sum import NormedSum

_aten = torch.ops.aten
_ACTIVATIONS: Final = {_aten.gelu.default: "gelu", _aten.relu.default: "relu"}

#: An activation's name and algorithm, as oneDNN and torch have them.
Activation = tuple[str, str]

#: What ``lowering`` finds on a linear node: an ``Activation``; the node to be added.
ACTIVATION: Final = "emb_activation"
RESIDUAL: Final = "emb_residual"


def weight_of(node: fx.Node) -> torch.Tensor | None:
    """Return the weight of a linear node, shape (out, in); ``None`` where it is computed on the way."""
    return _constant(node.args[1])


def bias_of(node: fx.Node) -> torch.Tensor | None:
    """Return the bias of a linear node, shape (out,), if it has one."""
    return _constant(node.args[2])


def _constant(node: object) -> torch.Tensor | None:
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value = getattr(node.graph.owning_module, str(node.target))
    return value if isinstance(value, torch.Tensor) else None


def linear_nodes(graph: fx.Graph) -> list[fx.Node]:
    """Return the linear layers whose weights are constants, in order of execution."""
    return [node for node in graph.nodes if node.target is LINEAR and weight_of(node) is not None]


def merge_linears(module: fx.GraphModule) -> None:
    """Let linear layers that read the same input be one layer with their weights side by side.

    Query, key and value then cost one call, and one quantisation of their input. Their weights are copied, those that
    several groups have (ALBERT's layers) once.
    """
    readers: dict[fx.Node, list[fx.Node]] = {}
    for node in linear_nodes(module.graph):
        readers.setdefault(_node(node.args[0]), []).append(node)
    joined: dict[tuple[torch.Tensor, ...], torch.Tensor] = {}
    for group in readers.values():
        if len(group) > 1 and len({bias_of(node) is None for node in group}) == 1:
            _merge(module, group, joined)
    module.graph.eliminate_dead_code()


def _merge(module: fx.GraphModule, group: list[fx.Node], joined: dict[tuple[torch.Tensor, ...], torch.Tensor]) -> None:
    graph, first = module.graph, group[0]
    weights = tuple(weight for node in group if (weight := weight_of(node)) is not None)
    biases = tuple(bias for node in group if (bias := bias_of(node)) is not None)
    for parts in filter(None, (weights, biases)):
        if parts not in joined:
            joined[parts] = torch.cat(parts)
    with graph.inserting_before(first):
        wide_weight = add_constant(module, joined[weights])
        wide_bias = add_constant(module, joined[biases]) if biases else None
        merged = graph.call_function(LINEAR, (first.args[0], wide_weight, wide_bias))
        start = 0
        for node, own in zip(group, weights, strict=True):
            part = graph.call_function(_aten.slice.Tensor, (merged, -1, start, start + own.shape[0]))
            part.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(part)
            start += own.shape[0]
    for node in group:
        graph.erase_node(node)


def fuse_activations(graph: fx.Graph) -> None:
    """Mark linear layers whose output goes into an activation and nowhere else, and remove the activation."""
    for node in linear_nodes(graph):
        activation = activation_behind(node)
        if activation is not None:
            user = next(iter(node.users))
            node.meta[ACTIVATION] = activation
            user.replace_all_uses_with(node)
            graph.erase_node(user)


def activation_behind(node: fx.Node) -> Activation | None:
    """Return the activation that a linear node's output goes into and nowhere else."""
    user = _only_user(node)
    if user is None or user.target not in _ACTIVATIONS:
        return None
    algorithm = user.kwargs.get("approximate", "none") if user.target is _aten.gelu.default else ""
    return _ACTIVATIONS[user.target], str(algorithm)


def is_activated(node: fx.Node) -> bool:
    """Tell whether a linear node reads what an activation has made."""
    return isinstance(node.args[0], fx.Node) and node.args[0].target in _ACTIVATIONS


def fuse_residuals(graph: fx.Graph) -> None:
    """Mark linear layers whose output is added to something of its own form and used nowhere else; remove the sum.

    The layer moves to where the sum was: by then both operands are there.
    """
    waiting = linear_nodes(graph)
    fused: list[fx.Node] = []
    while waiting:
        node = waiting.pop(0)
        user = _only_user(node)
        if ACTIVATION in node.meta or user is None or user.target is not _aten.add.Tensor or user.kwargs:
            continue
        left, right = user.args
        other = right if left is node else left
        if other is node or not isinstance(other, fx.Node) or _form(other) != _form(node):
            continue
        if other in waiting:  # it may be moved itself, behind this sum; where both are layers, the later one takes it
            continue
        with graph.inserting_before(user):
            moved = graph.node_copy(node, lambda argument: argument)
        moved.meta[RESIDUAL] = other
        for earlier in fused:  # what it adds may be the very sum that goes: that is no use that the graph knows of
            if earlier.meta[RESIDUAL] is user:
                earlier.meta[RESIDUAL] = moved
        fused.append(moved)
        user.replace_all_uses_with(moved)
        graph.erase_node(user)
        graph.erase_node(node)


def fuse_norms(graph: fx.Graph, normed_sum: NormedSum) -> None:
    """Let ``normed_sum`` be what a layer norm makes of a sum that is used nowhere else."""
    for node in [node for node in graph.nodes if node.target is LAYER_NORM]:
        total, shape, *affine, eps = node.args
        if len(total.users) > 1 or total.target is not _aten.add.Tensor or total.kwargs:
            continue
        operands = total.args
        if len(shape) != 1 or not all(isinstance(one, fx.Node) for one in (*operands, *affine)):
            continue
        forms = [_form(one) for one in (*operands, *affine)]
        if forms[0] != forms[1] or len({form[:1] for form in forms}) > 1:
            continue
        with graph.inserting_before(node):
            joined = graph.call_function(normed_sum, (*operands, shape, *affine, eps))
        joined.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(joined)
        graph.erase_node(node)
        graph.erase_node(total)


def join_heads(graph: fx.Graph) -> None:
    """Hand attention the one output that its queries, keys and values are three equal parts of.

    ``merge_linears`` makes such outputs. Models that change queries and keys in between, by rotation or a norm, keep
    their own order.
    """
    for node in graph.nodes:
        if node.target is not ATTEND:
            continue
        parts = [_find_part(argument) for argument in node.args[:3]]
        first = parts[0]
        if first is None:
            continue
        joint, _, width, size = first
        is_whole = _width_of(joint) == 3 * width  # of a gate that reads the same input no attention knows
        if is_whole and parts == [(joint, number * width, width, size) for number in range(3)]:
            with graph.inserting_before(node):
                joined = graph.call_function(attend_joint, (joint, size, *node.args[3:]))
            node.replace_all_uses_with(joined)
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _find_part(argument: object) -> tuple[fx.Node, int, int, int] | None:
    """Read ``transpose(view(slice(joint, -1, start, end), [1, tokens, heads, size]), 1, 2)``.

    Returns joint, start, width and size; ``None`` for anything else.
    """
    transposed = _call(argument, _aten.transpose.int)
    viewed = transposed and transposed.args[1:] == (1, 2) and _call(transposed.args[0], _aten.view.default)
    sliced = viewed and _call(viewed.args[0], _aten.slice.Tensor)
    if not viewed or not sliced:
        return None
    joint, dimension, start, end = sliced.args
    size = viewed.meta["val"].shape[-1]
    if dimension != -1 or not isinstance(size, int):
        return None
    return joint, start, end - start, size  # type: ignore[return-value, operator]


def _width_of(node: fx.Node) -> int:
    weight = weight_of(node) if node.target is LINEAR else None  # what was merged has no value noted
    return int(node.meta["val"].shape[-1] if weight is None else weight.shape[0])


def _call(argument: object, target: object) -> fx.Node | None:
    return argument if isinstance(argument, fx.Node) and argument.target is target else None


def add_constant(module: fx.GraphModule, tensor: torch.Tensor) -> fx.Node:
    """Give the module a tensor and return the node that reads it, at the graph's insertion point."""
    held = dict(module.named_buffers(recurse=False))
    name = next((name for name, one in held.items() if one is tensor), f"constant_{len(held)}")
    module.register_buffer(name, tensor, persistent=False)
    return module.graph.get_attr(name)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _node(argument: object) -> fx.Node:
    assert isinstance(argument, fx.Node)
    return argument


def _form(node: fx.Node) -> tuple[str, ...]:
    value = node.meta.get("val")
    return (str(value.dtype), *map(str, value.shape)) if isinstance(value, torch.Tensor) else ()
