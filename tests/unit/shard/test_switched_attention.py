import threading
from types import SimpleNamespace

import pytest
from torch import nn

from shard.encoder import Results, Tokenized
from shard.encoders.switched_attention import SwitchedAttention, find_sparse


class Switching(nn.Module):
    """BigBird as transformers has it, at its switch."""

    def __init__(self, kind: str = "block_sparse") -> None:
        super().__init__()
        self.config = SimpleNamespace(attention_type=kind, num_random_blocks=1, block_size=2)
        self.attention_type = kind

    def set_attention_type(self, kind: str) -> None:
        self.attention_type = kind
        self.made = nn.Linear(1, 1)


class Together:
    """Puts all texts into one pass, and keeps how the model attended."""

    def __init__(self, model: Switching) -> None:
        self.model = model
        self.passes: list[tuple[int, str]] = []

    def split(self, batch: list[Tokenized]) -> list[list[int]]:
        return [list(range(len(batch)))] if batch else []

    def run(self, rows: list[Tokenized]) -> Results:
        self.passes.append((len(rows), self.model.attention_type))
        return Results()


def texts(*lengths):
    return [Tokenized((1,) * length, length) for length in lengths]


def test_long_texts_have_passes_of_their_own_and_short_ones_share_theirs():
    path = SwitchedAttention(Together(model := Switching()), model)
    assert path.split(texts(15, 3, 14, 90)) == [[1, 2], [0], [3]]
    assert path.split(texts(15)) == [[0]]


@pytest.mark.parametrize("left", ["original_full", "block_sparse"])
def test_a_pass_finds_the_attention_of_its_length_whatever_was_before_it(left):
    model = Switching()
    model.set_attention_type(left)
    below = Together(model)
    path = SwitchedAttention(below, model)
    for rows in (texts(15), texts(14, 3), texts(15), texts(15)):
        path.run(rows)
    assert below.passes == [(1, "block_sparse"), (2, "original_full"), (1, "block_sparse"), (1, "block_sparse")]


def test_the_layers_that_a_switch_makes_for_the_time_being_take_no_memory():
    path = SwitchedAttention(Together(model := Switching()), model)
    path.run(texts(3))
    assert model.made.weight.is_meta


class Meanwhile(Together):
    """In the middle of its first pass another lane begins one, and is waited for no longer than it could take."""

    def __init__(self, model: Switching, other: threading.Thread) -> None:
        super().__init__(model)
        self.other = other

    def run(self, rows: list[Tokenized]) -> Results:
        if self.other.ident is None:
            self.other.start()
            self.other.join(0.05)
        return super().run(rows)


def test_two_lanes_have_each_the_attention_of_their_own_text():
    model = Switching()
    below = Meanwhile(model, threading.Thread(target=lambda: path.run(texts(3, 4))))
    path = SwitchedAttention(below, model)
    path.run(texts(15))
    below.other.join()
    assert below.passes == [(1, "block_sparse"), (2, "original_full")]


def test_a_model_that_a_short_text_has_been_through_is_found_all_the_same():
    body = nn.Sequential(nn.Linear(2, 2), sparse := Switching())
    body.config = sparse.config  # as a whole model has that of its parts, and switches nothing itself
    sparse.set_attention_type("original_full")
    assert find_sparse(nn.Sequential(body)) is sparse
    assert find_sparse(nn.Sequential(Switching("original_full"))) is None
