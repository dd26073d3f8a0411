"""Whether a row's sums depend on how many rows there are: a matter of the processor and its libraries, not of ours."""

from functools import cache

import numpy as np
import numpy.typing as npt
import torch

from shard.encoders.graph.lowering import onednn_linear

#: Where the libraries sum up in another order, of a vector of length 1.
_ROUNDING = 1e-6


@cache
def sums_keep_their_order() -> bool:
    """Tell whether oneDNN's and MKL's products of a few rows are, bit for bit, those among many."""
    numbers = torch.Generator().manual_seed(0)
    rows, weight = (torch.randn(count, 96, generator=numbers) for count in (700, 384))
    query, key, value = (torch.randn(24, 64, 32, generator=numbers) for _ in range(3))
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)
    many = onednn_linear(rows, packed, "none", "")
    for count in (2, 3, 5, 8, 16, 50, 300):
        if not torch.equal(onednn_linear(rows[:count], packed, "none", ""), many[:count]):
            return False
    scores = torch.bmm(query, key.transpose(1, 2))
    for length in (16, 17, 23, 40):
        own = torch.bmm(query[:4, :length], key[:4, :length].transpose(1, 2))
        if not torch.equal(own, scores[:4, :length, :length]):
            return False
        seen = torch.nn.functional.pad(own, (0, 64 - length, 0, 64 - length))
        if not torch.equal(torch.bmm(seen, value[:4])[:, :length], torch.bmm(own, value[:4, :length])):
            return False
    return True


def assert_same_in_company(together: npt.NDArray[np.float32], alone: npt.NDArray[np.float32], kernel: str) -> None:
    """Compare vectors, one per row: bit for bit where oneDNN makes all products and keeps their order."""
    if kernel in ("onednn", "onednn-packed") and sums_keep_their_order():
        np.testing.assert_array_equal(together, alone)
    lengths = np.linalg.norm(alone, axis=1, keepdims=True)
    assert (np.abs(together - alone) <= _ROUNDING * np.maximum(1, lengths)).all()
