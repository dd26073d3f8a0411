"""Which cards there are, as the kernel and the environment have it, without a card."""

import pytest

from supervisor import machine
from supervisor.machine import read_machine


@pytest.fixture
def devices(tmp_path, monkeypatch):
    """Return a function that makes nodes in what is taken for ``/dev``."""
    monkeypatch.setattr(machine, "_DEVICES", tmp_path)
    return lambda *names: [(tmp_path / name).touch() for name in names]


@pytest.mark.parametrize(
    ("chosen", "seen"),
    [
        ("1,0", ("1", "0")),
        (" 2, 3 ", ("2", "3")),
        ("0,-1,1", ("0",)),
        ("0,,1", ("0",)),
        ("", ()),
        ("-1", ()),
        ("NoDevFiles", ()),
        ("GPU-8932f937-d72c,GPU-00000000", ("GPU-8932f937-d72c", "GPU-00000000")),
        ("MIG-41b36874,-1", ("MIG-41b36874",)),
    ],
)
def test_cards_are_those_that_cuda_sees_which_reads_up_to_the_first_that_is_none(devices, chosen, seen):
    devices("nvidia0", "nvidia1", "nvidiactl")
    found = read_machine({"CUDA_VISIBLE_DEVICES": chosen})
    assert (found.gpus, found.has_other_gpus) == (seen, False)


def test_without_a_choice_cards_are_counted(devices):
    devices("nvidiactl", "nvidia-uvm")
    assert (read_machine({}).gpus, read_machine({}).has_other_gpus) == ((), True), "CUDA may know of one all the same"
    devices("nvidia2", "nvidia10")
    assert (read_machine({}).gpus, read_machine({}).has_other_gpus) == (("0", "1"), False)


def test_on_windows_there_is_a_card_where_its_driver_is(devices, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_WINDOWS_CUDA", tmp_path / "libcuda.so.1")
    devices("dxg")
    assert read_machine({}).gpus == (), "that of another maker"
    devices("libcuda.so.1")
    assert (read_machine({}).gpus, read_machine({}).has_other_gpus) == (("0",), True)
    assert read_machine({"CUDA_VISIBLE_DEVICES": ""}).gpus == ()
