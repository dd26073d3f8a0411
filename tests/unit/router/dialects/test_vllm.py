import math

import pytest

from tests.support.made_up_models import KINDS, make_app


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
async def test_one_text_is_scored_with_several(ask, path):
    answer = await ask(path, model="rerank", text_1="abc", text_2=["abc", "a"])
    assert answer["data"] == [
        {"index": 0, "object": "score", "score": 0.0},
        {"index": 1, "object": "score", "score": -2.0},
    ]
    assert (answer["object"], answer["model"]) == ("list", "rerank")
    assert answer["created"] > 0


async def test_pairs_are_scored_one_with_one_by_every_kind_of_model(ask, backend):
    for model, expected in (("rerank", [-2.0, -1.0]), ("embed", [1.0, 1.0]), ("colbert", [1.0, 2.0])):
        answer = await ask("/score", model=model, queries=["a", "bc"], documents=["a", "bc"])
        assert [one["score"] for one in answer["data"]] == pytest.approx(expected)
    assert backend.seen[1].texts == ("a", "bc", "a", "bc")


async def test_a_bad_text_of_a_partial_request_has_its_error_at_every_pair_it_is_in(ask):
    answer = await ask("/score", model="embed", text_1=["a", "BAD", "a"], text_2=["a", "b", "BADLY"], on_error="null")
    assert [one["score"] is None for one in answer["data"]] == [False, True, True]
    assert ["error" in one for one in answer["data"]] == [False, True, True]


async def test_classes_with_their_probabilities(ask):
    answer = await ask("/classify", model="classify", input=["abcde", "a"])
    sums = [math.exp(2), 1, math.exp(-2)]
    assert answer["data"][0]["label"] == "no"
    assert answer["data"][0]["probs"] == pytest.approx([one / sum(sums) for one in sums], rel=1e-5)
    assert (answer["data"][1]["label"], answer["data"][1]["num_classes"]) == ("yes", 3)
    raw = await ask("/classify", model="classify", input="abcde", use_activation=False)
    assert raw["data"][0]["probs"] == [2.0, 0.0, -2.0]


async def test_a_bad_text_of_a_partial_request_has_no_class_but_an_error(ask, backend):
    answer = await ask("/classify", model="classify", input=["", "abcde", "BAD"], on_error="null")
    assert [one["label"] for one in answer["data"]] == [None, "no", None]
    assert [one["error"]["code"] for one in answer["data"] if "error" in one] == [None, "bad_input"]
    assert [(one["index"], one["probs"] == []) for one in answer["data"]] == [(0, True), (1, False), (2, True)]
    assert backend.seen[0].labels == ("input 1", "input 2")


async def test_a_text_becomes_tokens_and_back(ask):
    answer = await ask("/tokenize", model="embed", prompt="ab", return_token_strs=True)
    assert answer == {"count": 3, "max_model_len": 8, "tokens": [1, 97, 98], "token_strs": ["[CLS]", "a", "b"]}
    assert (await ask("/tokenize", model="embed", prompt="ab", add_special_tokens=False))["tokens"] == [97, 98]
    assert await ask("/detokenize", model="embed", tokens=[97, 98]) == {"prompt": "ab"}


@pytest.mark.parametrize(
    ("given", "max_tokens", "overlong"), [(-1, None, "truncate"), (5, 5, "truncate"), (None, None, "truncate")]
)
async def test_truncate_prompt_tokens_cuts_where_it_says(ask, backend, given, max_tokens, overlong):
    await ask("/v1/embeddings", model="embed", input="a", truncate_prompt_tokens=given)
    assert (backend.seen[0].max_tokens, backend.seen[0].overlong) == (max_tokens, overlong)


async def test_refusals_have_openais_shape(refuse):
    status, error = await refuse("/score", model="rerank", text_1=["a", "b"], text_2=["c"])
    assert status == 400
    assert "give one 'text_1', or as many of both" in error["error"]["message"]
    assert (await refuse("/tokenize", model="embed", messages=[]))[1]["error"]["param"] == "messages"
    assert (await refuse("/classify", model="embed", input="a"))[1]["error"]["param"] == "model"


async def test_a_list_says_who_answered_what_was_read_and_of_each_input_if_asked(ask):
    whole = {"tokens": 9, "original_tokens": 10, "truncated": True}
    score = await ask("/score", model="embed", text_1="a", text_2=["a" * 9, "b"], usage_details=True)
    assert score["usage"] == {
        "prompt_tokens": 10,
        "total_tokens": 10,
        "details": [whole, {"tokens": 2, "original_tokens": 2, "truncated": False}],
    }
    classes = await ask("/classify", model="classify", input=["a" * 9, "", "b"], usage_details=True, on_error="null")
    assert classes["usage"]["details"] == [
        {"tokens": 8, "original_tokens": 9, "truncated": True},
        {"tokens": 0, "original_tokens": 0, "truncated": False},
        {"tokens": 1, "original_tokens": 1, "truncated": False},
    ]
    for path, body in (("/score", {"text_1": "a", "text_2": "b"}), ("/classify", {"input": "a"})):
        answer = await ask(path, model="rerank", **body)
        assert answer["usage"] == {"prompt_tokens": 1, "total_tokens": 1}
        assert answer["id"].startswith("req-")
        assert answer["data"][0]["index"] == 0


async def test_a_score_is_the_models_logit_where_its_activation_is_not_wanted(aiohttp_client, monkeypatch):
    monkeypatch.setitem(KINDS, "cross", KINDS["rerank"] | {"activation": "sigmoid"})
    client = await aiohttp_client(make_app("cross"))
    for fields, score in (({}, 0.5), ({"use_activation": False}, 0.0), ({"activation": True, "raw_scores": True}, 0.5)):
        body = {"text_1": "abc", "text_2": "abc"} | fields
        assert (await (await client.post("/score", json=body)).json())["data"][0]["score"] == score


@pytest.mark.parametrize(
    ("kinds", "path", "body", "meant"),
    [
        (("embed", "colbert", "rerank", "classify"), "/score", {"text_1": "a", "text_2": "b"}, "rerank"),
        (("embed", "colbert", "classify"), "/score", {"text_1": "a", "text_2": "b"}, "colbert"),
        (("embed", "classify"), "/score", {"text_1": "a", "text_2": "b"}, "embed"),
        (("embed", "rerank", "classify"), "/classify", {"input": "a"}, "classify"),
        (("embed", "rerank"), "/classify", {"input": "a"}, "rerank"),
    ],
)
async def test_without_a_name_the_model_is_meant_that_suits_best(aiohttp_client, kinds, path, body, meant):
    response = await (await aiohttp_client(make_app(*kinds))).post(path, json=body)
    assert (await response.json())["model"] == meant


async def test_the_only_model_of_all_spells_texts_without_being_named(aiohttp_client):
    client = await aiohttp_client(make_app("embed"))
    assert (await (await client.post("/tokenize", json={"prompt": "a"})).json())["tokens"] == [1, 97]
    assert await (await client.post("/detokenize", json={"tokens": [97]})).json() == {"prompt": "a"}


async def test_what_is_spelled_keeps_its_special_tokens(ask, backend):
    await ask("/detokenize", model="embed", tokens=[97])
    assert backend.asked[-1].skip_special_tokens is False


@pytest.mark.parametrize("tokens", [None, "a", [], ["a"], [-1], [True], [2**31]])
async def test_what_is_no_list_of_token_ids_is_refused(refuse, tokens):
    status, error = await refuse("/detokenize", model="embed", tokens=tokens)
    assert (status, error["error"]["param"]) == (400, "tokens")


async def test_a_kind_of_input_that_is_none_is_refused(refuse):
    status, error = await refuse("/classify", model="classify", input="a", input_type="nonsense")
    assert (status, error["error"]["param"]) == (400, "input_type")
