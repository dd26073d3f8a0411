"""What is done to a late-interaction model's modules, held against sentence-transformers' own loading."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer
from torch import nn
from transformers import AddedToken, PreTrainedTokenizerFast

from emb_model_provider.errors import LoadError, LoadReason
from shard.encoders.late_interaction import FillUp, Lengths
from shard.encoders.late_modules import complete_modules, read_lengths, register_markers, skipped_ids
from shard.model_files.late_files import LateFiles
from tests.support.tiny_tokenizers import wordpiece_vocabulary, write_wordpiece_tokenizer

SIZE = 8
SPECIAL = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "cls", "sep", "mask", "pad")}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bert")
    write_wordpiece_tokenizer(directory, [*wordpiece_vocabulary(), "[unused0]", "[unused1]"])
    return str(directory / "tokenizer.json")


def tokenizer_of(file, *added, **special):
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_file(file), **SPECIAL | special)
    made.add_tokens([AddedToken(text, normalized=True) for text in added])
    return made


@pytest.mark.parametrize(
    ("markers", "added"),
    [
        (("[unused0]", "[unused1]"), ()),
        (("[unused0] ", "[unused1] "), ()),
        (("[Q] ", "[D] "), ("[Q] ", "[D] ")),
        (("[Q] ", "[D] "), ("[Q]", "[D]")),
        (("[Q] ", "[D] "), ("[Q] ", "[D] ", "[Q]")),
        (("[Q] ", "[D] "), ()),
        (("the ", ""), ()),
        (("  ", "The "), ("The",)),
        (("[unused0] find", "[unused1]x"), ("[unused1]x",)),
    ],
)
def test_markers_are_read_as_sentence_transformers_reads_them(file, markers, added):
    ours, theirs = tokenizer_of(file, *added), tokenizer_of(file, *added)
    register_markers(ours, markers)
    MultiVectorEncoder._register_prefix_tokens(SimpleNamespace(tokenizer=theirs), dict(enumerate(markers)))
    assert ours.get_added_vocab() == theirs.get_added_vocab()
    assert ours.all_special_ids == theirs.all_special_ids
    for marker in markers:
        for text in (f"{marker}the weather", f"{marker}[Q]", f"a {marker}"):
            assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    assert str(ours.added_tokens_decoder) == str(theirs.added_tokens_decoder)


@pytest.mark.parametrize(
    ("words", "unknown"),
    [
        ((), "[UNK]"),
        ((",", "的", "no such word", "."), "[UNK]"),
        (("[UNK]", "no such word"), "[UNK]"),
        (("no such word",), "[UNK]"),
        ((",", "[PAD]"), None),
    ],
)
def test_words_that_are_skipped_are_those_of_sentence_transformers(file, words, unknown):
    tokenizer, mask = tokenizer_of(file, unk_token=unknown), MultiVectorMask(list(words))
    mask.resolve_with_tokenizer(tokenizer)
    expected = [] if mask._skiplist_ids is None else mask._skiplist_ids.tolist()
    assert skipped_ids(tokenizer, mask) == expected


def asked(file, expansion, query=None, document=None, **special):
    made = SimpleNamespace(tokenizer=tokenizer_of(file, **special), query_expansion=expansion)
    made.query_length, made.document_length = query, document
    return read_lengths(made)


def test_lengths_and_what_queries_are_filled_up_with_are_those_of_the_transformer(file):
    ids = tokenizer_of(file).get_vocab()
    said = {"strategy": "min", "attend": False, "token": None, "length": 24}
    assert asked(file, None, 16, 20) == Lengths(16, 20)
    assert asked(file, said, 40, 20) == Lengths(40, 20, FillUp("min", ids["[MASK]"], 24, attended=False))
    own = said | {"token": "[SEP]", "attend": True, "strategy": "fixed"}
    assert asked(file, own).fill_up == FillUp("fixed", ids["[SEP]"], 24, attended=True)
    assert asked(file, said, mask_token=None, eos_token="[SEP]").fill_up.token == ids["[SEP]"]
    assert asked(file, said, mask_token="[PAD]", eos_token="[SEP]").fill_up.token == ids["[PAD]"] == 0
    assert read_lengths(nn.Identity()) == Lengths()


def transformer_of(file):
    made = Transformer.__new__(Transformer)
    nn.Module.__init__(made)
    made.processor = SimpleNamespace(tokenizer=tokenizer_of(file))
    made.query_length = made.document_length = None
    made._query_expansion = None
    return made


EXPANSION = (("strategy", "fixed"), ("attend", True), ("length", 16))


@pytest.mark.parametrize("said", [set(), {"query_expansion"}, {"query_length"}, {"document_length"}])
@pytest.mark.parametrize(
    "late",
    [
        LateFiles(
            (), lengths=(("query_length", 40), ("document_length", 20)), says_expansion=True, expansion=EXPANSION
        ),
        LateFiles((), lengths=(("document_length", 20),), says_expansion=True),
        LateFiles((), expansion=EXPANSION),
    ],
)
def test_what_the_transformers_own_file_says_counts_before_the_other_files(file, tmp_path, late, said):
    transformer = transformer_of(file)
    transformer.query_length, transformer.document_length = 30, 31
    transformer.query_expansion = {"strategy": "min", "attend": False, "length": 17}
    (found,) = complete_modules([transformer], late, tmp_path, said)
    lengths = dict(late.lengths)
    assert found.query_length == (30 if "query_length" in said else lengths.get("query_length", 30))
    assert found.document_length == (31 if "document_length" in said else lengths.get("document_length", 31))
    if "query_expansion" in said or not late.says_expansion:
        assert found.query_expansion["length"] == 17
    elif late.expansion is None:
        assert found.query_expansion is None
    else:
        assert found.query_expansion == {"strategy": "fixed", "attend": True, "length": 16, "token": None}


def test_of_a_model_with_modules_of_its_own_nothing_is_put_behind_them(file, tmp_path):
    dense, norm = Dense(SIZE, 4, module_input_name="sentence_embedding"), Normalize()
    _, *following = complete_modules([transformer_of(file), dense, norm], LateFiles(()), tmp_path, set())
    assert following == [dense, norm]
    assert (dense.module_input_name, dense.module_output_name) == ("token_embeddings", "token_embeddings")
    assert complete_modules([transformer_of(file)], LateFiles(()), tmp_path, set())[1:] == []


def test_a_bare_model_is_given_a_mask_and_a_normalisation_in_place_of_its_pooling(file, tmp_path):
    transformer, dense = transformer_of(file), Dense(SIZE, 4)
    late = LateFiles((), markers=("[unused0] ",), skiplist=(",", "."), is_bare=True)
    found = complete_modules([transformer, Pooling(SIZE), dense, Normalize()], late, tmp_path, set())
    assert [type(step) for step in found] == [Transformer, Dense, MultiVectorMask, Normalize]
    assert (found[1], found[2].skiplist_words, found[3].module_input_name) == (dense, [",", "."], "token_embeddings")
    assert "[unused0]" in transformer.tokenizer.all_special_tokens
    with pytest.raises(LoadError, match="random one") as caught:
        complete_modules([transformer_of(file), Pooling(SIZE), Normalize()], late, tmp_path, set())
    assert caught.value.reason is LoadReason.UNSUPPORTED_MODEL


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_stanfords_projection_lies_among_the_weights(file, tmp_path, name, dtype):
    weight = torch.randn(3, SIZE, dtype=dtype)
    (save_file if name.endswith("s") else torch.save)({"linear.weight": weight, "x": weight + 1}, tmp_path / name)
    late = LateFiles((), is_bare=True, is_stanford=True)
    states = torch.randn(2, 5, SIZE)
    _, dense, mask, norm = complete_modules([transformer_of(file)], late, tmp_path, set())
    features = norm(dense({"token_embeddings": states}))
    expected = nn.functional.normalize(states @ weight.float().T, dim=-1)
    torch.testing.assert_close(features["token_embeddings"], expected)
    assert (type(mask), dense.get_embedding_dimension()) == (MultiVectorMask, 3)


def test_stanfords_model_without_its_projection_is_refused(file, tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(LoadError, match=r"no linear\.weight") as caught:
        complete_modules([transformer_of(file)], LateFiles((), is_bare=True, is_stanford=True), tmp_path, set())
    assert caught.value.reason is LoadReason.WRONG_WEIGHTS
