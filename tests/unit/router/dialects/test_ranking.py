"""What rankings answer when some of their texts are bad, whatever kind of model scores them."""

import asyncio
import itertools

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emb_model_provider.errors import InvalidRequestError
from emb_model_provider.messages.link import Encode, Encoded, InputError, TokenVectors
from router import planning
from router.dialects import cohere, jina, ranking, tei, vllm
from router.dialects.fields import Fields
from router.dialects.pairs import Pairs
from router.dialects.ranking import label_of, probabilities, scores
from router.dialects.seam import Answered
from router.requests import EncodeResult
from tests.support.made_up_models import KINDS, MadeUpBackend
from tests.support.statuses import make_info

GOOD = st.text("abc", min_size=1, max_size=4)
BROKEN = st.just("BAD")
WRONG = st.sampled_from(["", None, 7, True, ["a"]])
TEXTS = st.one_of(GOOD, GOOD, BROKEN, WRONG)
RANKING_KINDS = st.sampled_from(["rerank", "embed", "colbert"])
SLICES = st.lists(st.integers(1, 3), min_size=20, max_size=20)


def is_bad(text: object) -> bool:
    return not isinstance(text, str) or not text or "BAD" in text


def answer(call, kind: str, slices=()):
    """Do what handlers and service do, in slices of these sizes."""
    info = make_info(**KINDS[kind])
    request = planning.fit(call.plan(call.request, info.encoder), call.role, info.encoder)
    bounds = [0, *itertools.accumulate(slices)]
    bounds = [*(bound for bound in bounds if bound < request.count), request.count]
    parts = tuple(
        asyncio.run(
            MadeUpBackend().encode(
                kind,
                Encode(
                    request.texts[begin:end],
                    seconds=request.seconds[begin:end],
                    outputs=request.outputs,
                    partial=request.partial,
                    labels=request.labels[begin:end],
                    first_index=begin,
                ),
            )
        )
        for begin, end in itertools.pairwise(bounds)
    )
    result = EncodeResult(kind, parts, 1, ())
    return orjson.loads(b"".join(call.build(Answered(result, info.encoder, "req", 1, 0.1))))


def score_alone(kind: str, first: str, second: str) -> float:
    body = Fields({"text_1": first, "text_2": [second]})
    (item,) = answer(vllm.parse_score(body), kind)["data"]
    return pytest.approx(item["score"], abs=1e-6)


@settings(max_examples=60)
@given(kind=RANKING_KINDS, query=GOOD, documents=st.lists(TEXTS, min_size=1, max_size=12), slices=SLICES)
def test_bad_documents_have_their_errors_at_their_indexes_and_good_ones_their_scores(kind, query, documents, slices):
    body = {"query": query, "documents": documents, "on_error": "null", "usage_details": True}
    if all(not isinstance(one, str) or not one for one in documents):
        with pytest.raises(InvalidRequestError, match=r"'documents\[0\]'"):
            jina.parse_rerank(Fields(body))
        return
    made = answer(jina.parse_rerank(Fields(body)), kind, slices)
    bad = [index for index, one in enumerate(documents) if is_bad(one)]
    assert [error["index"] for error in made.get("errors", [])] == bad
    assert sorted(one["index"] for one in made["results"]) == [
        index for index in range(len(documents)) if index not in bad
    ]
    for one in made["results"]:
        assert one["document"]["text"] == documents[one["index"]]
        assert one["relevance_score"] == score_alone(kind, query, documents[one["index"]])
    ranked = [one["relevance_score"] for one in made["results"]]
    assert ranked == sorted(ranked, reverse=True)
    details = made["usage"]["details"]
    assert len(details) == len(documents)
    assert all(
        (detail["tokens"] == 0) == (one in ("", None, 7, True, ["a"]))
        for detail, one in zip(details, documents, strict=True)
    )
    v2 = answer(cohere.parse_rerank_v2(Fields(body)), kind, slices)
    assert [error["index"] for error in v2.get("errors", [])] == bad
    bare = answer(tei.parse_rerank(Fields({"query": query, "texts": documents, "on_error": "null"})), kind, slices)
    assert sorted(one["index"] for one in bare) == sorted(one["index"] for one in made["results"])


@settings(max_examples=60)
@given(kind=RANKING_KINDS, pairs=st.lists(st.tuples(TEXTS, TEXTS), min_size=2, max_size=12), slices=SLICES)
def test_a_pair_is_scored_where_both_of_its_texts_are_good(kind, pairs, slices):
    firsts, seconds = [list(side) for side in zip(*pairs, strict=True)]
    body = Fields({"text_1": firsts, "text_2": seconds, "on_error": "null"})
    wrong = [any(not isinstance(one, str) or not one for one in pair) for pair in pairs]
    if all(wrong):
        with pytest.raises(InvalidRequestError, match=r"'text_[12]\[0\]'"):
            vllm.parse_score(body)
        return
    data = answer(vllm.parse_score(body), kind, slices)["data"]
    assert [one["index"] for one in data] == list(range(len(pairs)))
    bad = [is_bad(first) or is_bad(second) for first, second in pairs]
    assert ["error" in one for one in data] == bad
    assert [one["score"] is None for one in data] == bad
    for one, (first, second) in zip(data, pairs, strict=True):
        if one["score"] is not None:
            assert one["score"] == score_alone(kind, first, second)


def test_what_goes_wrong_with_a_text_is_told_by_the_name_it_has_in_the_request():
    body = {"query": "a", "documents": ["", "b", "c"], "on_error": "null"}
    call = jina.parse_rerank(Fields(body))
    assert call.request.labels == ("input 1", "input 2")
    planned = call.plan(call.request, make_info(**KINDS["embed"]).encoder)
    assert planned.labels == ("the query", "input 1", "input 2")
    assert (planned.sent, planned.count) == (3, 3)


def test_what_goes_wrong_with_a_first_text_of_several_is_told_by_its_place_and_one_of_two_equal_is_read_once():
    body = {"text_1": ["a", "b", "a"], "text_2": ["x", "y", "z"]}
    call = vllm.parse_score(Fields(body))
    planned = call.plan(call.request, make_info(**KINDS["embed"]).encoder)
    assert planned.texts == ("a", "b", "x", "y", "z")
    assert planned.labels == ("first text 0", "first text 1", "input 0", "input 1", "input 2")


def test_a_model_that_tells_two_classes_apart_gives_no_single_score():
    call = vllm.parse_score(Fields({"text_1": "a", "text_2": "b"}))
    one, two = (make_info(**KINDS["rerank"] | {"labels": ("no", "yes")[:count]}).encoder for count in (1, 2))
    assert call.plan(call.request, one) == call.request
    with pytest.raises(InvalidRequestError, match="tells 2 classes apart"):
        call.plan(call.request, two)


@pytest.mark.parametrize("prompts", [("query",), ("document",), ()])
def test_where_a_model_of_token_vectors_has_but_one_of_two_prompts_neither_text_has_one(prompts):
    call = vllm.parse_score(Fields({"text_1": "a", "text_2": "b"}))
    planned = call.plan(call.request, make_info(**KINDS["colbert"] | {"prompts": prompts}).encoder)
    assert (planned.prompt, planned.prompt_name, planned.queries) == ("", None, call.request.queries)


@pytest.mark.parametrize("kind", ["colbert", "embed"])
def test_where_texts_take_different_ways_the_first_is_a_query_and_the_others_are_documents(kind):
    call = vllm.parse_score(Fields({"text_1": "a", "text_2": "b"}))
    names = ("query", "document")
    planned = call.plan(call.request, make_info(**KINDS[kind] | {"prompts": names, "routes": names}).encoder)
    assert [planned.prompt_name_of(index) for index in range(2)] == ["query", "document"]
    assert planned.prompt is None


def test_of_a_text_that_was_wrong_in_the_body_nothing_was_read_and_nothing_cut():
    body = {"query": "a", "documents": ["", "b"], "on_error": "null", "usage_details": True}
    details = answer(jina.parse_rerank(Fields(body)), "rerank")["usage"]["details"]
    assert details[0] == {"tokens": 0, "original_tokens": 0, "truncated": False}


def test_a_bad_query_is_everybodys_error():
    with pytest.raises(InvalidRequestError, match="'query' is an empty string"):
        jina.parse_rerank(Fields({"query": "", "documents": ["a"], "on_error": "null"}))
    made = answer(jina.parse_rerank(Fields({"query": "BAD", "documents": ["a", "b"], "on_error": "null"})), "embed")
    assert [error["index"] for error in made["errors"]] == [0, 1]
    assert made["results"] == []


def late_scores(counts, errors=()):
    """Return the scores of a query and documents of so many tokens each, all of them alike, and the pauses made."""
    vectors = np.ones((sum(counts), 4), dtype="<f4")
    tokens = TokenVectors(vectors.tobytes(), 4, counts)
    part = Encoded(b"", 0, (1,) * len(counts), token_vectors=tokens, errors=errors)
    encoder = make_info(**KINDS["colbert"]).encoder
    steps = scores(Answered(EncodeResult("m", (part,), 0, ()), encoder, "", 0, 0.0), Pairs(("a",), ("b", "c", "d")))
    pauses = 0
    while True:
        try:
            assert next(steps) == b""
        except StopIteration as done:
            return done.value.tolist(), pauses
        pauses += 1


def test_a_text_without_any_token_vector_scores_0_and_one_with_an_error_not_at_all():
    assert late_scores((2, 3, 0, 1))[0] == [8.0, 0.0, 8.0]
    assert late_scores((0, 3, 0, 1))[0] == [0.0, 0.0, 0.0]
    error = InputError(2, 500, "server_error", None, "no")
    assert np.isnan(late_scores((2, 3, 0, 1), (error,))[0]).tolist() == [False, True, False]


@pytest.mark.parametrize(("step", "pauses"), [(7, 3), (8, 1), (15, 1), (23, 1), (24, 0)])
def test_others_have_a_turn_after_so_many_products(monkeypatch, step, pauses):
    monkeypatch.setattr(ranking, "_PRODUCTS_A_STEP", step)
    assert late_scores((2, 1, 1, 1)) == ([8.0] * 3, pauses)


async def test_a_model_that_embeds_ranks_by_vectors_of_length_1_whatever_else_it_makes(ask, backend):
    await ask("/v1/rerank", model="m3", query="a", documents=["b"], normalize=False)
    await ask("/v1/rerank", model="colbert", query="a", documents=["b"], normalize=True)
    assert [(one.outputs, one.normalize) for one in backend.seen] == [
        (("dense",), True),
        (("multi_vector",), None),
        (("multi_vector",), None),
    ]


async def test_a_prompt_that_is_named_stands_before_query_and_documents(ask, backend):
    await ask("/v1/rerank", model="embed", query="a", documents=["b"], prompt_name="query")
    assert [(one.texts, one.prompt_name, one.prompt) for one in backend.seen] == [(("a", "b"), "query", None)]


async def test_a_model_of_sparse_vectors_ranks_nothing(refuse):
    status, error = await refuse("/v1/rerank", model="splade", query="a", documents=["b"])
    assert (status, error["message"]) == (400, "This model makes nothing that texts can be ranked by.")


@pytest.mark.parametrize("partial", [{}, {"on_error": "null"}])
@pytest.mark.parametrize(
    ("fields", "param", "sentence"),
    [
        ({"text_1": [], "text_2": ["a"]}, "text_1", "'text_1' is empty"),
        ({"text_1": "a", "text_2": []}, "text_2", "'text_2' is empty"),
        ({"text_1": ["a", "b"], "text_2": ["a"]}, "text_1", "'text_1' has 2 texts and 'text_2' 1"),
        ({"text_1": ["a"] * 3, "text_2": ["a"] * 2}, "text_1", "'text_1' has 3 texts and 'text_2' 2"),
        ({"text_1": [""], "text_2": ["a", "b"]}, "text_1", "'text_1[0]' is an empty string"),
        ({"text_1": [1], "text_2": ["a", "b"]}, "text_1", "'text_1[0]' must be a string"),
    ],
)
async def test_pairs_that_do_not_fit_each_other_are_refused(refuse, fields, param, sentence, partial):
    status, error = await refuse("/score", model="rerank", **fields, **partial)
    assert (status, error["error"]["param"]) == (400, param)
    assert error["error"]["message"].startswith(sentence)


@pytest.mark.parametrize(
    ("text_1", "text_2", "named"),
    [(["", "a"], ["a", ""], "text_1[0]"), (["a", 1], ["", "b"], "text_2[0]"), ("a", ["", ""], "text_2[0]")],
)
async def test_pairs_none_of_which_can_be_scored_are_refused_with_the_first_error(refuse, text_1, text_2, named):
    status, error = await refuse("/score", model="rerank", text_1=text_1, text_2=text_2, on_error="null")
    assert (status, error["error"]["message"].split(":")[0]) == (400, f"'{named}' is an empty string")


async def test_without_on_error_one_bad_document_fails_the_request(refuse):
    status, error = await refuse("/score", model="rerank", text_1="a", text_2=["a", ""])
    assert (status, error["error"]["message"].split(":")[0]) == (400, "'text_2[1]' is an empty string")


def test_a_list_longer_than_any_server_takes_is_refused_before_it_is_gone_through(monkeypatch):
    monkeypatch.setattr("router.dialects.pairs.MAX_INPUTS", 2)
    for body in ({"text_1": "a", "text_2": ["a"] * 3}, {"text_1": ["a"] * 3, "text_2": ["a"] * 3}):
        for partial in ({}, {"on_error": "null"}):
            with pytest.raises(InvalidRequestError, match="holds 3 items; at most 2"):
                vllm.parse_score(Fields(body | partial))


@pytest.mark.parametrize(
    ("logits", "activation", "options", "made"),
    [
        ([[0.0]], "identity", {"raw": False}, [[0.0]]),
        ([[0.0]], "identity", {"raw": False, "always": True}, [[0.5]]),
        ([[0.0, 0.0]], "identity", {"raw": False}, [[0.0, 0.0]]),
        ([[0.0, 0.0]], "identity", {"raw": False, "always": True}, [[0.5, 0.5]]),
        ([[0.0, 0.0]], "sigmoid", {"raw": False, "always": True}, [[0.5, 0.5]]),
        ([[0.0, 200.0]], "softmax", {"raw": False}, [[0.0, 1.0]]),
        ([[300.0, 300.0], [0.0, 300.0]], "softmax", {"raw": False}, [[0.5, 0.5], [0.0, 1.0]]),
        ([[300.0, 300.0], [0.0, 0.0]], "softmax", {"raw": False}, [[0.5, 0.5], [0.5, 0.5]]),
        ([[200.0, 0.0]], "identity", {"raw": False, "always": True}, [[1.0, 0.0]]),
        ([[200.0, 0.0]], "sigmoid", {"raw": False, "always": True}, [[1.0, 0.5]]),
        ([[0.0]], "softmax", {"raw": False}, [[0.5]]),
        ([[-300.0]], "sigmoid", {"raw": False}, [[0.0]]),
        ([[7.0, 3.0]], "softmax", {"raw": True, "always": True}, [[7.0, 3.0]]),
    ],
)
def test_scores_of_classes_are_what_the_models_activation_makes_of_them(logits, activation, options, made):
    encoder = make_info(activation=activation).encoder
    rows = probabilities(np.array(logits, dtype=np.float32), encoder, **options)
    assert rows.dtype == np.float32
    assert rows.tolist() == [pytest.approx(row) for row in made]


def test_a_class_without_a_name_has_transformers_name():
    encoder = make_info(labels=("no", "yes")).encoder
    assert [label_of(encoder, index) for index in range(3)] == ["no", "yes", "LABEL_2"]
