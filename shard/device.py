"""Where a model runs and in which number format: (device, precision, machine) → ``ComputePlan``.

``plan_compute`` is pure and called by ``loader``; ``this_machine`` is the one place that asks torch and the kernel.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from emb_model_provider.errors import LoadError, LoadReason
from emb_model_provider.modelmap import Precision

FloatType = Literal["float32", "float16", "bfloat16"]
StorageType = Literal["float32", "float16", "bfloat16", "int8", "nf4"]

_FLOATS: Final[dict[str, FloatType]] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
#: Instructions that compute in 16 bit; without them torch emulates, about seven times slower than fp32.
_NATIVE_FLAGS: Final = {"fp16": {"avx512_fp16", "amx_fp16"}, "bf16": {"avx512_bf16", "amx_bf16"}}
_QUANTIZE_PACKAGES: Final = ("bitsandbytes", "accelerate")


@dataclass(frozen=True, slots=True)
class Machine:
    """What this process can compute with. ``cuda_devices`` counts the visible ones."""

    cpu_flags: frozenset[str]
    cuda_devices: int = 0
    cuda_computes_bf16: bool = True
    missing_packages: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ComputePlan:
    """How to load and run a model.

    ``device`` is ``cpu`` or ``cuda:N``. ``storage`` is the format of the large weights in memory, ``compute`` the one
    of the arithmetic; where they differ, weights are widened as they are used. ``note`` is a line for the operator
    when that is not what was asked for. ``is_saved``: the files hold the weights as bitsandbytes has made them.
    """

    device: str
    precision: Literal["fp32", "fp16", "bf16", "int8", "int4"]
    storage: StorageType
    compute: FloatType
    note: str | None = None
    is_saved: bool = False

    @property
    def on_cpu(self) -> bool:
        """Whether the model runs on the CPU."""
        return self.device == "cpu"

    @property
    def uses_bitsandbytes(self) -> bool:
        """Whether bitsandbytes holds the weights; int8 on a CPU is our own (``encoders.graph.int8``)."""
        return self.is_saved or self.storage == "nf4" or (self.storage == "int8" and not self.on_cpu)

    @property
    def narrows_to_int8(self) -> bool:
        """Whether 8-bit copies of fp32 matrices are made after loading."""
        return self.storage == "int8" and self.on_cpu and not self.is_saved

    @property
    def starts_from_fp32(self) -> bool:
        """Whether the weights are loaded in fp32 on the CPU, mapped, and made narrow from there."""
        return self.on_cpu and self.compute == "float32" and not self.uses_bitsandbytes

    @property
    def widens_weights(self) -> bool:
        """Whether 16-bit weights are widened to fp32 in each forward pass."""
        return self.storage in ("float16", "bfloat16") and self.storage != self.compute


def this_machine() -> Machine:
    """Look at the CPU, CUDA and the packages of this process."""
    import torch  # noqa: PLC0415 - the rest of this module is pure and must import without torch

    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return Machine(
        cpu_flags=_cpu_flags(Path("/proc/cpuinfo")),
        cuda_devices=devices,
        cuda_computes_bf16=devices > 0 and torch.cuda.is_bf16_supported(including_emulation=False),
        missing_packages=tuple(name for name in _QUANTIZE_PACKAGES if importlib.util.find_spec(name) is None),
    )


def plan_compute(device: str, precision: Precision, machine: Machine) -> ComputePlan:
    """Decide device and number formats; raise ``LoadError`` NO_DEVICE or PACKAGE_MISSING."""
    where = _resolve_device(device, machine)
    on_cpu = where == "cpu"
    if precision == "auto":
        precision = "fp32" if on_cpu else "fp16"
    if precision == "int8" or precision == "int4":  # noqa: PLR1714 - mypy narrows by comparison, not by membership
        return _plan_quantized(where, precision, machine)
    storage = _FLOATS[precision]
    if precision == "fp32" or _computes_natively(precision, machine, on_cpu=on_cpu):
        return ComputePlan(where, precision, storage, storage)
    return ComputePlan(
        where,
        precision,
        storage,
        "float32",
        note=f"this {'CPU' if on_cpu else 'GPU'} has no native {precision} arithmetic: weights are stored as "
        f"{precision} and computed in fp32 (half the memory, slower than fp32)",
    )


def _plan_quantized(device: str, precision: Literal["int8", "int4"], machine: Machine) -> ComputePlan:
    if device == "cpu" and precision == "int8":
        return ComputePlan(device, precision, "int8", "float32")
    _require_bitsandbytes(machine, f"precision {precision} on {device} needs", ", or choose another precision")
    compute: FloatType = "float32" if device == "cpu" else "float16"
    return ComputePlan(device, precision, "int8" if precision == "int8" else "nf4", compute)


def _require_bitsandbytes(machine: Machine, what_needs: str, otherwise: str = "") -> None:
    if machine.missing_packages:
        raise LoadError(
            LoadReason.PACKAGE_MISSING,
            f"{what_needs} the packages bitsandbytes and accelerate, and {' and '.join(machine.missing_packages)} "
            f"cannot be imported: pip install 'emb-model-provider[quantize]'{otherwise}",
        )


def as_saved(plan: ComputePlan, config: Mapping[str, object], machine: Machine) -> ComputePlan:
    """Return the plan for weights that bitsandbytes has saved, which nothing makes wider; any others have ``plan``.

    ``config`` is the ``config.json`` beside them. Raises ``LoadError`` where bitsandbytes is needed and missing.
    """
    said = config.get("quantization_config")
    if not isinstance(said, Mapping) or not (said.get("load_in_4bit") or said.get("load_in_8bit")):
        return plan
    _require_bitsandbytes(machine, "bitsandbytes has saved this model's weights, and to read them takes")
    compute: FloatType = "float32" if plan.on_cpu else plan.compute
    if said.get("load_in_4bit"):
        return replace(plan, precision="int4", storage="nf4", compute=compute, note=None, is_saved=True)
    return replace(plan, precision="int8", storage="int8", compute=compute, note=None, is_saved=True)


def _resolve_device(device: str, machine: Machine) -> str:
    if device == "auto":
        return "cuda:0" if machine.cuda_devices else "cpu"
    if device == "cpu":
        return "cpu"
    number = int(device.partition(":")[2] or 0)
    if machine.cuda_devices == 0:
        raise LoadError(
            LoadReason.NO_DEVICE,
            f"device {device} was asked for, but torch sees no CUDA device here: check nvidia-smi, the driver, "
            "CUDA_VISIBLE_DEVICES and that torch is a CUDA build, or set the device to cpu or auto",
        )
    if number >= machine.cuda_devices:
        raise LoadError(
            LoadReason.NO_DEVICE,
            f"device {device} was asked for, but torch sees {machine.cuda_devices} CUDA device(s), numbered from 0",
        )
    return f"cuda:{number}"


def _computes_natively(precision: Literal["fp16", "bf16"], machine: Machine, *, on_cpu: bool) -> bool:
    if on_cpu:
        return bool(_NATIVE_FLAGS[precision] & machine.cpu_flags)
    return precision == "fp16" or machine.cuda_computes_bf16


def _cpu_flags(cpuinfo: Path) -> frozenset[str]:
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux, or /proc hidden: nothing is known to be native, which is slow but right
        return frozenset()
    match = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    return frozenset(match.group(1).split()) if match else frozenset()
