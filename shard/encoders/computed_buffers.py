"""What a model's own code computes where it is made, and no file holds: tables of rotations, places, slopes.

transformers makes a model before there is memory for it (on torch's ``meta`` device), and gives what no file holds
memory that nobody has written. Its own classes compute theirs once more in ``_init_weights``; code that comes with a
model, which is mostly written for transformers 4, does not: its vectors would be made of whatever was there before.
Called by ``loader``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch import nn
from transformers import PreTrainedModel

#: What transformers imports the code of models into.
_OWN_CODE: Final = "transformers_modules."


def fill_computed(modules: Iterable[nn.Module]) -> None:
    """Compute once more what the own code of each model below ``modules`` keeps beside its weights."""
    for module in modules:
        for model in _own_models(module):
            if _lacks_values(model):
                _fill(model)


def _own_models(module: nn.Module) -> Iterator[PreTrainedModel]:
    """Yield the outermost models of a class that came with the weights."""
    if isinstance(module, PreTrainedModel) and type(module).__module__.startswith(_OWN_CODE):
        yield module
        return
    for child in module.children():
        yield from _own_models(child)


def _lacks_values(model: PreTrainedModel) -> bool:
    is_computed = next(model.named_non_persistent_buffers(), None) is not None
    return is_computed or any(next(_beside_buffers(module), None) for module in model.modules())


def _beside_buffers(module: nn.Module) -> Iterator[str]:
    """Yield the names of plain tensors that were left without memory."""
    return (name for name, value in vars(module).items() if isinstance(value, torch.Tensor) and value.is_meta)


@torch.no_grad()
def _fill(model: PreTrainedModel) -> None:
    with _without_weights():
        made = type(model)(copy.deepcopy(model.config))
    for name, buffer in model.named_non_persistent_buffers():
        computed = made.get_buffer(name)
        if not computed.is_meta:  # of a weight, then
            buffer.copy_(computed)
    for path, module in model.named_modules():
        for name in list(_beside_buffers(module)):
            setattr(module, name, getattr(made.get_submodule(path), name))


@contextmanager
def _without_weights() -> Iterator[None]:
    """Have modules that are made meanwhile keep no memory for their parameters, as transformers has them made."""
    register = nn.Module.register_parameter

    def register_without(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None:
            param = nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
        register(self, name, param)

    nn.Module.register_parameter = register_without  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
