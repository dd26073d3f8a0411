import pytest
import torch
from torch import nn

from shard.encoders.onednn_linears import OneDnnLinear, multiply_by_onednn, multiply_by_torch


class Own(nn.Linear):
    """A forward of its own."""


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (1, 5), (3, 5), (2, 7, 5), (300, 5), (0, 5), (2, 0, 5)])
def test_a_layer_multiplies_rows_of_any_shape_as_torch_does(shape, bias):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 3, bias=bias))
    rows = torch.randn(shape)
    with torch.inference_mode():
        expected = model(rows)
        multiply_by_onednn(model)
        torch.testing.assert_close(model(rows), expected, rtol=1e-5, atol=1e-6)
        # Rows of a larger matrix, as heads of attention are.
        other = torch.randn((*shape[:-1], 9))[..., 2:7]
        torch.testing.assert_close(model(other), nn.functional.linear(other, model[0].weight, model[0].bias))


def test_layers_with_a_forward_of_their_own_are_left_and_the_exchange_is_undone():
    model = nn.ModuleList([nn.Linear(2, 2), Own(2, 2), nn.Embedding(2, 2)])
    multiply_by_onednn(model)
    assert [type(one) for one in model] == [OneDnnLinear, Own, nn.Embedding]
    multiply_by_torch(model)
    assert [type(one) for one in model] == [nn.Linear, Own, nn.Embedding]
