"""What is stored in 16 bit is half as large, whatever shares it."""

import pytest
import torch
from torch import nn

from shard.parts import count_bytes
from shard.storage16 import store_in_16_bit


@pytest.mark.parametrize("kind", [nn.Embedding, lambda rows, size: nn.Linear(size, rows, bias=False)])
def test_a_matrix_that_two_modules_share_is_stored_once(kind):
    model = nn.ModuleDict({"shared": kind(30, 4), "own": kind(30, 4)})
    model["own"].weight = model["shared"].weight  # as T5 ties its table of tokens
    wide = count_bytes([model])
    store_in_16_bit(model, torch.float16)
    assert count_bytes([model]) == wide / 2
    assert model["own"].weight.data_ptr() == model["shared"].weight.data_ptr()
