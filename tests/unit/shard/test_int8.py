"""Layers of 8-bit integers: each rounds as it says, so that nothing is lost but what rounding loses."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from shard.encoders.graph.int8 import (
    FLOOR,
    GROUP,
    NarrowWeight,
    activated_dynamic_linear,
    dynamic_linear,
    floor_of,
    narrow,
    narrow_for_products,
    narrow_in_groups,
    narrow_linears,
    pack,
    widening_linear,
)
from shard.loading.parts import count_bytes

IN, OUT, HIDDEN = 16, 6, 2 * GROUP
GENERATOR = torch.Generator().manual_seed(5)
#: Values so small that no processor adds two products of them beyond 16 bits.
WEIGHT = NarrowWeight(
    torch.randint(-60, 61, (OUT, IN), generator=GENERATOR).to(torch.int8), torch.rand(OUT, generator=GENERATOR) + 0.1
)
BIAS = torch.randn(OUT, generator=GENERATOR)
#: Large numbers, small ones, and none.
ROWS = torch.randn(1, 4, IN, generator=GENERATOR) * torch.tensor([9.0, 1.0, 1e-3, 0.0])[:, None]
WIDE = WEIGHT.values * WEIGHT.scales[:, None]


@pytest.mark.parametrize("bias", [BIAS, None], ids=["bias", "none"])
def test_each_row_is_rounded_to_the_nearest_of_its_own_steps(bias):
    steps = ROWS.abs().amax(-1, keepdim=True).clamp_min(1e-9) / 127
    expected = functional.linear(torch.round(ROWS / steps) * steps, WIDE, bias)
    found = dynamic_linear(ROWS, *pack(WEIGHT), bias)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_what_an_activation_has_made_takes_all_256_steps_from_its_floor_up():
    rows = functional.gelu(torch.cat([ROWS, -ROWS[:, :1].abs()], 1))  # the last of which is nowhere above 0
    steps = (rows.amax(-1, keepdim=True) + FLOOR) / 255
    expected = functional.linear(torch.round((rows + FLOOR) / steps) * steps - FLOOR, WIDE, BIAS)
    found = activated_dynamic_linear(rows, *pack(WEIGHT), BIAS + floor_of(WEIGHT))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


def test_no_activation_goes_below_the_floor():
    numbers = torch.linspace(-5, 5, 10_001, dtype=torch.float64)
    made = [functional.gelu(numbers), functional.gelu(numbers, approximate="tanh"), functional.relu(numbers)]
    assert min(one.min() for one in made) > -FLOOR


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("turned", [False, True])
def test_a_weight_is_rounded_to_the_nearest_of_the_steps_of_each_output(dtype, turned):
    numbers = torch.randn(IN, OUT, generator=GENERATOR).to(dtype)
    weight = nn.Parameter(numbers.T if turned else numbers.reshape(OUT, IN))
    narrowed = narrow(weight)
    assert narrowed.values.is_contiguous(), "as oneDNN reads it"
    assert narrowed.values.abs().amax(1).tolist() == [127] * OUT
    lost = narrowed.values * narrowed.scales[:, None] - weight.detach().float()
    assert (lost.abs() <= narrowed.scales[:, None] * 0.5001).all()
    assert not narrowed.scales.requires_grad
    assert narrow(weight, 100.0).values.abs().max() == 100


def test_an_output_without_weights_stays_one():
    weight = torch.randn(OUT, IN, generator=GENERATOR)
    weight[2] = 0
    narrowed = narrow(weight)
    assert narrowed.scales.min() > 0, "nothing is divided by it"
    in_groups = narrow_in_groups(weight)
    assert torch.equal(widening_linear(ROWS, in_groups.values, in_groups.scales, None)[..., 2], torch.zeros(1, 4))
    assert torch.equal(dynamic_linear(ROWS, *pack(narrowed), BIAS)[..., 2], BIAS[2].expand(1, 4))


@pytest.mark.parametrize(("has_vnni", "largest"), [(True, 127), (False, 100)])
def test_bytes_keep_away_from_the_ends_where_a_processor_adds_two_products_in_16_bits(monkeypatch, has_vnni, largest):
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: has_vnni)
    narrowed = narrow_for_products(torch.randn(OUT, IN, generator=GENERATOR))
    assert narrowed.values.abs().amax(1).tolist() == [largest] * OUT


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("turned", [False, True])
def test_a_weight_that_is_widened_has_a_scale_for_each_32_of_an_output(turned, dtype):
    spread = torch.tensor([1.0, 100.0, 0.01])  # which one scale for all would round to nothing
    numbers = (torch.randn(OUT, 3, 32, generator=GENERATOR) * spread[:, None]).to(dtype)
    weight = numbers.reshape(OUT, -1)
    narrowed = narrow_in_groups(weight.T.contiguous().T if turned else weight)
    assert (narrowed.values.shape, narrowed.scales.shape) == ((OUT, 96), (OUT * 3,))
    scales = narrowed.scales.view(OUT, 3, 1)
    lost = narrowed.values.view(OUT, 3, 32) * scales - numbers
    assert (lost.abs() <= scales * 0.5001).all()
    rows = torch.randn(2, 96, generator=GENERATOR)
    found = widening_linear(rows, narrowed.values, narrowed.scales, BIAS)
    torch.testing.assert_close(found, functional.linear(rows, weight + lost.view(OUT, -1), BIAS), atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("outputs", "width"), [(OUT, IN), (OUT, GROUP + IN), (2 * GROUP, GROUP + IN), (OUT, 1)])
def test_a_weight_whose_width_is_no_multiple_of_32_is_widened_by_the_scale_of_each_output(
    outputs, width, turned, dtype
):
    weight = torch.randn(outputs, width, generator=GENERATOR).to(dtype)
    narrowed = narrow_in_groups(weight.T.contiguous().T if turned else weight)
    by_output = narrow(weight)
    assert narrowed.scales.shape == (outputs,)
    rows, bias = torch.randn(2, width, generator=GENERATOR), torch.randn(outputs, generator=GENERATOR)
    found = widening_linear(rows, narrowed.values, narrowed.scales, bias)
    expected = functional.linear(rows, by_output.values * by_output.scales[:, None], bias)
    torch.testing.assert_close(found, expected)


class Doubled(nn.Linear):
    """A layer of a class of its own, whose result is another one."""

    def forward(self, x):
        return super().forward(x) * 2


class Model(nn.Module):
    """Linear layers at two depths, one without a bias, one by two names, two of one weight, one of another class."""

    def __init__(self):
        super().__init__()
        self.first = self.again = nn.Linear(HIDDEN, HIDDEN)
        self.inner = nn.Sequential(nn.Linear(HIDDEN, HIDDEN, bias=False), nn.Linear(HIDDEN, IN), Doubled(IN, HIDDEN))
        self.tied = nn.Linear(HIDDEN, HIDDEN)
        self.tied.weight = self.first.weight

    def forward(self, x):
        return self.tied(self.inner(self.again(self.first(x))))


def test_every_plain_linear_layer_of_a_model_is_narrowed_and_one_weight_stays_one():
    torch.manual_seed(5)
    model, rows = Model(), torch.randn(4, HIDDEN, generator=GENERATOR)
    own, held_before = model.inner[2].weight, count_bytes([model])
    with torch.inference_mode():
        expected = model(rows)
        narrow_linears(model)
        found = model(rows)
    assert found.dtype == torch.float32
    assert not torch.equal(found, expected)
    assert functional.cosine_similarity(found, expected).min() > 0.999
    assert model.inner[2].weight is own
    narrowed = 2 * HIDDEN * HIDDEN + HIDDEN * IN
    assert held_before - count_bytes([model]) == narrowed * 3 - narrowed // GROUP * 4
