"""With what arguments a model is loaded: the precision of the settings, and no layers that nobody needs."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from sentence_transformers.base.modules import Transformer
from torch import nn
from transformers import BertConfig, DPRConfig, FunnelConfig, LlamaConfig
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.utils.loading_report import LoadStateDictInfo

from emb_model_provider.errors import LoadError, LoadReason
from shard.device import ComputePlan
from shard.encoders.checked_transformer import (
    CheckedTransformer,
    LoadOptions,
    _check_kind,
    _has_optional_pooler,
    _leave_unpacked,
    _precision_arguments,
    raising_what_fails,
)
from shard.memory import ran_out


class FailingOperation(ConversionOps):
    """What makes a weight narrow, as bitsandbytes, or one of several."""

    def __init__(self, error):
        self._error = error

    def convert(self, _tensors, *_patterns, **_rest):
        raise self._error


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "^CUDA out of memory"),
        (MemoryError(), "^MemoryError: "),
        (TypeError("no such weight"), "^TypeError: no such weight"),
    ],
    ids=repr,
)
def test_what_fails_while_a_weight_is_made_narrow_is_raised_and_not_left_in_a_report(error, raised):
    info = LoadStateDictInfo(set(), set(), set(), [], {}, set())
    weight = WeightConverter(["a"], ["b"], [FailingOperation(error)])
    weight.add_tensor("b", "a", "a", torch.ones(1))
    with pytest.raises(RuntimeError, match=raised) as caught, raising_what_fails():
        weight.convert("b", loading_info=info)
    assert error in (caught.value, caught.value.__cause__)
    assert ran_out(caught.value) == (not isinstance(error, TypeError))


def arguments(device, precision, storage, compute, *, is_saved=False):
    return _precision_arguments(ComputePlan(device, precision, storage, compute, is_saved=is_saved))


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8"])
def test_what_we_narrow_ourselves_is_loaded_in_the_format_of_its_arithmetic(storage):
    assert arguments("cpu", "int8", storage, "float32") == {"dtype": torch.float32}


def test_weights_that_bitsandbytes_has_saved_are_loaded_as_their_files_say():
    expected = {"dtype": torch.float16, "device_map": {"": "cuda:1"}}
    assert arguments("cuda:1", "int4", "nf4", "float16", is_saved=True) == expected


def test_bitsandbytes_is_asked_for_as_many_bits_as_the_settings_are():
    four = arguments("cpu", "int4", "nf4", "bfloat16")
    wish = four.pop("quantization_config")
    assert four == {"dtype": torch.bfloat16, "device_map": {"": "cpu"}}
    assert (wish.load_in_4bit, wish.bnb_4bit_quant_type, wish.bnb_4bit_compute_dtype, wish.load_in_8bit) == (
        True, "nf4", torch.bfloat16, False,
    )  # fmt: skip
    eight = arguments("cuda:0", "int8", "int8", "float16")["quantization_config"]
    assert (eight.load_in_8bit, eight.load_in_4bit) == (True, False)


@pytest.mark.parametrize(
    ("outputs", "inputs", "packs"), [(32, 64, True), (64, 128, True), (33, 64, False), (32, 96, False), (16, 64, False)]
)
def test_only_matrices_that_bitsandbytes_can_pack_are_packed(outputs, inputs, packs):
    class Linear4bit(nn.Module):
        support_avx512bf16_for_cpu = True
        out_features, in_features = outputs, inputs
        weight = SimpleNamespace(quant_state=SimpleNamespace(blocksize=64))

    linear = Linear4bit()
    _leave_unpacked(nn.Sequential(nn.LayerNorm(2), linear))
    assert linear.support_avx512bf16_for_cpu is packs


def test_a_pooler_is_left_out_where_transformers_own_class_can_be_made_without_it():
    assert _has_optional_pooler(BertConfig())
    assert not _has_optional_pooler(LlamaConfig())
    assert not _has_optional_pooler(FunnelConfig())  # of which there are two classes
    assert not _has_optional_pooler(BertConfig(auto_map={"AutoModel": "modeling.Model"}))

    class Unknown(BertConfig):
        """One that transformers has no class for."""

    assert not _has_optional_pooler(Unknown())


def test_what_a_models_files_ask_of_its_loading_gives_way_to_what_is_decided_here(monkeypatch, tmp_path):
    given = {}

    def load(self, name, task, config, backend, is_peft_model, **arguments):
        given.update(arguments)
        return nn.Linear(1, 1), {"missing_keys": [], "mismatched_keys": [], "unexpected_keys": []}

    monkeypatch.setattr(Transformer, "_load_model", load)
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    said = {"ignore_mismatched_sizes": False, "output_loading_info": False, "torch_dtype": "float16"}
    ours = {"emb_options": LoadOptions(ComputePlan("cpu", "fp32", "float32", "float32"), False, tmp_path)}
    module = CheckedTransformer.__new__(CheckedTransformer)
    module._load_model(
        str(tmp_path), "feature-extraction", LlamaConfig(), "torch", False,
        **said, **ours, emb_needs_pooler=False, attn_implementation="eager",
    )  # fmt: skip
    assert given == {
        "ignore_mismatched_sizes": True, "output_loading_info": True, "dtype": torch.float32,
        "attn_implementation": "eager",
    }  # fmt: skip


@pytest.mark.parametrize(("kind", "way_out"), [("nomic_bert", True), ("one_of_its_own", False)])
def test_own_code_that_loads_its_weights_by_itself_is_refused_with_a_way_out_where_there_is_one(
    monkeypatch, tmp_path, kind, way_out
):
    monkeypatch.setattr(Transformer, "_load_model", lambda *_arguments, **_options: nn.Linear(1, 1))
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    config = BertConfig(auto_map={"AutoModel": "modeling.Own"})
    config.model_type = kind
    ours = {"emb_options": LoadOptions(ComputePlan("cpu", "fp32", "float32", "float32"), True, tmp_path)}
    module = CheckedTransformer.__new__(CheckedTransformer)
    with pytest.raises(LoadError, match=r"its own code \(Linear\) loads its weights by itself") as caught:
        module._load_model(str(tmp_path), "feature-extraction", config, "torch", False, **ours, emb_needs_pooler=False)
    assert caught.value.reason is LoadReason.UNSUPPORTED_MODEL
    assert ("has a class for nomic_bert, too: take auto_map out" in str(caught.value)) is way_out


def test_dprs_encoder_of_passages_is_unsupported_and_its_weights_are_not_said_to_be_wrong():
    with pytest.raises(LoadError, match="facebook-dpr-ctx_encoder-single-nq-base") as caught:
        _check_kind(DPRConfig(architectures=["DPRContextEncoder"]))
    assert caught.value.reason is LoadReason.UNSUPPORTED_MODEL
    _check_kind(DPRConfig(architectures=["DPRQuestionEncoder"]))
    _check_kind(BertConfig())
