"""Where a model's positions begin: by a table that it has, and by padding that its table knows of."""

import pytest
from torch import nn

from shard.encoders.positions import find_first_position, find_position_table


class Embeddings(nn.Module):
    def __init__(self, table, **padding):
        super().__init__()
        self.position_embeddings = table
        for name, value in padding.items():
            setattr(self, name, value)


@pytest.mark.parametrize(
    ("padding", "first"), [({}, 0), ({"padding_idx": None}, 0), ({"padding_idx": 0}, 1), ({"padding_idx": 1}, 2)]
)
def test_positions_begin_behind_the_id_of_padding_where_the_table_knows_of_it(padding, first):
    model = nn.Sequential(nn.Linear(2, 2), Embeddings(table := nn.Embedding(9, 2), **padding))
    assert find_position_table(model) == (table, first)
    assert find_first_position(model) == first


def test_a_model_without_a_table_of_positions_counts_from_0():
    rotary = Embeddings(nn.Linear(2, 2), padding_idx=1)  # what is called the same and no table
    assert find_position_table(nn.Sequential(rotary)) == (None, 0)
    assert find_first_position(nn.Sequential(rotary, nn.Linear(2, 2))) == 0
