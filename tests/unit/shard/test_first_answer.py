import numpy as np
import pytest

from emb_model_provider.errors import LoadError, LoadReason
from shard.encoder import Results, SparseRow
from shard.loading.first_answer import refuse_bad_answers
from tests.support.fake_encoder import FakeEncoder


class Answering(FakeEncoder):
    def __init__(self, rows, **info):
        super().__init__()
        self.info = self.info.replace(**info)
        self._rows = np.array(rows, dtype=np.float32)

    def tokenize(self, texts, reading=None, seconds=()):
        self.seconds, self.outputs = seconds, reading.outputs
        return super().tokenize(texts)

    def encode(self, batch):
        return Results(rows=self._rows)


class Sparse(Answering):
    def __init__(self, weight):
        super().__init__([], task="sparse", outputs=("sparse",))
        self._weight = np.array([weight], np.float32)

    def encode(self, batch):
        return Results(sparse=[SparseRow(np.array([7], np.uint32), self._weight)] * 2)


def test_a_model_that_answers_as_it_says_is_served():
    refuse_bad_answers(FakeEncoder())
    reranker = Answering([[0.5], [0.1]], task="rerank", outputs=("scores",), labels=("LABEL_0",))
    refuse_bad_answers(reranker)
    assert reranker.seconds, "a reranker is asked for pairs"
    assert reranker.outputs == ("scores",)
    embedder = Answering([[0, 1, 2, 3]] * 2)
    refuse_bad_answers(embedder)
    assert not embedder.seconds


def test_a_model_without_rows_is_asked_for_what_it_gives_and_that_must_be_finite():
    refuse_bad_answers(sparse := Sparse(1.0))
    assert sparse.outputs == ("sparse",)
    with pytest.raises(LoadError, match="NaN or infinity"):
        refuse_bad_answers(Sparse(np.nan))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([[0, 1, 2, np.nan], [0, 1, 2, 3]], "NaN or infinity"),
        ([[0, 1, 2, np.inf], [0, 1, 2, 3]], "NaN or infinity"),
        ([[0, 1, 2], [0, 1, 2]], "shape"),
        ([[0, 1, 2, 3]], "shape"),
    ],
)
def test_numbers_that_are_not_finite_or_not_of_the_announced_shape_are_refused(rows, words):
    with pytest.raises(LoadError, match=words) as caught:
        refuse_bad_answers(Answering(rows))
    assert caught.value.reason is LoadReason.BAD_VECTORS
