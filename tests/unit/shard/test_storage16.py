"""What is stored in 16 bit is half as large, whatever shares it."""

import pytest
import torch
from torch import nn
from transformers import T5Config, T5EncoderModel
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

from shard.encoders.storage16 import store_in_16_bit
from shard.loading.parts import count_bytes


@pytest.mark.parametrize("kind", [nn.Embedding, lambda rows, size: nn.Linear(size, rows, bias=False)])
def test_a_matrix_that_two_modules_share_is_stored_once(kind):
    model = nn.ModuleDict({"shared": kind(30, 4), "own": kind(30, 4)})
    model["own"].weight = model["shared"].weight  # as T5 ties its table of tokens
    wide = count_bytes([model])
    store_in_16_bit(model, torch.float16)
    assert count_bytes([model]) == wide / 2
    assert model["own"].weight.data_ptr() == model["shared"].weight.data_ptr()


def test_a_table_of_tokens_whose_rows_are_scaled_is_stored_so_too():
    table = Gemma3TextScaledWordEmbedding(30, 4, 0, embed_scale=2.0)
    ids = torch.arange(30)
    expected, wide = table(ids).detach(), count_bytes([table])
    store_in_16_bit(nn.ModuleList([table]), torch.bfloat16)
    assert count_bytes([table]) <= wide / 2 + 4
    assert table(ids).dtype == torch.float32
    torch.testing.assert_close(table(ids), expected, rtol=2**-8, atol=0)


class TurnedWordEmbedding(nn.Embedding):
    """A forward of its own, which reads the weight itself."""

    def forward(self, ids):
        return torch.nn.functional.embedding(ids, self.weight).flip(-1)


def test_an_embedding_with_a_forward_of_its_own_is_left_as_it_is():
    table = TurnedWordEmbedding(30, 4)
    ids = torch.arange(30)
    expected = table(ids).detach()
    store_in_16_bit(nn.ModuleList([table]), torch.float16)
    assert torch.equal(table(ids), expected)


def test_what_is_narrowed_is_computed_in_fp32_and_what_stays_wide_is_no_view_of_the_file():
    model = nn.Sequential(nn.Embedding(30, 4), nn.Linear(4, 3), nn.LayerNorm(3))
    file = [parameter.data for parameter in model.parameters()]
    table, weight = (model[number].weight.detach().bfloat16().float() for number in (0, 1))
    bias, ids = model[1].bias.detach().clone(), torch.arange(30)
    store_in_16_bit(model, torch.bfloat16)
    expected = nn.functional.layer_norm(nn.functional.linear(table[ids], weight, bias), (3,))
    torch.testing.assert_close(model(ids), expected)
    assert torch.equal(model[0](ids), table)
    assert not any(buffer.requires_grad for buffer in model.buffers()), "nothing leads back to the wide matrices"
    # transformers makes masks in the number format of a model's first parameter.
    assert [parameter.dtype for parameter in model.parameters()] == [torch.float32] * 3
    assert not {one.data_ptr() for one in file} & {one.data_ptr() for one in model.parameters()}


class Doubled(nn.Linear):
    def forward(self, rows):
        return super().forward(rows) * 2


@pytest.mark.parametrize(
    ("module", "given"),
    [(Doubled(4, 3), torch.rand(2, 4)), (nn.Embedding(30, 4, max_norm=0.1), torch.arange(30))],
    ids=["a subclass", "rows that are made shorter"],
)
def test_a_layer_that_does_more_than_its_weight_says_is_left_as_it_is(module, given):
    with torch.no_grad():
        expected = module(given)
        store_in_16_bit(nn.ModuleList([module]), torch.float16)
        torch.testing.assert_close(module(given), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("dtype", "is_narrow"), [(torch.float16, False), (torch.bfloat16, True)])
def test_a_t5_which_brings_what_it_multiplies_to_the_format_of_its_weights_is_stored_so(dtype, is_narrow):
    sizes = {"vocab_size": 30, "d_model": 12, "d_kv": 4, "d_ff": 20, "num_layers": 1, "num_heads": 3}
    torch.manual_seed(0)
    model = T5EncoderModel(T5Config(**sizes, feed_forward_proj="gated-gelu")).eval()
    ids = torch.arange(30)[None]
    with torch.no_grad():
        expected = model(ids).last_hidden_state
        store_in_16_bit(model, dtype)
        found = model(ids).last_hidden_state
    assert found.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(found, expected, dim=-1).min() > 0.9999
    layer = model.encoder.block[0].layer[1].DenseReluDense
    # What overflows in fp16 transformers keeps wide there, and so do we.
    assert (layer.wo.weight.dtype == dtype) == is_narrow
    assert layer.wi_0.weight.dtype == dtype
