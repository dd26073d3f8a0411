"""Vectors in fewer bytes: float16, int8, uint8, binary and ubinary from float32. Pure numpy; used by ``dialects``.

``binary`` and ``ubinary`` are those of sentence-transformers' ``quantize_embeddings`` and of Cohere: one bit a
dimension, 1 where the number is above 0, the first dimension in the highest bit; ``binary`` is the same byte minus 128.

``int8`` needs a range. One from calibration texts would fit those texts' language and subject, and would have to be
kept beside every index; the range here follows from what is known of every vector: it has length 1, so its numbers
have a root mean square of 1 / sqrt(d). They are cut at ``RANGE_IN_DEVIATIONS`` times that and scaled to -127..127, the
same for all vectors of d dimensions, so that dot products stay comparable. ``uint8`` is ``int8`` plus 128. docs/api.md
has what that costs in cosine and recall.
"""

from __future__ import annotations

import math
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

VectorType = Literal["float", "float16", "int8", "uint8", "binary", "ubinary"]
#: Types that only say something about vectors of length 1.
NEED_UNIT_LENGTH: Final = frozenset[VectorType]({"int8", "uint8"})
RANGE_IN_DEVIATIONS: Final = 8.0

_SIGN: Final = np.uint8(0x80)


def int8_limit(dimension: int) -> float:
    """Return the number that becomes 127."""
    return min(1.0, RANGE_IN_DEVIATIONS / math.sqrt(dimension))


def quantize(rows: NDArray[np.float32], kind: VectorType) -> NDArray[np.generic]:
    """Return ``rows`` (n x d, float32) as ``kind``: n x d, or n x ceil(d / 8) bytes for the binary ones."""
    if kind == "float":
        return rows
    if kind == "float16":
        return rows.astype("<f2")
    if kind in ("binary", "ubinary"):
        packed: NDArray[np.uint8] = np.packbits(rows > 0, axis=-1)
        return packed if kind == "ubinary" else (packed ^ _SIGN).view(np.int8)
    scaled = np.rint(rows * (127.0 / int8_limit(rows.shape[-1])))
    signed: NDArray[np.int8] = np.clip(scaled, -127, 127).astype(np.int8)
    return signed if kind == "int8" else signed.view(np.uint8) ^ _SIGN
