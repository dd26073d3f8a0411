"""Whether a second process of a model fits beside the first while it takes over. Asked by ``renewals``."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from emb_model_provider.messages.status import EncoderInfo
from supervisor.cgroups import memory_figures, read
from supervisor.machine import CARD_ORDER, ORDER_OF_THE_BUS

_MIB: Final = 1024 * 1024
#: What an interpreter with its libraries takes beside the model, and what must stay free for everybody else.
_PROCESS_BYTES: Final = 512 * _MIB
_SPARE_BYTES: Final = 256 * _MIB
#: A CUDA context and its kernels, before any weights.
_CUDA_CONTEXT_BYTES: Final = 1024 * _MIB
_MEMINFO: Final = Path("/proc/meminfo")
_AVAILABLE: Final = re.compile(r"^MemAvailable:\s+(\d+) kB$", re.MULTILINE)
#: Version 1 counts what lies below a group under another name.
_INACTIVE_FILE: Final = re.compile(r"^(?:total_)?inactive_file (\d+)$", re.MULTILINE)


def has_room(info: EncoderInfo, visible_gpus: str, env: Mapping[str, str]) -> bool:
    """Tell whether another process of this model fits; where the memory of a GPU cannot be asked, it does not.

    ``env`` is the supervisor's, which its processes have, too.
    """
    available = available_bytes(read(_MEMINFO), _cgroup_free_bytes())
    if not fits(needed_bytes(info), available):
        return False
    if not info.device.startswith("cuda"):
        return True
    free = gpu_free_bytes(visible_gpus, env)
    return free is not None and fits(info.weights_bytes + info.weights_bytes // 4 + _CUDA_CONTEXT_BYTES, free)


def needed_bytes(info: EncoderInfo) -> int:
    """Return what such a process takes of the machine's memory at most: its own, and its weights if not shared."""
    weights = 0 if info.device.startswith("cuda") else info.weights_bytes
    return info.private_bytes + weights + _PROCESS_BYTES


def fits(needed: int, available: int) -> bool:
    """Tell whether ``needed`` bytes can be taken and something is left."""
    return needed + _SPARE_BYTES <= available


def available_bytes(meminfo: str, cgroup_free: int | None) -> int:
    """Return what can be taken without swapping: the machine's, or less where a container may not have it all.

    Format: proc_meminfo(5). A machine that does not say is taken to have none.
    """
    match = _AVAILABLE.search(meminfo)
    free = int(match.group(1)) * 1024 if match else 0
    return free if cgroup_free is None else min(free, cgroup_free)


def cgroup_free_bytes(limit: str, current: str, statistics: str) -> int | None:
    """Return what a cgroup may still take, its droppable file cache included; ``None`` for no limit.

    Formats: https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files and
    https://docs.kernel.org/admin-guide/cgroup-v1/memory.html
    """
    if not limit.strip().isdecimal() or not current.strip().isdecimal():
        return None
    droppable = max(map(int, _INACTIVE_FILE.findall(statistics)), default=0)
    return max(0, int(limit) - int(current) + droppable)


def gpu_free_bytes(visible_gpus: str, env: Mapping[str, str]) -> int | None:
    """Return the free memory of a GPU, by NVIDIA's management library; ``None`` where it cannot be asked.

    ``visible_gpus`` is the process's ``CUDA_VISIBLE_DEVICES``, an index or a UUID. An index is that of the bus: where
    the user has CUDA count otherwise, it may be any card's.
    """
    is_index = visible_gpus.isdecimal()
    if is_index and (env.get(CARD_ORDER) or ORDER_OF_THE_BUS) != ORDER_OF_THE_BUS:
        return None

    class _Memory(ctypes.Structure):
        _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))

    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    if library.nvmlInit_v2() != 0:
        return None
    try:
        device, memory = ctypes.c_void_p(), _Memory()
        if is_index:
            found = library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(int(visible_gpus)), ctypes.byref(device))
        else:
            found = library.nvmlDeviceGetHandleByUUID(visible_gpus.encode(), ctypes.byref(device))
        if found != 0 or library.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory)) != 0:
            return None
        return int(memory.free)
    finally:
        library.nvmlShutdown()


def _cgroup_free_bytes() -> int | None:
    free = [cgroup_free_bytes(*figures) for figures in memory_figures()]
    return min((each for each in free if each is not None), default=None)
