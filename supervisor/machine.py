"""What this machine offers, as far as placing processes needs it. Read by ``cli`` at a start and a reload."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Final

from supervisor.cgroups import cpu_quotas

#: The variable that says what the number of a card means. CUDA's own choice is the N-th fastest, ours the N-th on the
#: bus, as nvidia-smi counts.
CARD_ORDER: Final = "CUDA_DEVICE_ORDER"
ORDER_OF_THE_BUS: Final = "PCI_BUS_ID"
_DEVICES: Final = Path("/dev")
#: On Windows (WSL 2) cards have no nodes of their own: this one is any maker's, the library comes with NVIDIA's driver.
_WINDOWS_GPU: Final = "dxg"
_WINDOWS_CUDA: Final = Path("/usr/lib/wsl/lib/libcuda.so.1")
_GPU_NODE: Final = re.compile(r"nvidia\d+")
#: What names a card in ``CUDA_VISIBLE_DEVICES``. CUDA looks no further than to the first entry that names none.
_GPU_NAME: Final = re.compile(r"\d|GPU-|MIG-")


@dataclass(frozen=True, slots=True)
class Machine:
    """CPUs this process may use, how many of them at once, and GPUs as ``CUDA_VISIBLE_DEVICES`` names them.

    ``has_other_gpus``: nobody has said which GPUs to use, and there may be some that were not found.
    """

    cpus: tuple[int, ...]
    cpu_count: int
    gpus: tuple[str, ...]
    has_other_gpus: bool = False


def read_machine(env: Mapping[str, str]) -> Machine:
    """Return the machine as the kernel and ``CUDA_VISIBLE_DEVICES`` describe it."""
    cpus = tuple(sorted(os.sched_getaffinity(0)))
    quotas = (parse_cpu_quota(quota) for quota in cpu_quotas())
    cpu_count = min([len(cpus), *(quota for quota in quotas if quota is not None)])
    return Machine(cpus, cpu_count, *_find_gpus(env.get("CUDA_VISIBLE_DEVICES")))


def parse_cpu_quota(text: str) -> int | None:
    """Return the whole CPUs of a cgroup v2 ``cpu.max`` ("200000 100000" is 2), at least 1; ``None`` for no limit.

    Format: https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files
    """
    quota, _, period = text.strip().partition(" ")
    if not quota.isdecimal() or not period.isdecimal() or int(period) == 0:
        return None
    return max(1, int(quota) // int(period))


def _find_gpus(chosen: str | None) -> tuple[tuple[str, ...], bool]:
    """Return ``gpus`` and ``has_other_gpus`` of a ``Machine``, by its ``CUDA_VISIBLE_DEVICES`` if that is set."""
    if chosen is not None:
        return tuple(takewhile(_GPU_NAME.match, (one.strip() for one in chosen.split(",")))), False
    count = sum(_GPU_NODE.fullmatch(path.name) is not None for path in _DEVICES.glob("nvidia*"))
    if not count and (_DEVICES / _WINDOWS_GPU).exists() and _WINDOWS_CUDA.exists():
        return ("0",), True  # how many there are, only CUDA could say
    return tuple(str(index) for index in range(count)), not count
