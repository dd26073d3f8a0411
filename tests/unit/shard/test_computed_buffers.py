"""What a model's own code computes where it is made: it is there whatever transformers has left in its place."""

import pytest
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from shard.encoders.computed_buffers import fill_computed

SLOPES = torch.tensor([1.0, 0.5, 0.25])


class OwnModel(PreTrainedModel):
    """As code for transformers 4 is written: its ``_init_weights`` knows of weights alone."""

    __module__ = "transformers_modules.own.modeling_own"
    config_class = PretrainedConfig

    def __init__(self, config):
        super().__init__(config)
        self.layer = nn.Module()
        self.layer.weights = nn.Linear(2, 3)
        self.layer.register_buffer("slopes", SLOPES.clone(), persistent=False)
        self.layer.register_buffer("saved", SLOPES.clone())
        self.layer.beside = self.layer.slopes * 2
        self.layer.register_buffer("of_a_weight", self.layer.weights.weight.detach()[:, 0].clone(), persistent=False)
        self.had_memory = not self.layer.weights.weight.is_meta
        self.post_init()

    def _init_weights(self, module):
        pass


class KnownModel(OwnModel):
    __module__ = "transformers.models.known.modeling_known"


def loaded(kind):
    """Return a model as transformers loads it: ``to_empty`` leaves memory that nobody has written, 7 here."""
    with torch.device("meta"):
        model = kind(PretrainedConfig())
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, value in table.items():
                table[name] = torch.full_like(value, 7.0, device="cpu", dtype=torch.float16)
    return model


@pytest.mark.parametrize("wrapped", [False, True])
def test_what_own_code_computes_is_computed_once_more_and_nothing_else_is_touched(wrapped):
    model = loaded(OwnModel)
    fill_computed([nn.Sequential(nn.ReLU(), nn.Sequential(model)) if wrapped else model, nn.ReLU()])
    layer = model.layer
    assert layer.slopes.equal(SLOPES.half())
    assert layer.beside.equal(SLOPES * 2)
    untouched = (layer.weights.weight, layer.weights.bias, layer.saved, layer.of_a_weight)
    assert all(value.eq(7).all() for value in untouched)


def test_a_model_is_made_once_more_without_memory_for_its_weights(monkeypatch):
    made = []
    init = OwnModel.post_init
    monkeypatch.setattr(OwnModel, "post_init", lambda self: (made.append(self.had_memory), init(self)))
    register = nn.Module.register_parameter
    model = loaded(OwnModel)
    fill_computed([model])
    assert made == [False, False]
    assert nn.Module.register_parameter is register


def test_a_class_of_transformers_own_has_computed_its_buffers_itself():
    model = loaded(KnownModel)
    fill_computed([model])
    assert model.layer.slopes.eq(7).all()
