"""What rankings answer when some of their texts are bad, whatever kind of model scores them."""

import asyncio
import itertools

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emb_model_provider.errors import InvalidRequestError
from emb_model_provider.messages import Encode
from router import planning
from router.dialects import cohere, jina, tei, vllm
from router.dialects.fields import Fields
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


def test_a_bad_query_is_everybodys_error():
    with pytest.raises(InvalidRequestError, match="'query' is an empty string"):
        jina.parse_rerank(Fields({"query": "", "documents": ["a"], "on_error": "null"}))
    made = answer(jina.parse_rerank(Fields({"query": "BAD", "documents": ["a", "b"], "on_error": "null"})), "embed")
    assert [error["index"] for error in made["errors"]] == [0, 1]
    assert made["results"] == []
