"""Whether this machine has a CUDA device."""

import pytest
import torch

NO_CARD = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
