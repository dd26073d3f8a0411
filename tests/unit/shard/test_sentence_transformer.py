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
