import math

import pytest


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


async def test_a_bad_text_of_a_partial_request_has_no_class_but_an_error(ask):
    answer = await ask("/classify", model="classify", input=["", "abcde", "BAD"], on_error="null")
    assert [one["label"] for one in answer["data"]] == [None, "no", None]
    assert [one["error"]["code"] for one in answer["data"] if "error" in one] == [None, "bad_input"]


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
