"""How late-interaction models read queries and documents, and which of their tokens count."""

import numpy as np
import pytest
import torch
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.sentence_transformer.modules import LayerNorm
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import nn

from shard.encoder import PLAIN, Reading, Tokenized
from shard.encoders.heads import BLOCK_ROWS
from shard.encoders.late_interaction import FillUp, LateHead, LateTokenizer, Lengths, is_query, make_mask
from shard.encoders.text_tokenizer import TextTokenizer, TokenizerFacts
from tests.support.tiny_tokenizers import wordpiece_vocabulary, write_wordpiece_tokenizer

SIZE, MASK = 8, 4
FIXED, AT_LEAST = (FillUp(strategy, MASK, 9, attended=False) for strategy in ("fixed", "min"))
QUERY, DOCUMENT = Reading(prompt_name="query"), Reading(prompt_name="document")


@pytest.mark.parametrize(
    ("lengths", "query", "document"),
    [
        (Lengths(), None, None),
        (Lengths(16, 20), 16, 20),
        (Lengths(None, 20, FIXED), 9, 20),
        (Lengths(16, None, FIXED), 9, None),
        (Lengths(16, None, AT_LEAST), 16, None),
        (Lengths(7, 8, AT_LEAST), 9, 8),
        (Lengths(None, 8, AT_LEAST), None, 8),
    ],
)
def test_where_a_text_is_cut(lengths, query, document):
    assert (lengths.limit(is_query=True), lengths.limit(is_query=False)) == (query, document)


@pytest.mark.parametrize(
    ("name", "reads"),
    [(None, False), ("document", False), ("query", True), ("Query", True), ("s2p_query", True), ("queries", False)],
)
def test_a_query_is_what_is_asked_for_by_a_name_that_has_the_word_in_it(name, reads):
    assert is_query(Reading(prompt_name=name)) is reads


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bert")
    write_wordpiece_tokenizer(directory, wordpiece_vocabulary())
    return Tokenizer.from_file(str(directory / "tokenizer.json"))


def tokenizers(raw, lengths, most=12):
    facts = TokenizerFacts(raw.get_vocab_size(), "end", frozenset())
    return LateTokenizer(raw, facts, most, lengths), TextTokenizer(raw, facts, most)


TEXTS = ["1", "1 2 3 4 5 6", "1 2 3 4 5 6 7", "1 2 3 4 5 6 7 8", "1 2 3 4 5 6 7 8 9 1 2 3 4"]
#: The same with [CLS] and [SEP]: 3, 8, 9, 10 and 15 tokens.
COUNTS = [3, 8, 9, 10, 15]


@pytest.mark.parametrize(
    ("lengths", "limit", "query", "document"),
    [
        (Lengths(), None, 12, 12),
        (Lengths(5, 7), None, 5, 7),
        (Lengths(5, 7), 6, 5, 6),
        (Lengths(5, 7), 4, 4, 4),
        (Lengths(None, 7, FIXED), None, 9, 7),
        (Lengths(None, None, AT_LEAST), None, 12, 12),
        (Lengths(10, None, AT_LEAST), 11, 10, 11),
    ],
)
def test_texts_are_cut_by_the_least_of_the_lengths_and_short_queries_filled_up(raw, lengths, limit, query, document):
    ours, plain = tokenizers(raw, lengths)
    for reading, length in ((QUERY, query), (DOCUMENT, document), (PLAIN, document)):
        found = ours.tokenize(TEXTS, reading._replace(max_tokens=limit))
        expected = plain.tokenize(TEXTS, Reading(max_tokens=length))
        for text, one, cut, count in zip(TEXTS, found, expected, COUNTS, strict=True):
            added = max(0, 9 - len(cut.ids)) if lengths.fill_up is not None and reading is QUERY else 0
            assert one.ids == cut.ids + (MASK,) * added
            assert (one.is_query, one.expanded, one.type_ids) == (reading is QUERY, added, None)
            assert (one.original_tokens, one.truncated) == (count + added, count > length)
            assert ours.accept_ids(raw.encode(text).ids, reading._replace(max_tokens=limit)) == one


def test_added_tokens_that_all_see_are_like_any_others(raw):
    ours, _ = tokenizers(raw, Lengths(fill_up=FillUp("fixed", 7, 9, attended=True)))
    (one,) = ours.tokenize(["1"], QUERY)
    assert (one.ids[3:], one.expanded, one.is_query) == ((7,) * 6, 0, True)


def test_added_tokens_have_the_type_of_a_first_text(raw):
    raw = Tokenizer.from_str(raw.to_str())
    raw.post_processor = TemplateProcessing(single="[CLS]:1 $A:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    ours, _ = tokenizers(raw, Lengths(fill_up=FIXED))
    (one,) = ours.tokenize(["1"], QUERY)
    assert one.type_ids == (1, 1, 1, 0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize("keep", [None, [], [5, 6, 7]])
@pytest.mark.parametrize("tasks", [None, [], ["query"], ["query", "document"]])
@pytest.mark.parametrize("task", ["query", "document"])
def test_the_tokens_that_count_are_those_of_sentence_transformers(task, tasks, keep):
    module = MultiVectorMask(["a", "b"], skiplist_tasks=tasks, keep_only_token_ids=keep)
    skipped = [6, 9]
    module._skiplist_ids = torch.tensor(skipped)
    mask = make_mask(module, skipped)
    for added in (0, 2) if task == "query" else (0,):
        ids = (2, 5, 6, 7, 8, 9, 3, *[4] * added)
        attended, positions = torch.ones(1, len(ids)), torch.zeros(1, len(ids))
        if added:
            attended[0, -added:], positions[0, -added:] = 0, 1
        features = {"input_ids": torch.tensor([ids]), "attention_mask": attended}
        expected = module(features | {"query_expansion_positions": positions}, task=task)["attention_mask"][0]
        one = Tokenized(ids, len(ids), is_query=task == "query", expanded=added)
        assert mask.keep(one).tolist() == expected.tolist()


def test_without_a_mask_all_tokens_count_but_those_that_none_has_seen():
    mask = make_mask(None, [])
    assert mask.keep(Tokenized((5, 6, 7), 3)).tolist() == [True] * 3
    assert mask.keep(Tokenized((5, 6, 4, 4), 4, is_query=True)).tolist() == [True] * 4
    assert mask.keep(Tokenized((5, 6, 4, 4), 4, is_query=True, expanded=2)).tolist() == [True, True, False, False]


class Own(nn.Module):
    def forward(self, features):
        return features


def test_each_text_has_the_vectors_of_those_of_its_tokens_that_count():
    torch.manual_seed(6)
    steps = [Dense(SIZE, 5, module_input_name="token_embeddings", module_output_name="token_embeddings"),
             Normalize(module_input_name="token_embeddings")]  # fmt: skip
    module = MultiVectorMask([","])
    head = LateHead(steps, make_mask(module, [6]), SIZE)
    rows = [Tokenized(ids, len(ids)) for ids in ((2, 6, 7), (6,), (2, 7, 8, 6, 3))]
    states = torch.randn(3, 5, SIZE)
    flat = torch.cat([own[: len(row.ids)] for own, row in zip(states, rows, strict=True)])[None]
    seen = []
    steps[0].linear.register_forward_hook(lambda _module, given, _made: seen.append(len(given[0])))
    for features in ({"token_embeddings": states}, {"token_embeddings": flat}):
        found = head.run(features, rows).tokens
        assert seen.pop() == BLOCK_ROWS
        for own, row, vectors in zip(states, rows, found, strict=True):
            made = {"token_embeddings": own[: len(row.ids)][[one != 6 for one in row.ids]]}
            for step in steps:
                made = step(made)
            np.testing.assert_allclose(vectors, made["token_embeddings"].detach().numpy(), atol=1e-6)
        seen.clear()


@pytest.mark.parametrize(
    ("steps", "dimension", "normalized", "flat"),
    [
        ([], SIZE, False, True),
        ([Dense(SIZE, 5), Normalize()], 5, True, True),
        ([Dense(SIZE, 5), Dense(5, 3), LayerNorm(3)], 3, False, True),
        ([Normalize(), Dense(SIZE, 5)], 5, False, True),
        ([Dense(SIZE, 5), Own(), Normalize()], 5, True, False),
    ],
)
def test_a_head_tells_what_it_makes(steps, dimension, normalized, flat):
    head = LateHead(steps, make_mask(None, []), SIZE)
    assert (head.facts.token_dimension, head.facts.normalized, head.takes_flat_output) == (dimension, normalized, flat)
    assert (head.facts.outputs, head.facts.task, head.facts.pooling) == (("multi_vector",), "multi_vector", "none")
