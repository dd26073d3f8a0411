"""A transformers model → a flat graph that computes its last hidden states on texts laid end to end.

transformers lets an attention function be registered by name: the stock model is traced once with one that only marks
the place. What is left is a list of operations without a line of Python between them, in which ``fusion`` can see that
a linear layer feeds an activation, and ``lower`` puts a kernel in each marked place. Whether the result is right is not
looked up in a list of model names: ``shard.fidelity`` compares its vectors with the stock model's at every start.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from shard.encoders.graph.masks import asked_rule, attention_by, check_masks

ATTENTION_NAME: Final = "emb_packed"
_NAMESPACE: Final = "emb_provider"
#: Any length would do: sizes are symbols in the trace. Not 0 or 1, which torch makes constants of.
_TRACED_TOKENS: Final = 11
#: What a model may ask of attention beside the usual; ``attend`` does none of it, so such a model is not captured.
_FOREIGN_OPTIONS: Final = ("softcap", "s_aux", "position_bias", "position_bias_table", "head_mask")

_library = torch.library.Library(_NAMESPACE, "DEF")  # type: ignore[no-untyped-call]
_library.define("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor")  # type: ignore[no-untyped-call]
_library.define("layer_norm(Tensor x, SymInt[] shape, Tensor? weight, Tensor? bias, float eps) -> Tensor")  # type: ignore[no-untyped-call]
_library.define("attend(Tensor query, Tensor key, Tensor value, float? scale, bool causal, int? window) -> Tensor")  # type: ignore[no-untyped-call]

LINEAR: Final = torch.ops.emb_provider.linear.default
LAYER_NORM: Final = torch.ops.emb_provider.layer_norm.default
ATTEND: Final = torch.ops.emb_provider.attend.default

#: What reads rows of a table, and which of its arguments says which rows.
_TABLES: Final[dict[object, int]] = {torch.ops.aten.embedding.default: 1, torch.ops.aten.index_select.default: 2}


class CaptureError(Exception):
    """The model cannot be turned into a flat graph; it is served by its own code instead."""


@torch.library.register_fake(f"{_NAMESPACE}::linear")  # type: ignore[untyped-decorator]
def _linear_shape(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    del bias
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@torch.library.register_fake(f"{_NAMESPACE}::layer_norm")  # type: ignore[untyped-decorator]
def _layer_norm_shape(x: torch.Tensor, *_rest: object) -> torch.Tensor:
    return torch.empty_like(x)


@torch.library.register_fake(f"{_NAMESPACE}::attend")  # type: ignore[untyped-decorator]
def _attend_shape(query: torch.Tensor, _key: torch.Tensor, value: torch.Tensor, *_rest: object) -> torch.Tensor:
    batch, heads, tokens, _ = query.shape
    return query.new_empty((batch, tokens, heads, value.shape[-1]))


def capture(model: PreTrainedModel, *, type_ids: bool) -> fx.GraphModule:
    """Return a graph of ``(input_ids, position_ids[, token_type_ids])``, each (1, tokens) → (1, tokens, size).

    Raises ``CaptureError`` for a model whose code cannot be traced so. The model itself is left as it was.
    """

    def forward(*inputs: torch.Tensor) -> torch.Tensor:
        more = {"token_type_ids": inputs[2]} if type_ids else {}
        output = model(input_ids=inputs[0], position_ids=inputs[1], use_cache=False, **more)
        hidden: torch.Tensor = output.last_hidden_state
        return hidden

    ids = torch.ones((1, _TRACED_TOKENS), dtype=torch.long, device=model.device)
    inputs = [ids, torch.arange(_TRACED_TOKENS, device=model.device)[None]]
    inputs += [torch.zeros_like(ids)] if type_ids else []
    try:
        with torch.inference_mode():
            with attention_by(model, ATTENTION_NAME, _mark_attention, _no_mask), _KeepWhole():
                graph = make_fx(forward, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*inputs)
            check_masks(model, lambda: forward(*inputs))
    except Exception as error:  # this runs foreign code in a foreign way: it may raise anything
        raise CaptureError(
            f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
        ) from error
    if not any(node.target is ATTEND for node in graph.graph.nodes):
        raise CaptureError("its attention is not transformers' own")
    _drop_copies(graph.graph)
    if _numbers_tokens(graph.graph):
        raise CaptureError("it numbers its tokens by itself")  # on from one text to the next, and beyond its table
    return graph


def _no_mask(*_arguments: object, **_options: object) -> None:
    """Make no mask: ``attend`` knows where texts end."""


def _mark_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    **options: Any,  # noqa: ANN401 - whatever a model hands to attention
) -> tuple[torch.Tensor, None]:
    """Signature: transformers' ``AttentionInterface``. Shapes: (1, heads, tokens, size) → (1, tokens, heads, size)."""
    foreign = [name for name in _FOREIGN_OPTIONS if options.get(name) is not None]
    if foreign or attention_mask is not None:
        raise CaptureError(f"its attention takes {', '.join(foreign) or 'a mask of its own'}")
    causal, window = asked_rule(module, options)
    return torch.ops.emb_provider.attend(query, key, value, scaling, causal, window), None


class _KeepWhole(TorchFunctionMode):
    """Records a linear layer or a layer norm as one operation instead of its parts, and no dropout at all."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401 - torch's protocol
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        del types
        options = kwargs or {}
        if func is functional.linear:
            return _linear(*args, **options)
        if func is functional.layer_norm:
            return _layer_norm(*args, **options)
        return func(*args, **options)


def _linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:  # noqa: A002
    marked: torch.Tensor = torch.ops.emb_provider.linear(input, weight, bias)
    return marked


def _layer_norm(
    input: torch.Tensor,  # noqa: A002 - torch's own name
    normalized_shape: list[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    marked: torch.Tensor = torch.ops.emb_provider.layer_norm(input, normalized_shape, weight, bias, eps)
    return marked


def _numbers_tokens(graph: fx.Graph) -> bool:
    """Tell whether the second input, the positions, is of no use, and a table is read by numbers that are no input."""
    _ids, positions, *_types = [node for node in graph.nodes if node.op == "placeholder"]
    read = [node.args[_TABLES[node.target]] for node in graph.nodes if node.target in _TABLES]
    return not positions.users and any(isinstance(index, fx.Node) and index.op != "placeholder" for index in read)


def _drop_copies(graph: fx.Graph) -> None:
    """Remove what dropout leaves behind outside training: copies that nobody changes."""
    if any(_changes_its_input(node) for node in graph.nodes):
        return
    for node in graph.nodes:
        if node.target in (torch.ops.aten.clone.default, torch.ops.aten.detach.default) and not node.kwargs:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _changes_its_input(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable  # noqa: SLF001
