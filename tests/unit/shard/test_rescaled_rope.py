"""Rotations that a long text rescales, in a model of older code: it keeps those of a fresh model beside its buffers."""

import torch
from torch import nn

from shard.encoders.rescaled_rope import RescaledRope


class Rotary(nn.Module):
    rope_type = "dynamic"
    original_max_seq_len = 8

    def __init__(self):
        super().__init__()
        self.register_buffer("inv_freq", torch.ones(2), persistent=False)
        self.original_inv_freq = self.inv_freq


class Seen:
    """Notes on which device the rotations of a pass lie."""

    def __init__(self, rotary):
        self._rotary = rotary

    def run(self, _rows):
        return self._rotary.inv_freq.device.type


def test_rotations_are_where_the_model_is_although_its_code_does_not_take_them_along():
    rotary = Rotary().to("meta")  # any device but the one it was made on
    rope = RescaledRope(Seen(rotary), [rotary])
    with rope.kept_plain():
        assert rotary.inv_freq.device.type == "meta", "of what is captured"
    assert rope.run([]) == "meta"
