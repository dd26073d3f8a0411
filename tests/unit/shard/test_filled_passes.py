import numpy as np
import pytest

from shard.encoder import NO_ROW, Results, Tokenized
from shard.encoders.filled_passes import FULL_TOKENS, FilledPasses


class Counting:
    """Makes of each text what it holds, and keeps what it was given."""

    def __init__(self):
        self.passes = []

    def split(self, batch):
        return [[index] for index in range(len(batch))]

    def run(self, rows):
        self.passes.append([row.ids for row in rows])
        return Results(np.array([[sum(row.ids)] for row in rows], np.float32), [NO_ROW] * len(rows), rows)


def text(*ids):
    return Tokenized(ids, len(ids))


@pytest.mark.parametrize(
    ("rows", "copies"),
    [
        ([text(7)], FULL_TOKENS),
        ([text(1, 2, 3)], 6),
        ([text(1, 2, 3), text(4)], 3),  # with its padding it is six tokens
        ([text(*range(15))], 2),
        ([text(*range(16))], 1),
        ([text(*range(17)), text(1)], 1),
    ],
)
def test_a_pass_of_few_tokens_is_filled_with_copies_of_its_texts_and_theirs_are_dropped(rows, copies):
    plain = Counting()
    found = FilledPasses(plain).run(rows)
    assert plain.passes == [[row.ids for row in rows] * copies]
    assert found.rows[:, 0].tolist() == [sum(row.ids) for row in rows]
    assert (len(found.sparse), list(found.tokens)) == (len(rows), rows)


def test_texts_share_passes_as_the_plain_path_has_it():
    assert FilledPasses(Counting()).split([text(1), text(2)]) == [[0], [1]]
