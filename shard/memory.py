"""The memory of this process: how the allocator keeps it, and how much is its own.

Called by ``loader`` and ``main``; by ``failures``, ``load_errors`` and the encoders to tell that there was too little.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
from pathlib import Path
from typing import Final

from emb_model_provider.process_limits import NO_THREAD, advice_without_threads, memory_limits

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_MIB: Final = 1024 * 1024
#: The largest glibc takes. Every activation of a batch stays below it.
_LARGEST_HEAP_BLOCK: Final = 32 * _MIB
#: About what one batch needs at once.
_KEPT: Final = 64 * _MIB
#: As many as a model with four kinds of matrices needs for all sizes that ``packed.round_up`` leaves. One core takes
#: other kernels than all of them together, but small sizes come on all and large ones on one.
_KEPT_KERNELS: Final = 256
#: A mapped file of weights of which no page was written to: such a page is this process's own, and only here (proc(5)).
_CHECKPOINT_ONLY_READ: Final = re.compile(
    r"^([0-9a-f]+)-([0-9a-f]+) .*\.safetensors\n(?:[A-Z]\w+:.*\n)*?Anonymous: +0 kB$", re.MULTILINE
)
_MADV_DONTNEED: Final = 4
#: From CUDA and its libraries, from torch where it cannot ask how full a card is (a part of one by MIG) to write just
#: that, from the CPU's allocator, of a mapped file, of C++, of a thread's stack.
_TOO_LITTLE: Final = (
    "out of memory",
    "_status_alloc_failed",
    "_allocation_failed",
    "nvml_success ==",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "bad_alloc",
    NO_THREAD,
)
#: What oneDNN says of a kernel for which it finds no room, and of one that it does not have.
_NO_KERNEL: Final = "could not create a primitive"
#: The dynamic linker names any other cause behind it, such as a directory that is mounted ``noexec``.
_NO_ROOM_FOR_LIBRARY: Final = "failed to map segment from shared object"


def keep_freed_memory() -> None:
    """Let the allocator keep what a batch has freed for the next one.

    By default glibc maps and unmaps every large tensor, and the kernel fills each new page with zeros: a third of the
    time of an int8 batch. Other C libraries lack the call and are left alone.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_M_MMAP_THRESHOLD, _LARGEST_HEAP_BLOCK)
        set_option(_M_TRIM_THRESHOLD, _KEPT)


def limit_kernel_caches() -> None:
    """Let oneDNN and torch's layer above it keep few kernels; to be called before the first of them is made.

    They make one per shape, of up to a megabyte, and by default keep a thousand of them each. One that is not kept is
    made anew, which takes half a millisecond: for one short text, four of them are as long as the pass.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(_KEPT_KERNELS))


def return_freed_memory() -> None:
    """Give the kernel back what loading and probing have freed."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def return_read_weights() -> None:
    """Give the kernel back the pages of checkpoints that were only read: they come again from its cache when needed."""
    advise = ctypes.CDLL(None).madvise
    try:
        maps = Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for start, end in _CHECKPOINT_ONLY_READ.findall(maps):
        begin = int(start, 16)
        advise(ctypes.c_void_p(begin), ctypes.c_size_t(int(end, 16) - begin), _MADV_DONTNEED)


def ran_out(error: BaseException | None) -> bool:
    """Tell whether an error, or what caused it, says that there was too little memory, of the machine or of a card.

    Also less than the process may have: a limit on its address space is met in as many words as there are libraries.
    """
    while error is not None:
        if _says_so(error):
            return True
        error = error.__cause__
    return False


def advice_of_shortage(error: BaseException) -> str:
    """Return what a person can do about an error of which ``ran_out`` is true."""
    if NO_THREAD in str(error).lower():
        return advice_without_threads()
    if limits := memory_limits():
        return f"raise the limit of this process ({limits})"
    return "use a lower precision, another device, or fewer models"


def _says_so(error: BaseException) -> bool:
    match error:
        case MemoryError():
            return True
        case OSError():
            return error.errno == errno.ENOMEM
        case ImportError():
            return str(error).endswith(_NO_ROOM_FOR_LIBRARY)
        case RuntimeError():  # torch's own OutOfMemoryError is one
            said = str(error).lower()
            return any(words in said for words in _TOO_LITTLE) or (_NO_KERNEL in said and memory_limits() != "")
        case _:
            return False


def private_bytes() -> int:
    """Return the memory that is this process's own, not a file's; 0 where the kernel does not say."""
    try:
        text = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return 0
    match = re.search(r"^Anonymous:\s+(\d+) kB$", text, re.MULTILINE)
    return 1024 * int(match.group(1)) if match else 0
