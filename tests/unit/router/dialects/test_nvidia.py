import pytest

from tests.support.made_up_models import KINDS, make_app

QUERY = {"text": "abc"}
PASSAGES = [{"text": "a"}, {"text": "abc"}]


async def test_every_passage_has_its_logit_and_the_best_comes_first(ask, backend):
    answer = await ask("/v1/ranking", model="rerank", query=QUERY, passages=PASSAGES, truncate="END")
    assert answer == {
        "rankings": [{"index": 1, "logit": 0.0}, {"index": 0, "logit": -2.0}],
        "model": "rerank",
        "usage": {"prompt_tokens": 6, "total_tokens": 6},
    }
    assert (backend.seen[0].seconds, backend.seen[0].overlong) == (("a", "abc"), "end")


async def test_logits_are_raw_whatever_the_models_own_activation_is(aiohttp_client, monkeypatch):
    monkeypatch.setitem(KINDS["rerank"], "activation", "sigmoid")
    client = await aiohttp_client(make_app("rerank"))
    response = await client.post("/v1/ranking", json={"query": QUERY, "passages": PASSAGES})
    assert [one["logit"] for one in (await response.json())["rankings"]] == [0.0, -2.0]


async def test_a_model_that_embeds_ranks_by_cosine(ask):
    answer = await ask("/v1/ranking", model="embed", query={"text": "aa"}, passages=[{"text": "b"}, {"text": "a"}])
    assert [one["index"] for one in answer["rankings"]] == [1, 0]
    assert answer["rankings"][0]["logit"] == pytest.approx(1.0, abs=0.01)
    assert answer["system_fingerprint"] == "f00d"


async def test_a_bad_passage_of_a_partial_request_is_left_out_and_named(ask):
    passages = [{"text": "a"}, {"text": "BAD"}, {"text": ""}, {"text": "ab"}]
    body = {"model": "rerank", "query": {"text": "ab"}, "passages": passages, "on_error": "null"}
    answer = await ask("/v1/ranking", **body, usage_details=True)
    assert [one["index"] for one in answer["rankings"]] == [3, 0]
    assert [one["index"] for one in answer["errors"]] == [1, 2]
    assert [one["tokens"] for one in answer["usage"]["details"]] == [2, 2, 0, 2]


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"query": "abc"}, "query", "'query' must be an object, not a string."),
        ({"query": {}}, "query", "'query.text' is required: a string."),
        ({"passages": None}, "passages", "'passages' is required: a list of objects with 'text'."),
        ({"passages": "a"}, "passages", "'passages' must be a list of objects with 'text', not a string."),
        ({"passages": [{"txt": "a"}]}, "passages", "'passages[0]' must be a string, not an object."),
        (
            {"passages": [{"text": "a"}, {"text": "b", "image": "data:…"}]},
            "passages",
            "'passages[1].image' is not supported: send 'text'.",
        ),
    ],
)
async def test_what_is_wrong_is_told_where_nvidias_clients_look(refuse, body, param, message):
    status, error = await refuse("/v1/ranking", **{"model": "rerank", "query": QUERY, "passages": PASSAGES} | body)
    assert (status, error["message"], error["detail"], error["error"]["param"]) == (400, message, message, param)


async def test_a_model_in_front_of_the_path_or_the_only_one_needs_no_name_in_the_body(ask, aiohttp_client):
    body = {"model": "not-here", "query": QUERY, "passages": PASSAGES}
    assert (await ask("/models/rerank/v1/ranking", **body))["model"] == "rerank"
    client = await aiohttp_client(make_app("rerank", "embed"))
    response = await client.post("/v1/ranking", json={"query": QUERY, "passages": PASSAGES})
    assert (await response.json())["model"] == "rerank"


async def test_weaviate_finds_rankings_at_the_path_of_nvidias_own_service(ask):
    """weaviate, ``modules/reranker-nvidia/clients/ranker.go``: ``getNvidiaUrl``, ``toDocumentScores`` by ``index``."""
    body = {"model": "rerank", "query": QUERY, "passages": PASSAGES}
    answer = await ask("/v1/retrieval/nvidia/reranking", **body)
    assert sorted(answer["rankings"], key=lambda one: one["index"]) == [
        {"index": 0, "logit": -2.0},
        {"index": 1, "logit": 0.0},
    ]


async def test_litellm_names_the_model_in_the_path_and_gets_as_many_as_it_asks_for(ask):
    """litellm 1.110.2, ``llms/nvidia_nim/rerank/transformation.py``: ``get_complete_url``; ``top_n`` is ``top_k``.

    In the body it writes dots for the underscores of the model's name: the path wins.
    """
    body = {"model": "re.rank", "query": QUERY, "passages": PASSAGES, "top_k": 1}
    answer = await ask("/v1/retrieval/rerank/reranking", **body)
    assert (answer["model"], answer["rankings"]) == ("rerank", [{"index": 1, "logit": 0.0}])
    assert (await ask("/v1/retrieval/owner/rerank/reranking", **body))["model"] == "rerank"
