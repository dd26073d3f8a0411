"""Every test here takes a ``device``: the CPU, so that the tests are known to work, and a card where there is one."""

import pytest
import torch

NO_CARD = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda:0", marks=NO_CARD)])
def device(request):
    return request.param
