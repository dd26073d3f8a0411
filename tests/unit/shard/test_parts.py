"""What a loaded model says of its lengths and its vocabulary, and of which no file has all."""

from types import SimpleNamespace

import pytest
from sentence_transformers.base.modules import Transformer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import PreTrainedTokenizerFast

from emb_model_provider.errors import LoadError, LoadReason
from shard.loading.lengths import max_tokens, own_length
from shard.loading.tokenizers import check_vocabulary, vocabulary_size
from shard.model_files.recipe import Recipe

UNSTATED = int(1e30)  # as transformers writes it
#: What is computed has no table: rotations have their buffer, distances a word in the config.
ROTATIONS, DISTANCES, RELATIVE = "rotations", "distances", "relative"


class Model(nn.Module):
    """A transformer as far as its lengths go."""

    def __init__(self, own: int, positions: int | None, kind: str | int = RELATIVE) -> None:
        super().__init__()
        self.tokenizer = SimpleNamespace(model_max_length=own)
        self.config = SimpleNamespace(max_position_embeddings=positions, relative_attention=kind == DISTANCES)
        if kind == ROTATIONS:
            self.rotary = nn.Module()
            self.rotary.register_buffer("inv_freq", nn.Parameter().data)
        if isinstance(kind, int):
            self.embeddings = nn.Module()
            self.embeddings.position_embeddings = nn.Embedding(kind, 2)
            self.embeddings.padding_idx = 1
            # BERT's kin may name a buffer as they like: the table has the say.
            self.embeddings.register_buffer("inv_freq", nn.Parameter().data)


@pytest.mark.parametrize(
    ("model", "asked", "expected", "said"),
    [
        (Model(64, 512), None, 64, []),
        (Model(64, 512), 128, 128, []),
        (Model(64, 512), 512, 512, []),
        (Model(64, 512), 513, 512, ["max_length_capped"]),
        (Model(1024, 512), None, 512, []),
        (Model(64, None), 100_000, 100_000, []),
        (Model(64, 0), 100_000, 100_000, []),
        (Model(UNSTATED, None), None, 8192, ["max_length_unstated"]),
        (Model(UNSTATED, 512), None, 512, []),
        (Model(UNSTATED, None), 10_000, 10_000, []),
        (Model(1024, 2048, 514), None, 512, []),
        (Model(1024, 2048, 514), 512, 512, []),
        (Model(1024, 2048, 514), 513, 512, ["max_length_capped"]),
        (Model(1024, 512, ROTATIONS), None, 1024, []),
        (Model(1024, 512, DISTANCES), None, 1024, []),
        (Model(64, 512, ROTATIONS), 300, 300, []),
        (Model(64, 512, ROTATIONS), 600, 512, ["max_length_capped"]),
        (Model(UNSTATED, 512, ROTATIONS), None, 512, []),
        (Model(UNSTATED, 512, ROTATIONS), 600, 512, ["max_length_capped"]),
    ],
)
def test_a_text_is_cut_as_asked_or_as_the_files_say_and_never_beyond_the_positions(
    model, asked, expected, said, caplog
):
    assert max_tokens(model, Recipe("transformers", max_length=asked)) == expected
    assert caplog.messages == said


@pytest.mark.parametrize("own", [0, -1])
def test_a_length_that_leaves_nothing_of_a_text_is_unsupported_unless_another_is_set(own):
    with pytest.raises(LoadError, match=f"its files state a length of {own} tokens: set max_length") as caught:
        max_tokens(Model(own, 512), Recipe("transformers"))
    assert caught.value.reason is LoadReason.UNSUPPORTED_MODEL
    assert max_tokens(Model(own, 512), Recipe("transformers", max_length=64)) == 64


@pytest.mark.parametrize(
    ("options", "length"),
    [({}, 99), ({"text": {"max_length": 7}}, 7), ({"common": {"max_length": 8}}, 8), ({"text": {}, "common": {}}, 99),
     ({"text": {"max_length": 7}, "common": {"max_length": 8}}, 8), ({"text": {"max_length": None}}, 99)],
)  # fmt: skip
def test_a_length_that_the_files_of_a_module_name_counts_more_than_the_tokenizers(options, length):
    transformer = Transformer.__new__(Transformer)
    nn.Module.__init__(transformer)
    transformer.processing_kwargs = options
    transformer.processor = SimpleNamespace(tokenizer=SimpleNamespace(model_max_length=99))
    assert own_length(transformer) == length


@pytest.mark.parametrize(("said", "length"), [({"max_seq_length": 7}, 7), ({"max_seq_length": None}, 99), ({}, 99)])
def test_a_length_that_a_module_of_the_models_own_names_counts_more_than_the_tokenizers(said, length):
    assert own_length(SimpleNamespace(tokenizer=SimpleNamespace(model_max_length=99), **said)) == length


def tokenizer_of(*words: str, added: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    backend = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    backend.add_tokens(list(added))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]")


@pytest.mark.parametrize("words", [("[UNK]", "[PAD]"), ("[UNK]", "[PAD]", "▁"), ("[UNK]",)])
@pytest.mark.parametrize("added", [(), ("more",)])
def test_a_vocabulary_of_special_tokens_alone_is_a_copy_that_is_not_complete(words, added):
    with pytest.raises(LoadError, match="holds no vocabulary") as caught:
        check_vocabulary(tokenizer_of(*words, added=added))
    assert caught.value.reason is LoadReason.INCOMPLETE_DOWNLOAD


@pytest.mark.parametrize("words", [("[UNK]", "a"), ("[UNK]", "[PAD]", "a"), ("[UNK]", "[PAD]", "▁", "a", "b")])
def test_a_vocabulary_of_few_words_is_one(words):
    check_vocabulary(tokenizer_of(*words))


@pytest.mark.parametrize(("rows", "size"), [(2, 2), (3, 3), (9, 3), (None, 3)])
def test_an_id_is_of_use_that_is_both_in_the_tokenizer_and_in_the_table(rows, size):
    table = nn.Embedding(rows, 2) if rows else None
    model = SimpleNamespace(get_input_embeddings=lambda: table)
    tokenizer = tokenizer_of("[UNK]", "[PAD]", "a")
    assert vocabulary_size(SimpleNamespace(tokenizer=tokenizer, model=model)) == size
    assert vocabulary_size(SimpleNamespace(tokenizer=tokenizer)) == 3
