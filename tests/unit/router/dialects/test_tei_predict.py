"""Classes at ``/predict`` and at the bare address, and what the bare address makes of other bodies."""

import math

import pytest

from tests.support.made_up_models import dense_of, make_app


def sigmoid(logit: float) -> float:
    return pytest.approx(1 / (1 + math.exp(-logit)))


async def test_a_reranker_predicts_one_score_between_0_and_1_whatever_its_own_activation(ask):
    assert await ask("/predict", model="rerank", inputs=["abc", "ab"]) == [{"score": sigmoid(-1), "label": "LABEL_0"}]
    raw = await ask("/predict", model="rerank", inputs=["abc", "ab"], raw_scores=True)
    assert raw == [{"score": -1.0, "label": "LABEL_0"}]


@pytest.mark.parametrize(
    ("inputs", "where"),
    [
        ([["a"], ["b", 1]], "'inputs[1]'"),
        ([["a"], ["b", ""]], "'inputs[1]'"),
        ([["a"], []], "'inputs[1]'"),
        (["a", ""], "'inputs'"),
        (["a", 1], "'inputs'"),
        ({"a": "b"}, "'inputs'"),
        ("", "'inputs'"),
        (None, "'inputs'"),
    ],
)
async def test_what_is_no_text_is_refused_by_its_place(refuse, inputs, where):
    status, error = await refuse("/predict", model="classify", inputs=inputs)
    assert status == 422
    assert error["error"].startswith(where + " ")


@pytest.mark.parametrize("inputs", [[[""], ["a", 1]], [[""]], ""])
async def test_a_partial_request_without_a_good_input_is_refused(refuse, inputs):
    status, error = await refuse("/predict", model="classify", inputs=inputs, on_error="null")
    assert (status, error["error_type"]) == (422, "Validation")


async def test_a_bad_input_is_named_by_its_place_in_the_request_also_where_others_were_bad_before_it(ask, backend):
    await ask("/predict", model="classify", inputs=[[""], ["a"], ["b"]], on_error="null")
    assert backend.seen[-1].labels == ("input 1", "input 2")


async def test_a_kind_of_input_that_is_none_is_refused(refuse):
    for path in ("/predict", "/models/classify", "/models/embed"):
        status, error = await refuse(path, model="classify", inputs="a", input_type="nonsense")
        assert (status, error["error"].split(" is ")[0]) == (422, "'nonsense'")


async def test_the_bare_address_answers_one_input_with_one_list_and_others_with_a_list_of_lists(ask):
    raw = [{"score": 2.0, "label": "no"}, {"score": 0.0, "label": "maybe"}, {"score": -2.0, "label": "yes"}]
    assert await ask("/models/classify", inputs="abcde", raw_scores=True) == raw
    assert await ask("/models/classify", inputs=["abcde"], raw_scores=True) == [raw]
    assert await ask("/models/classify", inputs="abcde", raw_scores=True, parameters={}) == [raw]


@pytest.mark.parametrize(
    ("function", "scores"),
    [
        ("sigmoid", [1 / (1 + math.exp(-2)), 0.5, 1 / (1 + math.exp(2))]),
        ("softmax", [math.exp(logit) / (math.exp(2) + 1 + math.exp(-2)) for logit in (2, 0, -2)]),
        ("NONE", [2, 0, -2]),
    ],
)
async def test_the_bare_address_applies_the_function_that_is_asked_for(ask, function, scores):
    (row,) = await ask("/models/classify", inputs="abcde", parameters={"function_to_apply": function})
    assert [one["score"] for one in row] == pytest.approx(scores)


async def test_the_bare_address_leaves_length_and_kind_of_input_to_the_model_or_the_client(ask, backend):
    await ask("/models/embed", inputs="a", normalize=False, input_type="query")
    assert (backend.seen[-1].normalize, backend.seen[-1].prompt_name) == (False, "query")
    for kind in ("splade", "classify"):
        await ask(f"/models/{kind}", inputs="a", normalize=True)
        assert backend.seen[-1].normalize is None


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"texts": ["a"]}, "'query' is required"),
        ({"query": "a"}, "'texts' must be a list of strings"),
        ({"inputs": [[]]}, "'inputs[0]' is an empty list"),
        ({"inputs": [["a"], []]}, "'inputs[1]' must be a list of one or two strings"),
        ({"inputs": [[], ["a"]]}, "'inputs[0]' must be a list of one or two strings"),
        ({"inputs": [[1, "a"]]}, "'inputs[0][1]' must be a token id"),
        ({}, "'inputs' is required"),
    ],
)
async def test_the_bare_address_says_what_is_wrong_with_what_the_body_seems_to_be(refuse, body, sentence):
    status, error = await refuse("/models/classify", **body)
    assert status == 422
    assert error["error"].startswith(sentence)


async def test_pairs_at_the_bare_address_are_not_for_a_model_that_embeds(refuse):
    status, error = await refuse("/models/embed", inputs=[["a", "b"]])
    assert status == 422
    assert "embeds texts and has no scores output" in error["error"]


async def test_where_models_of_several_kinds_are_served_the_bare_address_means_the_one_that_embeds(aiohttp_client):
    client = await aiohttp_client(make_app("rerank", "splade", "classify", "embed"))
    assert await (await client.post("/", json={"inputs": "a"})).json() == [pytest.approx(dense_of("a"))]
    client = await aiohttp_client(make_app("rerank", "splade", "classify"))
    assert (await (await client.post("/", json={"inputs": "a"})).json())[0]["label"] == "yes"
