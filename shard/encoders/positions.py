"""Which position each token of a text has. Called by both packed paths and ``paths``, and for lengths by ``parts``.

BERT counts from 0. RoBERTa and its kin (XLM-R, MPNet) count from behind the id of their padding, and count by ids: a
text that spells the padding token has it at the padding's own position, and the tokens after it are one further ahead.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import nn


def find_first_position(model: nn.Module) -> int:
    """Return the position of a text's first token: RoBERTa and its kin count from behind their padding's."""
    return find_position_table(model)[1]


def find_position_table(model: nn.Module) -> tuple[nn.Embedding | None, int]:
    """Return the table of a model's positions, if it has one, and which of its rows is a text's first."""
    for module in model.modules():
        table = getattr(module, "position_embeddings", None)
        if isinstance(table, nn.Embedding):
            padding = getattr(module, "padding_idx", None)
            return table, padding + 1 if isinstance(padding, int) else 0
    return None, 0


def padding_before(first_position: int) -> int | None:
    """Return the id that is left out of counting; ``None`` where positions start at 0 and no token is looked at."""
    return first_position - 1 if first_position else None


def positions_around(padding: int, ids: Sequence[int]) -> npt.NDArray[np.int64]:
    """Return the positions of a text that holds ``padding``: transformers' ``create_position_ids_from_input_ids``."""
    counted = np.array([one != padding for one in ids], dtype=np.int64)
    positions: npt.NDArray[np.int64] = padding + np.cumsum(counted) * counted
    return positions
