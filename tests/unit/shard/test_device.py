"""Device and precision as asked → what is really done, for machines we do not have."""

import pytest

from emb_model_provider.errors import LoadError, LoadReason
from shard.device import ComputePlan, Machine, as_saved, plan_compute, this_machine

PLAIN_CPU = Machine(frozenset({"avx2"}))
TWO_GPUS = Machine(frozenset({"avx2"}), cuda_devices=2)


def test_auto_is_fp32_on_a_cpu():
    assert plan_compute("auto", "auto", PLAIN_CPU) == ComputePlan("cpu", "fp32", "float32", "float32")


def test_auto_is_fp16_on_the_first_gpu():
    assert plan_compute("auto", "auto", TWO_GPUS) == ComputePlan("cuda:0", "fp16", "float16", "float16")


def test_a_cpu_is_used_when_asked_for_beside_gpus():
    assert plan_compute("cpu", "auto", TWO_GPUS).device == "cpu"


@pytest.mark.parametrize(
    ("bits", "device", "asked", "expected"),
    [
        (4, "cpu", "fp32", ("int4", "nf4", "float32")),
        (4, "cuda:0", "bf16", ("int4", "nf4", "bfloat16")),
        (8, "cpu", "int8", ("int8", "int8", "float32")),
        (8, "cpu", "bf16", ("int8", "int8", "float32")),
        (8, "cuda:0", "auto", ("int8", "int8", "float16")),
    ],
)
def test_weights_that_bitsandbytes_has_saved_are_what_they_are_whatever_is_asked(bits, device, asked, expected):
    asked_plan = plan_compute(device, asked, TWO_GPUS)
    plan = as_saved(
        asked_plan, {"quantization_config": {"load_in_4bit": bits == 4, "load_in_8bit": bits == 8}}, TWO_GPUS
    )
    assert (plan.precision, plan.storage, plan.compute) == expected
    assert (plan.uses_bitsandbytes, plan.narrows_to_int8, plan.starts_from_fp32, plan.note) == (
        True,
        False,
        False,
        None,
    )


@pytest.mark.parametrize(
    "config", [{}, {"quantization_config": None}, {"quantization_config": {"quant_method": "fp8"}}]
)
def test_weights_of_any_other_kind_are_made_what_is_asked(config):
    plan = plan_compute("cpu", "int8", PLAIN_CPU)
    assert as_saved(plan, config, PLAIN_CPU) is plan


def test_weights_that_bitsandbytes_has_saved_are_not_read_without_it():
    without = Machine(frozenset(), missing_packages=("bitsandbytes",))
    with pytest.raises(
        LoadError, match="has saved this model's weights, and to read them takes the packages"
    ) as caught:
        as_saved(plan_compute("cpu", "fp32", without), {"quantization_config": {"load_in_4bit": True}}, without)
    assert caught.value.reason is LoadReason.PACKAGE_MISSING


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_16_bit_without_native_arithmetic_is_stored_and_computed_in_fp32_with_a_note(precision):
    plan = plan_compute("cpu", precision, PLAIN_CPU)
    assert plan.storage == {"fp16": "float16", "bf16": "bfloat16"}[precision]
    assert plan.compute == "float32"
    assert plan.widens_weights
    assert "computed in fp32" in plan.note


@pytest.mark.parametrize(
    ("flag", "precision"), [("avx512_bf16", "bf16"), ("amx_bf16", "bf16"), ("avx512_fp16", "fp16")]
)
def test_16_bit_is_computed_natively_where_the_cpu_can(flag, precision):
    plan = plan_compute("cpu", precision, Machine(frozenset({flag})))
    assert plan.compute == plan.storage
    assert plan.note is None


def test_a_bf16_instruction_does_not_make_fp16_native():
    assert plan_compute("cpu", "fp16", Machine(frozenset({"avx512_bf16"}))).widens_weights


def test_a_gpu_without_bf16_stores_it_and_computes_in_fp32():
    old_gpu = Machine(frozenset(), cuda_devices=1, cuda_computes_bf16=False)
    plan = plan_compute("cuda", "bf16", old_gpu)
    assert (plan.storage, plan.compute) == ("bfloat16", "float32")
    assert "GPU" in plan.note


@pytest.mark.parametrize(("precision", "storage"), [("int8", "int8"), ("int4", "nf4")])
def test_quantised_weights_are_computed_in_what_suits_the_device(precision, storage):
    on_cpu, on_gpu = plan_compute("cpu", precision, TWO_GPUS), plan_compute("cuda:1", precision, TWO_GPUS)
    assert (on_cpu.storage, on_cpu.compute) == (storage, "float32")
    assert (on_gpu.device, on_gpu.storage, on_gpu.compute) == ("cuda:1", storage, "float16")


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:3"])
def test_a_gpu_that_is_not_there_is_no_device(device):
    with pytest.raises(LoadError, match="CUDA") as caught:
        plan_compute(device, "auto", PLAIN_CPU)
    assert caught.value.reason is LoadReason.NO_DEVICE


def test_a_gpu_number_out_of_range_is_no_device():
    with pytest.raises(LoadError, match="2 CUDA") as caught:
        plan_compute("cuda:2", "auto", TWO_GPUS)
    assert caught.value.reason is LoadReason.NO_DEVICE


def test_quantising_without_its_packages_names_the_extra():
    machine = Machine(frozenset(), missing_packages=("bitsandbytes",))
    with pytest.raises(LoadError, match=r"emb-model-provider\[quantize\]") as caught:
        plan_compute("cpu", "int4", machine)
    assert caught.value.reason is LoadReason.PACKAGE_MISSING
    assert plan_compute("cpu", "fp32", machine).precision == "fp32"


def test_int8_on_a_cpu_needs_no_package_beyond_torch():
    plan = plan_compute("cpu", "int8", Machine(frozenset(), missing_packages=("bitsandbytes", "accelerate")))
    assert plan.narrows_to_int8
    assert plan.starts_from_fp32
    assert not plan.uses_bitsandbytes


def test_this_machine_reads_its_own_cpu():
    assert "sse2" in this_machine().cpu_flags or "asimd" in this_machine().cpu_flags
