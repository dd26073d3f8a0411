import errno
import mmap
import os
import re
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from emb_model_provider.errors import LoadError, LoadReason
from shard.loading.load_errors import reasons
from shard.memory import limit_kernel_caches, private_bytes, ran_out, return_read_weights


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError('NVML_SUCCESS == r INTERNAL ASSERT FAILED at "/pytorch/c10/cuda/CUDACachingAllocator.cpp":1124'),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
        ),
        RuntimeError("unable to mmap 90865192 bytes from file </m/model.safetensors>: Cannot allocate memory (12)"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("can't start new thread"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        ImportError("libscipy_openblas-6cdc3b4a.so: failed to map segment from shared object"),
    ],
)
def test_what_says_that_memory_ran_out_is_told_from_other_errors(error):
    assert ran_out(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("device-side assert"),
        ValueError("out of memory"),
        KeyError("x"),
        OSError(errno.ENOENT, "No such file"),
        ImportError("a.so: failed to map segment from shared object: Operation not permitted"),
        ImportError("libgomp.so.1: cannot allocate memory in static TLS block"),
    ],
)
def test_other_errors_are_not_about_memory(error):
    assert not ran_out(error)


@pytest.mark.parametrize("limit_kib", [1_500_000, None])
def test_a_kernel_that_cannot_be_made_is_for_want_of_memory_only_where_that_is_limited(monkeypatch, limit_kib):
    limit = resource.RLIM_INFINITY if limit_kib is None else limit_kib * 1024
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (limit, limit))
    assert ran_out(RuntimeError("could not create a primitive")) is (limit_kib is not None)


def test_a_shortage_behind_another_error_is_found():
    wrapped = OSError("Unable to load weights")
    wrapped.__cause__ = MemoryError()
    assert ran_out(wrapped)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), LoadReason.OUT_OF_MEMORY),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            LoadReason.OUT_OF_MEMORY,
        ),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), LoadReason.OUT_OF_MEMORY),
        (ImportError("libscipy.so: failed to map segment from shared object"), LoadReason.OUT_OF_MEMORY),
        (ImportError("No module named 'einops'"), LoadReason.PACKAGE_MISSING),
        (OSError(errno.EIO, "Input/output error"), LoadReason.INCOMPLETE_DOWNLOAD),
        (RuntimeError("size mismatch"), LoadReason.WRONG_WEIGHTS),
        (KeyError("hidden_size"), LoadReason.UNSUPPORTED_MODEL),
    ],
)
def test_whatever_a_shortage_makes_a_library_raise_while_a_model_loads_it_is_the_reason(error, reason):
    with pytest.raises(LoadError) as caught, reasons(Path("/m")):
        raise error
    assert caught.value.reason == reason


def resident_bytes(path: Path) -> int:
    maps = Path("/proc/self/smaps").read_text(encoding="utf-8")
    return 1024 * sum(map(int, re.findall(rf"{re.escape(str(path))}\n(?:\w+:.*\n)*?Rss: +(\d+) kB", maps)))


@pytest.mark.parametrize(
    ("error", "limit", "advice"),
    [
        (RuntimeError("can't start new thread"), resource.RLIM_INFINITY, "ulimit -u"),
        (RuntimeError("can't start new thread"), 300_000 * 1024, r"ulimit -u.* or of memory \(ulimit -v 300000\)"),
        (MemoryError(), 300_000 * 1024, "ulimit -v 300000"),
        (MemoryError(), resource.RLIM_INFINITY, "use a lower precision"),
    ],
)
def test_which_limit_is_to_be_raised_is_said(monkeypatch, tmp_path, error, limit, advice):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limit if which == resource.RLIMIT_AS else -1, -1))
    with pytest.raises(LoadError, match=advice), reasons(tmp_path):
        raise error


def test_weights_that_were_read_leave_the_process_and_come_again_when_needed(tmp_path):
    weights = torch.arange(1_000_000, dtype=torch.float32)
    save_file({"w": weights}, tmp_path / "a.safetensors")
    mapped = load_file(tmp_path / "a.safetensors")["w"]
    assert torch.equal(mapped, weights)
    assert resident_bytes(tmp_path / "a.safetensors") >= weights.nbytes
    return_read_weights()
    assert resident_bytes(tmp_path / "a.safetensors") == 0
    assert torch.equal(mapped, weights)


def test_weights_that_were_changed_stay_as_they_are(tmp_path):
    save_file({"w": torch.zeros(1_000_000)}, tmp_path / "b.safetensors")
    mapped = load_file(tmp_path / "b.safetensors")["w"]
    mapped[500_000] = 7
    return_read_weights()
    assert mapped[500_000] == 7


def test_a_file_beside_them_may_have_a_name_that_is_no_text(tmp_path):
    path = tmp_path / os.fsdecode(b"\xff")
    path.write_bytes(b"x")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
        return_read_weights()


def test_a_process_has_memory_of_its_own():
    assert private_bytes() > 1024 * 1024


@pytest.mark.parametrize("said", ["", None], ids=["less", "nothing"])
def test_a_kernel_that_says_nothing_of_memory_is_no_reason_to_fail(monkeypatch, said):
    def read(*args, **options):
        if said is None:
            raise FileNotFoundError
        return said

    monkeypatch.setattr(Path, "read_text", read)
    assert private_bytes() == 0
    return_read_weights()


def test_few_kernels_are_kept_unless_the_operator_says_how_many(monkeypatch):
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "7")
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "")  # so that it is put back as it was, set or not
    monkeypatch.delenv("LRU_CACHE_CAPACITY")
    limit_kernel_caches()
    assert (os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"], os.environ["LRU_CACHE_CAPACITY"]) == ("7", "256")
