"""What a model's files or its code raise while it loads → a reason that stops the tries."""

import sys
from types import SimpleNamespace

import pytest
import torch
from bitsandbytes.cextension import BNBNativeLibrary, ErrorHandlerMockBNBNativeLibrary
from sentence_transformers.base.modules import Normalize, Transformer
from tokenizers import decoders
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForSequenceClassification, MambaConfig

from emb_model_provider.errors import InvalidRequestError, LoadError, LoadReason
from shard.encoder import FatalDeviceError
from shard.encoders.heads import Heads
from shard.loading.load_errors import quiet_libraries, reasons


@pytest.mark.parametrize(
    ("load", "said"),
    [
        (lambda: decoders.Strip(right=1).decode([""]), "PanicException: index out of bounds"),
        (lambda: sys.exit(3), "SystemExit: 3"),
    ],
)
def test_a_panic_of_rust_and_a_call_of_exit_are_models_that_cannot_be_served(tmp_path, load, said):
    with pytest.raises(LoadError, match=said) as caught, reasons(tmp_path):
        load()
    assert caught.value.reason is LoadReason.UNSUPPORTED_MODEL


def test_a_length_that_leaves_no_room_for_text_is_a_model_that_cannot_be_served(tmp_path):
    said = "A limit of 4 tokens leaves no room for text."
    with pytest.raises(LoadError, match=f"cannot be served: {said}") as caught, reasons(tmp_path):
        raise InvalidRequestError(said)
    assert caught.value.reason is LoadReason.UNSUPPORTED_MODEL


def test_a_token_that_the_weights_have_no_row_for_is_said_to_be_of_another_model(tmp_path):
    with pytest.raises(LoadError, match="tokenizer, or the length in its files") as caught, reasons(tmp_path):
        torch.nn.Embedding(3, 2)(torch.tensor([3]))
    assert caught.value.reason is LoadReason.WRONG_WEIGHTS


@pytest.mark.parametrize("modules", [[], [Normalize()]])
def test_modules_without_a_pooling_are_said_to_lack_one(tmp_path, modules):
    heads = Heads(modules, 4)
    with pytest.raises(LoadError, match="such as Pooling") as caught, reasons(tmp_path):
        heads.pool({"token_embeddings": torch.ones(1, 2, 4), "attention_mask": torch.ones(1, 2)})
    assert caught.value.reason is LoadReason.UNSUPPORTED_MODEL


def test_another_key_that_is_missing_is_told_as_it_is(tmp_path):
    with pytest.raises(LoadError, match="'vocab_size'"), reasons(tmp_path):
        {}["vocab_size"]


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        (
            "Loading a GPTQ quantized model requires optimum (`pip install optimum`)",
            "the model that they were made from",
        ),
        ("FlashAttention2 has been toggled on, but it cannot be used", "take attn_implementation out of config"),
        ("No module named 'fugashi'", "'fugashi'$"),
    ],
)
def test_a_package_that_is_missing_may_be_done_without(tmp_path, said, advice):
    with pytest.raises(LoadError, match=advice) as caught, reasons(tmp_path):
        raise ImportError(said)
    assert caught.value.reason is LoadReason.PACKAGE_MISSING


def test_another_index_out_of_range_goes_through_as_it_is(tmp_path):
    with pytest.raises(IndexError), reasons(tmp_path):
        [].pop()


def test_a_class_of_model_that_gives_no_vectors_of_tokens_is_named_as_such(tmp_path):
    asked = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
    model = SimpleNamespace(forward=lambda **_texts: {"pooler_output": torch.ones(1, 4)})
    dpr = SimpleNamespace(modality_config=asked, model_forward_params={"input_ids"}, model=model)
    with pytest.raises(LoadError, match="has no last_hidden_state") as caught, reasons(tmp_path):
        Transformer.forward(dpr, {"input_ids": torch.ones(1, 2)})
    assert caught.value.reason is LoadReason.UNSUPPORTED_MODEL


def test_a_model_that_transformers_has_no_class_for_is_told_without_the_list_of_all_that_it_has(tmp_path):
    said = "has no AutoModelForSequenceClassification for its MambaConfig$"
    with pytest.raises(LoadError, match=said) as caught, reasons(tmp_path):
        AutoModelForSequenceClassification.from_config(MambaConfig())
    assert caught.value.reason is LoadReason.UNSUPPORTED_MODEL


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("undefined.config", r"NameError: .*; modeling_own.py, line 2\)"),
        ("len(None)", "TypeError"),
        ("(1).gone", "AttributeError"),
        ("{}['default']", "KeyError: 'default'"),  # ``ROPE_INIT_FUNCTIONS`` had it in transformers 4
        ("from transformers.utils import gone", "cannot import name 'gone'"),
        ("import transformers.gone", "No module named 'transformers.gone'"),
    ],
)
def test_code_of_a_model_that_fails_is_named_and_not_tried_for_ever(tmp_path, code, said):
    module = {"__name__": "transformers_modules.own.modeling_own"}
    with pytest.raises(LoadError, match=rf"own code fails \(.*{said}") as caught, reasons(tmp_path):
        exec(compile(f"\n{code}", "/cache/own/modeling_own.py", "exec"), module)
    assert caught.value.reason is LoadReason.UNSUPPORTED_MODEL


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (NotImplementedError("`get_input_embeddings` not auto-handled for CanineModel"), "be served: `get_input_embed"),
        (NotImplementedError("\"histogram_cpu\" not implemented for 'Half'"), "set its precision to fp32"),
        (RuntimeError("\"histogram_cpu\" not implemented for 'BFloat16'"), "set its precision to fp32"),
    ],
)
def test_what_a_models_class_does_not_do_says_nothing_of_its_weights(tmp_path, error, said):
    with pytest.raises(LoadError, match=said) as caught, reasons(tmp_path):
        raise error
    assert caught.value.reason is LoadReason.UNSUPPORTED_MODEL


@pytest.mark.parametrize(
    ("module", "uses_bitsandbytes", "reason"),
    [
        ("transformers.models.mamba.modeling_mamba", True, LoadReason.UNSUPPORTED_MODEL),
        ("transformers.models.mamba.modeling_mamba", False, LoadReason.WRONG_WEIGHTS),
        ("bitsandbytes.nn", True, LoadReason.WRONG_WEIGHTS),
    ],
)
def test_code_of_a_model_that_fails_of_packed_weights_says_nothing_of_what_is_in_them(
    tmp_path, module, uses_bitsandbytes, reason
):
    known = {"__name__": module, "weight": torch.zeros(8, 1), "step": torch.zeros(4, 4)}
    with pytest.raises(LoadError) as caught, reasons(tmp_path, uses_bitsandbytes=uses_bitsandbytes):
        exec("weight @ step", known)
    assert caught.value.reason is reason
    assert ("set its precision to fp32" in str(caught.value)) == (reason is LoadReason.UNSUPPORTED_MODEL)


def test_too_little_memory_for_packed_weights_is_what_it_is(tmp_path):
    known = {"__name__": "transformers.models.any", "error": torch.OutOfMemoryError("out of memory")}
    with pytest.raises(LoadError) as caught, reasons(tmp_path, uses_bitsandbytes=True):
        exec("raise error", known)
    assert caught.value.reason is LoadReason.OUT_OF_MEMORY


def test_what_is_not_known_goes_through_as_it_is(tmp_path):
    with pytest.raises(TypeError), reasons(tmp_path):
        raise TypeError("ours")


def test_a_layer_of_ours_that_fails_within_a_models_code_is_a_mistake_of_ours(tmp_path):
    def compiled(name, code, **known):
        module = {"__name__": name, **known}
        exec(compile(code, f"/{name}.py", "exec"), module)
        return module["run"]

    layer = compiled("shard.encoders.layer", "def run(x): return len(x)")
    model = compiled("transformers.models.any", "def run(x): return layer(x)", layer=layer)
    with pytest.raises(TypeError, match="has no len"), reasons(tmp_path):
        model(None)


def test_a_step_that_cannot_be_traced_is_not_logged_with_torchs_stack(caplog):
    with quiet_libraries(), FakeTensorMode(), pytest.raises(RuntimeError):
        torch.empty(2, 3) @ torch.empty(2, 3)
    assert caplog.messages == []


@pytest.mark.parametrize("product", [torch.matmul, torch.nn.functional.linear])
@pytest.mark.parametrize("other", [torch.float16, torch.bfloat16])
def test_a_model_whose_own_code_mixes_number_formats_has_no_wrong_weights(tmp_path, product, other):
    with pytest.raises(LoadError, match="set its precision to fp32") as caught, reasons(tmp_path):
        product(torch.ones(2, 2, 2), torch.ones(2, 2, dtype=other))
    assert caught.value.reason is LoadReason.UNSUPPORTED_MODEL


LACKING = "No compatible CUDA binary found at /site-packages/bitsandbytes/libbitsandbytes_cuda140.so"
NOT_LOADED = "libnvJitLink.so.13: cannot open shared object file: No such file or directory"


@pytest.mark.parametrize("cause", [LACKING, NOT_LOADED])
def test_a_library_of_bitsandbytes_that_cannot_be_used_is_told_in_a_sentence_and_not_of_the_weights(tmp_path, cause):
    library = ErrorHandlerMockBNBNativeLibrary(cause)
    said = rf"own library, which cannot be used here \({cause}\): python -m"
    with pytest.raises(LoadError, match=said) as caught, reasons(tmp_path):
        library.cquantize_blockwise_fp16_nf4()
    assert caught.value.reason is LoadReason.PACKAGE_MISSING


def test_a_library_of_bitsandbytes_without_a_cards_half_is_told_as_such(tmp_path):
    said = r"\(Method 'cigemmlt_32' not available in CPU-only version of bitsandbytes\): "
    with pytest.raises(LoadError, match=said) as caught, reasons(tmp_path):
        BNBNativeLibrary(object()).cigemmlt_32()
    assert caught.value.reason is LoadReason.PACKAGE_MISSING


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: CUDA-capable device(s) is/are busy or unavailable\nSearch for ..."),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        FatalDeviceError("CUDA error: uncorrectable ECC error encountered"),
    ],
    ids=repr,
)
def test_a_card_that_fails_has_no_wrong_weights_and_goes_through_to_be_tried_again(tmp_path, error):
    with pytest.raises(type(error)), reasons(tmp_path):
        raise error


@pytest.mark.parametrize("kind", [torch.AcceleratorError, FatalDeviceError])
def test_a_card_that_torch_has_no_code_for_is_no_device_to_be_tried_again(tmp_path, kind):
    said = "CUDA error: no kernel image is available for execution on the device"
    with pytest.raises(LoadError, match=rf"no code for this card \({said}\): install") as caught, reasons(tmp_path):
        raise kind(f"{said}\nCUDA kernel errors might be asynchronously reported")
    assert caught.value.reason is LoadReason.NO_DEVICE
