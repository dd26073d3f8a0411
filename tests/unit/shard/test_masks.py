"""Whether a model's masks are those that its attention is told of, which texts shorter than a window cannot show."""

import weakref

import pytest
import torch
import transformers
from transformers.masking_utils import create_causal_mask

from shard.encoders.graph.masks import _TOKENS, MaskError, _agree, asked_rule, check_masks

SIZES = {
    "vocab_size": 30,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}
LATENT = {
    "qk_nope_head_dim": 4, "qk_rope_head_dim": 8, "v_head_dim": 4, "q_lora_rank": 8, "kv_lora_rank": 8,
    "first_k_dense_replace": 2, "n_routed_experts": 2, "num_experts_per_tok": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
WINDOW = 1000  # longer than the text that is run


def check(family, **options):
    model = getattr(transformers, f"{family}Model")(getattr(transformers, f"{family}Config")(**SIZES, **options))
    usual = model.config._attn_implementation
    ids = torch.ones((1, 5), dtype=torch.long)
    try:
        with torch.inference_mode():
            check_masks(model, lambda: model(input_ids=ids, position_ids=torch.arange(5)[None], use_cache=False))
    finally:
        assert model.config._attn_implementation == usual


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("Bert", {}),
        ("Qwen3", {}),
        ("Llama", {"is_causal": False}),
        ("Mistral", {"sliding_window": WINDOW}),
        ("Qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
        ("ModernBert", {"local_attention": WINDOW, "global_attn_every_n_layers": 2}),
        ("Gemma3Text", {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}),
        ("Gemma3Text", {"sliding_window": WINDOW, "use_bidirectional_attention": True}),
        ("DeepseekV3", LATENT),  # its values have another size than its queries
    ],
)
def test_models_whose_attention_is_told_what_their_masks_do_pass(family, options):
    check(family, **options)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("Mistral", {"sliding_window": WINDOW, "is_causal": False}),  # its mask lets in one more on either side
        ("Llama4Text", {"attention_chunk_size": WINDOW, "intermediate_size_mlp": 16}),  # chunks
        ("Qwen2Moe", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),  # only a mask
    ],
)
def test_a_mask_of_which_attention_is_not_told_is_found_out(family, options):
    with pytest.raises(MaskError, match="its masks let tokens see others"):
        check(family, **options)


def test_a_layer_without_a_mask_or_with_one_that_nobody_has_named_is_not_judged_by_it():
    model = transformers.BertModel(transformers.BertConfig(**SIZES))
    hidden = torch.zeros((1, 5, 16))
    with torch.inference_mode():
        for mask in (None, torch.zeros((1, 1, 5, 5))):
            check_masks(model, lambda mask=mask: model.encoder(hidden, attention_mask=mask))


def test_a_mask_that_a_model_lets_go_of_is_kept_lest_another_come_to_lie_in_its_place():
    model = transformers.BertModel(transformers.BertConfig(**SIZES))

    def run():
        mask = weakref.ref(create_causal_mask(model.config, torch.zeros((1, 5, 16)), None, None))
        assert mask() is not None, "it is known by its place"

    check_masks(model, run)


@pytest.mark.parametrize("place", [0, _TOKENS // 2, _TOKENS - 1])
def test_a_mask_that_is_another_one_for_the_first_a_middle_or_the_last_token_alone_is_found_out(place):
    def mask(_batch, _head, query, key):
        return (key <= query) & ~((query == place) & (key == place))

    assert not _agree(mask, causal=True, window=None)


def test_a_layer_that_says_nothing_of_order_sees_both_sides_and_what_a_model_hands_on_counts_first():
    silent, ordered = torch.nn.Identity(), torch.nn.Identity()
    ordered.is_causal = True
    assert asked_rule(silent, {}) == (False, None)
    assert asked_rule(ordered, {"sliding_window": 9}) == (True, 9)
    assert asked_rule(ordered, {"is_causal": False}) == (False, None)
