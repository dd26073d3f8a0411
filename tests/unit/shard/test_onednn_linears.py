import pytest
import torch
from torch import nn

from shard.encoders import onednn_linears
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
    multiply_by_onednn(nn.ModuleDict({"body": model}))
    assert [type(one) for one in model] == [OneDnnLinear, Own, nn.Embedding]
    multiply_by_torch(model)
    assert [type(one) for one in model] == [nn.Linear, Own, nn.Embedding]


@pytest.mark.parametrize(("rows", "multiplied"), [(1, 2), (2, 2), (14, 14), (15, 16), (65, 72), (300, 320)])
def test_onednn_makes_kernels_for_few_numbers_of_rows_and_none_for_a_single_one(rows, multiplied, monkeypatch):
    product, seen = onednn_linears._product, []

    def multiply(given, *rest):
        seen.append(len(given))
        return product(given, *rest)

    monkeypatch.setattr(onednn_linears, "_product", multiply)
    multiply_by_onednn(model := nn.Sequential(nn.Linear(5, 3)))
    with torch.inference_mode():
        assert model(torch.rand(rows, 5)).shape == (rows, 3)
    assert seen == [multiplied]
