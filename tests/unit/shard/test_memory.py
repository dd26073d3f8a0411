import pytest

from shard.memory import private_bytes, ran_out


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
        ),
    ],
)
def test_what_says_that_memory_ran_out_is_told_from_other_errors(error):
    assert ran_out(error)


@pytest.mark.parametrize("error", [RuntimeError("device-side assert"), ValueError("out of memory"), KeyError("x")])
def test_other_errors_are_not_about_memory(error):
    assert not ran_out(error)


def test_a_process_has_memory_of_its_own():
    assert private_bytes() > 1024 * 1024
