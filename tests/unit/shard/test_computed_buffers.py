"""What a model's own code computes where it is made: it is there whatever transformers has left in its place."""

import pytest
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from shard.encoders.computed_buffers import fill_computed

SLOPES = torch.tensor([1.0, 0.5, 0.25])


def computed(factor=1.0):
    """Return the same where models are made just now: on ``meta``, while transformers loads them."""
    return torch.tensor([1.0, 0.5, 0.25]) * factor


class OwnModel(PreTrainedModel):
    """As code for transformers 4 is written: its ``_init_weights`` knows of weights alone."""

    __module__ = "transformers_modules.own.modeling_own"
    config_class = PretrainedConfig

    def __init__(self, config):
        super().__init__(config)
        self.layer = nn.Module()
        self.layer.weights = nn.Linear(2, 3)
        self.layer.unbiased = nn.Linear(2, 3, bias=False)
        self.layer.whole = nn.Parameter(torch.arange(3), requires_grad=False)
        self.layer.register_buffer("slopes", computed(), persistent=False)
        self.layer.register_buffer("saved", computed())
        self.layer.register_buffer("drawn", computed().requires_grad_() * 2, persistent=False)
        self.layer.beside = computed(2)
        self.layer.register_buffer("of_a_weight", self.layer.weights.weight.detach()[:, 0].clone(), persistent=False)
        self.had_memory = not self.layer.weights.weight.is_meta
        config.times_made = getattr(config, "times_made", 0) + 1
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
                table[name] = value if value is None else torch.full_like(value, 7.0, device="cpu", dtype=torch.float16)
    return model


@pytest.mark.parametrize("wrapped", [False, True])
def test_what_own_code_computes_is_computed_once_more_and_nothing_else_is_touched(wrapped):
    model = loaded(OwnModel)
    fill_computed([nn.Sequential(nn.ReLU(), nn.Sequential(model)) if wrapped else model, nn.ReLU()])
    layer = model.layer
    assert layer.slopes.equal(SLOPES.half())
    assert layer.slopes.dtype == torch.float16
    assert (layer.drawn.requires_grad, layer.drawn.tolist()) == (False, [2.0, 1.0, 0.5])
    assert layer.beside.equal(SLOPES * 2)
    untouched = (layer.weights.weight, layer.weights.bias, layer.saved, layer.of_a_weight)
    assert all(value.eq(7).all() for value in untouched)
    assert model.config.times_made == 1, "what code notes in its config is noted once"


def test_a_model_is_made_once_more_without_memory_for_its_weights(monkeypatch):
    made = []
    init = OwnModel.post_init
    monkeypatch.setattr(OwnModel, "post_init", lambda self: (made.append(self.had_memory), init(self)))
    register = nn.Module.register_parameter
    model = loaded(OwnModel)
    fill_computed([model])
    assert made == [False, False]
    assert nn.Module.register_parameter is register
    monkeypatch.setattr(OwnModel, "post_init", lambda _self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fill_computed([model])
    assert nn.Module.register_parameter is register


def test_a_class_of_transformers_own_has_computed_its_buffers_itself():
    model = loaded(KnownModel)
    fill_computed([model])
    assert model.layer.slopes.eq(7).all()


class Beside(PreTrainedModel):
    """Keeps what it computes beside its buffers alone, and one thing that is there already."""

    __module__ = OwnModel.__module__
    config_class = PretrainedConfig

    def __init__(self, config):
        super().__init__(config)
        self.layer = nn.Module()
        self.layer.weights = nn.Linear(2, 3)
        self.layer.beside = computed(2)
        self.layer.known = computed(3)
        self.post_init()


def test_of_a_model_without_a_buffer_what_lacks_is_computed_too_and_what_is_there_stays():
    model = loaded(Beside)
    model.layer.known = torch.full_like(SLOPES, 7.0, device="cpu")
    fill_computed([model])
    assert model.layer.beside.equal(SLOPES * 2)
    assert model.layer.known.eq(7).all()


class Weights(PreTrainedModel):
    """Computes nothing."""

    __module__ = OwnModel.__module__
    config_class = PretrainedConfig

    def __init__(self, config):
        super().__init__(config)
        self.weights = nn.Linear(2, 3)
        self.register_buffer("saved", computed())
        self.post_init()


def test_a_model_of_which_the_files_hold_all_is_not_made_once_more(monkeypatch):
    model = loaded(Weights)
    monkeypatch.setattr(Weights, "__init__", lambda *_: pytest.fail("that takes time, and may fail"))
    fill_computed([model])


class Inner(OwnModel):
    """A part of a model, which is made in a way of its own."""

    __module__ = OwnModel.__module__

    def __init__(self, config, *, layers):
        super().__init__(config)
        self.layers = layers


class Outer(PreTrainedModel):
    __module__ = OwnModel.__module__
    config_class = PretrainedConfig

    def __init__(self, config):
        super().__init__(config)
        self.inner = Inner(config, layers=2)
        self.post_init()


def test_a_model_within_a_model_is_made_as_the_outer_one_makes_it():
    model = loaded(Outer)
    fill_computed([model])
    assert model.inner.layer.slopes.equal(SLOPES.half())
