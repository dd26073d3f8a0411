"""A lowered graph → one Python function: a line per operation, constants bound to names, values freed after last use.

Called by ``loading.paths``. ``fx.GraphModule`` would look up every constant in a module and every operation through its
dispatcher of overloads, which for one short text is a sixth of the time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import fx

_aten = torch.ops.aten

#: The same operations by torch's own Python functions, whose arguments are read two microseconds sooner.
_NATIVE: Final[dict[object, Callable[..., Any]]] = {
    _aten.view.default: torch.Tensor.view,
    _aten.transpose.int: torch.transpose,
    _aten.add.Tensor: torch.add,
    _aten.mul.Tensor: torch.mul,
    _aten.sym_size.int: torch.Tensor.size,
    _aten.unsqueeze.default: torch.unsqueeze,
}


def compile_graph(module: fx.GraphModule) -> Callable[..., torch.Tensor]:
    """Return a function of the graph's placeholders. It holds the module's tensors and no longer the module."""
    names: dict[str, object] = {}
    lines: list[str] = []
    inputs: list[str] = []
    last_uses = _find_last_uses(module.graph)
    for node in module.graph.nodes:
        if node.op == "placeholder":
            inputs.append(node.name)
        elif node.op == "get_attr":
            names[node.name] = getattr(module, str(node.target))
        elif node.op == "output":
            lines.append(f"return {_write(node.args[0], names)}")
        elif node.op == "call_function":
            lines.append(f"{node.name} = {_write_call(node, names)}")
            lines.extend(f"del {gone.name}" for gone in last_uses.get(node, ()))
        else:
            raise ValueError(f"a captured graph has no {node.op}")
    source = "\n    ".join([f"def run({', '.join(inputs)}):", *lines])
    exec(compile(source, "<captured graph>", "exec"), names)  # noqa: S102 - written here from the graph alone
    run: Callable[..., torch.Tensor] = names["run"]  # type: ignore[assignment]
    return run


def _find_last_uses(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """Map each node to those whose value nobody needs after it."""
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        for used in node.all_input_nodes:
            last[used] = node
    ends: dict[fx.Node, list[fx.Node]] = {}
    for used, node in last.items():
        if used.op == "call_function":
            ends.setdefault(node, []).append(used)
    return ends


def _write_call(node: fx.Node, names: dict[str, object]) -> str:
    function = _NATIVE.get(node.target, node.target)
    arguments = [_write(one, names) for one in node.args]
    arguments += [f"{key}={_write(value, names)}" for key, value in node.kwargs.items()]
    return f"{_bind(function, names)}({', '.join(arguments)})"


def _write(value: object, names: dict[str, object]) -> str:
    if isinstance(value, fx.Node):
        return value.name
    if isinstance(value, (list, tuple)):
        items = "".join(f"{_write(item, names)}, " for item in value)
        return f"[{items}]" if isinstance(value, list) else f"({items})"
    if value is None or isinstance(value, (bool, int, str)):
        return repr(value)
    return _bind(value, names)


def _bind(value: object, names: dict[str, object]) -> str:
    known = next((name for name, held in names.items() if held is value), None)
    name = known or f"bound_{len(names)}"
    names[name] = value
    return name
