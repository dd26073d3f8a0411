"""Rotations of transformers' own whose scale is that of the longest text: no text may leave its scale to the next."""

import threading

import pytest
import torch
from torch import nn
from transformers import Gemma3TextConfig, LlamaConfig, Phi3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

from shard.encoder import Results, Tokenized
from shard.encoders.rescaled_rope import BesideRescaled, RescaledRope, find_rescaled

MOST = 32
SIZES = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1000.0, "factor": 2.0}
PLAIN = {"rope_type": "default", "rope_theta": 1000.0}
LONG = {"rope_type": "longrope", "rope_theta": 1000.0, "short_factor": [1.0] * 4, "long_factor": [3.0] * 4}


def of_llama(most: int = MOST, rope=DYNAMIC) -> nn.Module:
    return LlamaRotaryEmbedding(LlamaConfig(**SIZES, max_position_embeddings=most, rope_parameters=rope))


def of_phi() -> nn.Module:
    lengths = {"max_position_embeddings": 2 * MOST, "original_max_position_embeddings": MOST}
    rope = LONG | {"original_max_position_embeddings": MOST}
    return Phi3RotaryEmbedding(Phi3Config(**SIZES, **lengths, pad_token_id=0, rope_parameters=rope))


def of_gemma(full=DYNAMIC) -> nn.Module:
    """Two sets of rotations, of which one is rescaled."""
    kinds = ["sliding_attention", "full_attention"]
    rope = dict(zip(kinds, (PLAIN, full), strict=True))
    config = Gemma3TextConfig(
        **SIZES, head_dim=8, num_hidden_layers=2, max_position_embeddings=MOST, layer_types=kinds, rope_parameters=rope
    )
    return Gemma3RotaryEmbedding(config)


def of_gemma_by_lengths() -> nn.Module:
    return of_gemma(LONG | {"original_max_position_embeddings": MOST, "factor": 2.0})


KINDS = [of_llama, of_phi, of_gemma, of_gemma_by_lengths]


def rotated(rotary: nn.Module, length: int) -> torch.Tensor:
    """Return the rotations of a text, of all kinds of layers."""
    places = torch.arange(length)[None]
    more = [{"layer_type": one} for one in rotary.rope_type] if isinstance(rotary.rope_type, dict) else [{}]
    return torch.cat([rotary(torch.zeros(1), places, **one)[0] for one in more], -1)


class Below:
    """All texts share a pass, whose result is its rotations."""

    def __init__(self, rotary: nn.Module) -> None:
        self.rotary = rotary

    def split(self, batch):
        return [list(range(len(batch)))]

    def run(self, rows):
        return Results(tokens=[rotated(self.rotary, len(rows[0].ids)).numpy()])


def texts(*lengths):
    return [Tokenized((1,) * length, length) for length in lengths]


def run(path, length):
    return torch.from_numpy(path.run(texts(length)).tokens[0])


@pytest.mark.parametrize("make", KINDS)
def test_a_text_has_the_rotations_of_a_fresh_model_whatever_came_before_it(make):
    path = RescaledRope(Below(rotary := make()), find_rescaled(rotary))
    assert path.most_plain == MOST
    for length in (MOST + 9, 5, MOST, 2 * MOST, MOST + 1, MOST, 3 * MOST, MOST + 1):
        assert torch.equal(run(path, length), rotated(make(), length)), length


@pytest.mark.parametrize("make", KINDS)
def test_a_long_text_is_rescaled_and_has_a_pass_of_its_own(make):
    path = RescaledRope(Below(rotary := make()), find_rescaled(rotary))
    assert not torch.equal(run(path, MOST + 1)[:, :MOST], run(path, MOST))
    assert path.split(texts(MOST + 1, 3, MOST, 90)) == [[1, 2], [0], [3]]


def test_where_rotations_are_rescaled_from_different_lengths_on_the_shortest_counts():
    assert RescaledRope(Below(nn.Module()), [of_llama(64), of_llama(48), of_phi()]).most_plain == MOST
    assert RescaledRope(Below(nn.Module()), [of_llama(64), of_llama(48)]).most_plain == 48


@pytest.mark.parametrize("make", KINDS)
def test_who_captures_a_model_has_the_rotations_of_short_texts_for_good_and_leaves_it_as_it_was(make):
    path = RescaledRope(Below(rotary := make()), find_rescaled(rotary))
    name = "full_attention_inv_freq" if isinstance(rotary.rope_type, dict) else "inv_freq"
    kinds = rotary.rope_type
    run(path, 2 * MOST)
    short = rotated(make(), MOST)
    with path.kept_plain():
        assert torch.equal(rotated(rotary, 2 * MOST)[:, :MOST], short)
        captured = getattr(rotary, name)
    assert rotary.rope_type == kinds
    before = captured.clone()
    assert torch.equal(run(path, 2 * MOST), rotated(make(), 2 * MOST))
    assert torch.equal(captured, before), "what a graph holds is written to"
    assert torch.equal(run(path, MOST), short)


def test_a_model_that_could_not_be_captured_is_left_as_it_was_too():
    path = RescaledRope(Below(rotary := of_llama()), [rotary])

    def fail():
        with path.kept_plain():
            raise ValueError("no graph of it")

    with pytest.raises(ValueError, match="no graph"):
        fail()
    assert rotary.rope_type == "dynamic"


class Meanwhile(Below):
    """In the middle of its first pass another lane begins one, and is waited for no longer than it could take."""

    def __init__(self, rotary: nn.Module, length: int) -> None:
        super().__init__(rotary)
        self.other = threading.Thread(target=lambda: self.found.append(run(self.path, length)))
        self.found = []

    def run(self, rows):
        if self.other.ident is None:
            self.other.start()
            self.other.join(0.05)
        return super().run(rows)


def test_two_lanes_have_each_the_rotations_of_their_own_text():
    below = Meanwhile(rotary := of_llama(), 3 * MOST)
    below.path = RescaledRope(below, [rotary])
    assert torch.equal(run(below.path, MOST + 1), rotated(of_llama(), MOST + 1))
    below.other.join()
    assert torch.equal(below.found[0], rotated(of_llama(), 3 * MOST))


def test_a_lane_whose_text_comes_while_a_model_is_captured_waits_for_it():
    below = Meanwhile(rotary := of_llama(), 2 * MOST)
    below.path = RescaledRope(below, [rotary])
    with below.path.kept_plain():
        below.run(texts(1))
        assert torch.equal(rotated(rotary, 2 * MOST)[:, :MOST], rotated(of_llama(), MOST))
    below.other.join()
    assert torch.equal(below.found[0], rotated(of_llama(), 2 * MOST))


def test_what_is_captured_is_not_the_buffer_that_long_texts_write_to_where_a_model_keeps_no_other():
    path = RescaledRope(Below(rotary := of_phi()), [rotary])
    rotary.original_inv_freq = rotary.inv_freq  # as code for transformers 4 has it
    with path.kept_plain():
        captured = rotary.inv_freq
    before = captured.clone()
    assert not torch.equal(run(path, 2 * MOST)[:, :MOST], rotated(of_phi(), MOST))
    assert torch.equal(captured, before)


def test_every_kind_that_transformers_takes_for_dynamic_is(monkeypatch):
    monkeypatch.setitem(ROPE_INIT_FUNCTIONS, "dynamic_ntk", ROPE_INIT_FUNCTIONS["dynamic"])

    def make():
        rotary = of_llama()
        rotary.rope_type = "dynamic_ntk"
        return rotary

    path = RescaledRope(Below(rotary := make()), find_rescaled(nn.ModuleList([rotary])))
    for length in (MOST, 3 * MOST, MOST + 1):
        assert torch.equal(run(path, length), rotated(make(), length)), length
    assert not torch.equal(run(path, MOST + 1)[:, :MOST], run(path, MOST))


class Told:
    def __init__(self, name):
        self._name = name

    def split(self, batch):
        return [list(range(len(batch)))]

    def run(self, _rows):
        return self._name


def test_short_texts_go_by_the_quick_way_and_long_ones_by_the_models_own():
    path = BesideRescaled(Told("quick"), RescaledRope(Told("plain"), [of_llama()]))
    assert [path.run(texts(length)) for length in (1, MOST, MOST + 1)] == ["quick", "quick", "plain"]
    assert path.split(texts(MOST + 1, 3, MOST)) == [[1, 2], [0]]


def test_rotations_that_are_the_same_for_all_lengths_are_left_alone():
    fixed = [of_llama(rope=PLAIN), of_llama(rope=DYNAMIC | {"rope_type": "linear"}), of_gemma(PLAIN)]
    rescaled = [of_llama(), of_phi(), of_gemma()]
    assert find_rescaled(nn.ModuleList([*fixed, nn.ModuleList(rescaled)])) == rescaled


class OlderRotary(nn.Module):
    """Keeps the rotations of a fresh model beside its buffers."""

    rope_type = "dynamic"
    original_max_seq_len = 8

    def __init__(self):
        super().__init__()
        self.register_buffer("inv_freq", torch.ones(2), persistent=False)
        self.original_inv_freq = self.inv_freq


class Place:
    """Notes on which device the rotations of a pass lie."""

    def __init__(self, rotary):
        self._rotary = rotary

    def run(self, _rows):
        return self._rotary.inv_freq.device.type


def test_rotations_are_where_the_model_is_although_its_code_does_not_take_them_along():
    rotary = OlderRotary().to("meta")  # any device but the one it was made on
    rope = RescaledRope(Place(rotary), [rotary])
    with rope.kept_plain():
        assert rotary.inv_freq.device.type == "meta", "of what is captured"
    assert rope.run([]) == "meta"
