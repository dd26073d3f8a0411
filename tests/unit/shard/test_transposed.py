"""GPT-2's linear layers, held against what transformers' own compute."""

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from shard.encoders.transposed import use_linears


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(Conv1D(3, 5), nn.ReLU(), Conv1D(4, 3))
        self.last = nn.Linear(4, 2)

    def forward(self, rows):
        return self.last(self.inner(rows))


def test_layers_at_any_depth_compute_what_they_did_over_the_same_memory_and_others_stay():
    torch.manual_seed(0)
    model = Block().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    rows, last = torch.randn(2, 7, 5), model.last
    with torch.no_grad():
        expected = model(rows)
        held = {parameter.data_ptr() for parameter in model.parameters()}
        use_linears(model)
        torch.testing.assert_close(model(rows), expected)
    assert {parameter.data_ptr() for parameter in model.parameters()} == held
    assert [type(one) for one in model.inner] == [nn.Linear, nn.ReLU, nn.Linear]
    assert [(one.in_features, one.out_features) for one in (model.inner[0], model.inner[2])] == [(5, 3), (3, 4)]
    assert not model.inner[0].weight.requires_grad
    assert model.last is last
