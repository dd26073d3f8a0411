import pytest

from tests.support.made_up_models import KINDS, make_app


async def test_documents_that_hold_no_text_are_called_objects_and_not_null(refuse):
    # vLLM's and Dify's for models that see images
    document = {"content": [{"type": "text", "text": "a"}]}
    status, answer = await refuse("/v1/rerank", model="rerank", query="a", documents=[document])
    assert (status, answer["message"]) == (400, "'documents[0]' must be a string, not an object.")


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank"])
async def test_rerank_answers_what_jinas_vllms_and_coheres_clients_read(ask, path):
    answer = await ask(path, model="rerank", query="abc", documents=["a", "abc"])
    assert answer["results"] == [
        {"index": 1, "relevance_score": 0.0, "document": {"text": "abc"}},
        {"index": 0, "relevance_score": -2.0, "document": {"text": "a"}},
    ]
    assert (answer["object"], answer["model"]) == ("list", "rerank")
    assert answer["usage"]["total_tokens"] == 6
    assert answer["meta"]["api_version"] == {"version": "1"}


async def test_documents_stay_away_when_they_are_not_wanted(ask):
    answer = await ask("/v1/rerank", model="rerank", query="a", documents=["a"], return_documents=False)
    assert answer["results"] == [{"index": 0, "relevance_score": -2.0}]


@pytest.mark.parametrize(("word", "comes_back"), [("true", True), ("False", False)])
async def test_whether_documents_are_wanted_may_be_a_word_as_ragflow_sends_it_to_xinference(
    ask, refuse, word, comes_back
):
    body = {"model": "rerank", "query": "a", "documents": ["a"], "return_documents": word, "return_len": "true"}
    (result,) = (await ask("/v1/rerank", **body))["results"]
    assert ("document" in result) is comes_back
    status, answer = await refuse("/v1/rerank", **body | {"return_documents": "maybe"})
    assert (status, answer["error"]["param"]) == (400, "return_documents")


async def test_clients_of_xinference_and_siliconflow_find_their_count_of_tokens(ask):
    # xinference-client's rerank(return_len=True); RAGFlow adds the two up, as a client of SiliconFlow in any case
    body = {"model": "rerank", "query": "abc", "documents": ["a", "abc"]}
    for asked in ({"return_len": True}, {"return_len": "true"}, {}):
        assert (await ask("/v1/rerank", **body, **asked))["meta"]["tokens"] == {"input_tokens": 6, "output_tokens": 0}


async def test_infinitys_client_is_told_that_this_is_a_rerank(ask):
    # infinity_client 0.0.78, RerankInput: what is not set is sent with its default
    body = {"model": "rerank", "query": "a", "documents": ["a"], "return_documents": False, "raw_scores": False}
    answer = await ask("/rerank", **body)
    assert (answer["object"], answer["model"], set(answer["usage"])) == (
        "rerank",
        "rerank",
        {"prompt_tokens", "completion_tokens", "total_tokens"},
    )
    assert answer["results"] == [{"index": 0, "relevance_score": -2.0}]


async def test_the_ai_sdks_client_of_together_finds_every_count_that_it_asks_for(ask):
    """@ai-sdk/togetherai 2.0, ``src/reranking/togetherai-reranking-api.ts``: three numbers, none of them optional."""
    body = {"model": "rerank", "query": "abc", "documents": ["a", "abc"], "top_n": 2, "return_documents": False}
    answer = await ask("/v1/rerank", **body)
    assert answer["usage"] == {"prompt_tokens": 6, "completion_tokens": 0, "total_tokens": 6}
    assert [set(one) for one in answer["results"]] == [{"index", "relevance_score"}] * 2


async def test_voyages_client_finds_the_results_where_it_looks_for_them(ask, backend):
    # voyageai, Client.rerank: truncation is sent whatever it is
    body = {"model": "rerank", "query": "abc", "documents": ["a", "abc"], "truncation": True}
    answer = await ask("/v1/rerank", **body)
    assert answer["data"] == answer["results"]
    assert answer["data"] == [{"index": 1, "relevance_score": 0.0}, {"index": 0, "relevance_score": -2.0}]
    assert answer["usage"]["total_tokens"] == 6
    assert backend.seen[-1].overlong == "truncate"
    del body["truncation"]
    assert "data" not in await ask("/v1/rerank", **body)


@pytest.mark.parametrize(("truncation", "overlong"), [(True, "truncate"), (False, "error")])
async def test_voyages_word_for_cutting_texts_is_heard(ask, backend, truncation, overlong):
    await ask("/v1/embeddings", model="embed", input=["a"], input_type="query", truncation=truncation)
    assert backend.seen[-1].overlong == overlong


async def test_a_thousand_documents_are_one_request(ask, backend):
    documents = ["abc"[: 1 + index % 3] for index in range(1000)]
    answer = await ask("/v1/rerank", model="rerank", query="abc", documents=documents, top_n=5)
    assert [one["index"] for one in answer["results"]] == [2, 5, 8, 11, 14]
    assert max(len(one.texts) for one in backend.seen) <= 64
    assert all(set(one.texts) == {"abc"} for one in backend.seen)


async def test_an_embedding_model_ranks_by_cosine_and_a_multi_vector_model_token_by_token(ask, backend):
    answer = await ask("/v1/rerank", model="embed", query="aa", documents=["b", "a"])
    assert [one["index"] for one in answer["results"]] == [1, 0]
    assert answer["results"][0]["relevance_score"] == pytest.approx(1.0, abs=0.01)
    assert (backend.seen[0].texts, backend.seen[0].prompt) == (("aa", "b", "a"), "")
    late = await ask("/v1/rerank", model="colbert", query="ab", documents=["b", "ba", "c"])
    assert [(one["index"], one["relevance_score"]) for one in late["results"]] == [(1, 2.0), (0, 1.0), (2, 0.0)]


async def test_a_multi_vector_model_reads_the_query_as_one_and_documents_as_such_unless_a_prompt_is_named(ask, backend):
    def sent():
        return sorted((one.texts, one.prompt_name, one.prompt) for one in backend.seen)

    await ask("/v1/rerank", model="colbert", query="ab", documents=["b", "ba"])
    assert sent() == [(("ab",), "query", None), (("b", "ba"), "document", None)]
    backend.seen.clear()
    await ask("/v1/rerank", model="colbert", query="ab", documents=["b", "ba"], prompt="x: ")
    assert sent() == [(("ab", "b", "ba"), None, "x: ")]


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/v2/rerank"])
async def test_an_instruction_reaches_a_reranker_that_takes_one(aiohttp_client, backend, monkeypatch, path):
    # LiteLLM 1.110, rerank("hosted_vllm/…", instruction=…)
    monkeypatch.setitem(KINDS["rerank"], "takes_instruction", True)
    client = await aiohttp_client(make_app("rerank", backend=backend))
    body = {"query": "a", "documents": ["a"], "instruction": "Find what contradicts."}
    for more, prompt in (({}, "Find what contradicts."), ({"prompt": "other"}, "other"), ({"instruction": None}, None)):
        assert (await client.post(path, json=body | more)).status == 200
        assert (backend.seen[-1].prompt, backend.seen[-1].prompt_name) == (prompt, None)


@pytest.mark.parametrize("model", ["rerank", "embed", "colbert"])
async def test_an_instruction_changes_nothing_for_a_model_that_takes_none(ask, refuse, backend, model):
    body = {"model": model, "query": "a", "documents": ["b", "a"]}
    plain = await ask("/v1/rerank", **body)
    sent = sorted((one.texts, one.prompt, one.prompt_name) for one in backend.seen)
    backend.seen.clear()
    assert (await ask("/v1/rerank", **body, instruction="Find."))["results"] == plain["results"]
    assert sorted((one.texts, one.prompt, one.prompt_name) for one in backend.seen) == sent
    assert (await refuse("/v1/rerank", **body, instruction=1))[1]["error"]["param"] == "instruction"


async def test_large_documents_come_back_whole(ask):
    documents = [f"{index} " + "ab" * 500 for index in range(400)]
    answer = await ask("/v1/rerank", model="rerank", query="ab", documents=documents)
    assert sorted(one["index"] for one in answer["results"]) == list(range(400))
    assert all(one["document"]["text"] == documents[one["index"]] for one in answer["results"])


async def test_a_bad_document_of_a_partial_request_is_left_out_and_named(ask):
    body = {"query": "ab", "documents": ["a", "BAD", "ab"], "on_error": "null"}
    for model in ("embed", "rerank"):
        answer = await ask("/v1/rerank", model=model, **body)
        assert [one["index"] for one in answer["results"]] == [2, 0]
        assert [one["index"] for one in answer["errors"]] == [1]
    assert "errors" not in await ask("/v1/rerank", model="embed", query="a", documents=["b"])


async def test_the_only_reranker_needs_no_name(aiohttp_client):
    client = await aiohttp_client(make_app("rerank", "embed"))
    response = await client.post("/v1/rerank", json={"query": "a", "documents": ["a"]})
    assert (await response.json())["model"] == "rerank"


async def test_errors_are_read_by_clients_of_all_three(refuse):
    status, error = await refuse("/v1/rerank", model="rerank", query="a", documents=[1])
    assert status == 400
    assert error["error"]["message"] == error["message"] == error["detail"]
    assert error["error"]["param"] == "documents"
    assert "'documents[0]' must be a string, not the number 1" in error["detail"]


async def test_jinas_embedding_fields(ask, backend, refuse):
    answer = await ask(
        "/v1/embeddings",
        model="embed",
        input=[{"text": "a"}],
        task="retrieval.query",
        embedding_type=["float", "ubinary"],
        normalized=True,
        late_chunking=False,
        truncate=True,
    )
    assert list(answer["data"][0]["embeddings"]) == ["float", "ubinary"]
    assert (backend.seen[0].prompt_name, backend.seen[0].normalize) == ("query", True)
    status, error = await refuse("/v1/embeddings", model="embed", input="a", late_chunking=True)
    assert (status, error["error"]["param"]) == (400, "late_chunking")
