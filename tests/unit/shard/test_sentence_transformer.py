import pytest
import torch

from shard.encoder import FatalDeviceError, Tokenized
from shard.encoders.sentence_transformer import run_path

ROWS = [Tokenized((1,), 1)]


class Failing:
    def __init__(self, said):
        self._said = said

    def run(self, _rows):
        raise torch.AcceleratorError(f"CUDA error: {self._said}\nCUDA kernel errors might be asynchronously reported")


@pytest.mark.parametrize("said", ["device-side assert triggered", "an illegal memory access was encountered"])
def test_a_card_in_a_state_that_cannot_be_trusted_ends_the_process(said):
    with pytest.raises(FatalDeviceError, match=said):
        run_path(Failing(said), ROWS)


def test_a_card_that_had_no_memory_for_a_call_of_its_driver_is_as_well_as_before():
    with pytest.raises(torch.AcceleratorError, match="out of memory"):
        run_path(Failing("out of memory"), ROWS)


@pytest.mark.parametrize("said", ["invalid configuration argument", "too many resources requested for launch"])
def test_a_kernel_that_the_driver_does_not_begin_leaves_the_card_as_it_was(monkeypatch, said):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    with pytest.raises(torch.AcceleratorError, match=said):
        run_path(Failing(said), ROWS)


def test_a_card_that_is_broken_before_the_driver_begins_a_kernel_ends_the_process(monkeypatch):
    def synchronize():
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    with pytest.raises(FatalDeviceError, match=r"^CUDA error: unspecified launch failure\nIt was met as: .*argument"):
        run_path(Failing("invalid argument"), ROWS)


class FailingLibrary:
    def run(self, _rows):
        raise RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle, opa, opb )`")


def run_beside(monkeypatch, synchronize):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    run_path(FailingLibrary(), ROWS)


def test_a_card_that_one_of_its_libraries_finds_broken_ends_the_process(monkeypatch):
    def synchronize():
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(FatalDeviceError, match=r"^CUDA error: an illegal memory access .*\nIt was met as: .*CUBLAS"):
        run_beside(monkeypatch, synchronize)


def test_what_a_library_refuses_on_a_card_that_still_answers_is_an_error_of_that_text(monkeypatch):
    with pytest.raises(RuntimeError, match="CUBLAS"):
        run_beside(monkeypatch, lambda: None)
