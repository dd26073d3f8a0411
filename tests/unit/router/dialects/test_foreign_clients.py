"""What clients that cannot be run here send, and what their parsers want of an answer.

Each entry names the repository and the file that was read. Typed languages refuse what Python lets pass: a number of
another kind, a field that is missing, null or unknown.
"""

import base64
import re

import pytest

TEXTS = ["aa", "b"]
DOCUMENTS = ["a", "abc"]
RANKED = {"query": "abc", "documents": DOCUMENTS}


def named(path, model):
    return {} if path.startswith("/models/") else {"model": model}


def is_whole(value):
    return type(value) is int


def is_vector(value):
    return len(value) == 4 and all(type(number) is float for number in value)


def embeds(answer, read=is_vector):
    """``data`` in the order of the texts, and both counts."""
    assert answer["object"] == "list"
    assert isinstance(answer["model"], str)
    assert isinstance(answer["id"], str)
    assert [(one["index"], one["object"]) for one in answer["data"]] == [(0, "embedding"), (1, "embedding")]
    assert all(is_whole(one["index"]) and read(one["embedding"]) for one in answer["data"])
    assert all(is_whole(answer["usage"][name]) for name in ("prompt_tokens", "total_tokens"))
    assert "error" not in answer  # Go would take its zero for one
    assert all("error" not in one for one in answer["data"])


def is_base64(value):
    """Standard base64 with its padding, of little-endian float32."""
    return re.fullmatch(r"[A-Za-z0-9+/]+={0,2}", value) and len(base64.b64decode(value, validate=True)) == 16


def embeds_in_base64(answer):
    embeds(answer, is_base64)


def by_type(name, kind):
    def check(answer):
        assert isinstance(answer["id"], str)
        rows = answer["embeddings"][name]
        assert len(rows) == 2
        assert all(type(number) is kind for row in rows for number in row)

    return check


def embeds_in_a_list(answer):
    assert len(answer["embeddings"]) == 2
    assert all(map(is_vector, answer["embeddings"]))
    assert is_whole(answer["meta"]["billed_units"]["input_tokens"])


def is_bare(answer):
    assert len(answer) == 2
    assert all(map(is_vector, answer))


def ranks(*more):
    """Results with no field that a strict parser does not know; a score of a whole number is written as a fraction."""

    def check(answer):
        assert sorted(one["index"] for one in answer["results"]) == [0, 1]
        assert all(type(one["relevance_score"]) is float for one in answer["results"])
        assert all(set(one) == {"index", "relevance_score", *more} for one in answer["results"])
        assert all(isinstance(one["document"]["text"], str) for one in answer["results"] if "document" in more)
        assert is_whole(answer["meta"]["billed_units"]["search_units"])

    return check


def ranks_and_counts(answer):
    ranks()(answer)
    assert all(is_whole(answer["usage"][name]) for name in ("prompt_tokens", "total_tokens"))


def ranks_and_counts_in_meta(answer):
    ranks("document")(answer)
    assert is_whole(answer["meta"]["tokens"]["input_tokens"])


def ranks_in_a_list(answer):
    assert sorted(one["index"] for one in answer) == [0, 1]
    assert all(set(one) == {"index", "score"} and type(one["score"]) is float for one in answer)


def has_ollamas_numbers(answer):
    assert all(map(is_vector, answer["embeddings"]))
    assert all(is_whole(answer[name]) for name in ("total_duration", "load_duration", "prompt_eval_count"))
    assert not answer.get("error")


@pytest.mark.parametrize(
    ("path", "body", "check"),
    [
        # spring-ai, models/spring-ai-openai/…/api/OpenAiApi.java: EmbeddingRequest, EmbeddingList, Usage
        ("/v1/embeddings", {"input": TEXTS, "encoding_format": "float"}, embeds),
        # openai-java, …/models/embeddings/EmbeddingDefaults.kt, CreateEmbeddingResponse.kt: validate
        # openai-dotnet, src/Custom/Embeddings/OpenAIEmbedding.cs: ConvertToVectorOfFloats takes base64 alone
        ("/v1/embeddings", {"input": TEXTS, "encoding_format": "base64"}, embeds_in_base64),
        # vespa, model-integration/…/OpenAIEmbedder.java: dimensions are always sent
        ("/v1/embeddings", {"input": TEXTS, "dimensions": 4, "encoding_format": "base64"}, embeds_in_base64),
        # langchain4j, langchain4j-open-ai/…/OpenAiEmbeddingModel.java; async-openai, src/types/embedding.rs
        # weaviate, modules/text2vec-openai/clients/openai.go; ml-commons, …/MLPostProcessFunction.java
        ("/v1/embeddings", {"input": TEXTS}, embeds),
        # go-openai, embeddings.go: EmbeddingRequest
        ("/v1/embeddings", {"input": TEXTS, "user": ""}, embeds),
        # langchain4j, langchain4j-jina/…/JinaEmbeddingRequest.java
        ("/v1/embeddings", {"late_chunking": False, "input": TEXTS}, embeds),
        # weaviate, usecases/modulecomponents/clients/jinaai/jinaai.go: embeddingsRequest
        (
            "/v1/embeddings",
            {"input": TEXTS, "embedding_type": "float", "normalized": True, "task": "retrieval.passage"},
            embeds,
        ),
        # weaviate, usecases/modulecomponents/clients/nvidia/nvidia.go: embeddingsRequest
        (
            "/v1/embeddings",
            {"input": TEXTS, "encoding_format": "float", "input_type": "passage", "truncate": "END"},
            embeds,
        ),
        # weaviate, usecases/modulecomponents/clients/cohere/cohere.go; milvus, …/models/cohere/cohere_client.go
        (
            "/v2/embed",
            {"texts": TEXTS, "input_type": "search_document", "embedding_types": ["float"], "truncate": "NONE"},
            by_type("float", float),
        ),
        ("/v2/embed", {"texts": TEXTS, "embedding_types": ["int8"]}, by_type("int8", int)),
        # langchain4j, langchain4j-cohere/…/EmbedResponse.java; ml-commons, COHERE_EMBEDDING
        ("/v1/embed", {"texts": TEXTS}, embeds_in_a_list),
        # elasticsearch, …/services/huggingface/response/HuggingFaceEmbeddingsResponseEntity.java: parseArrayFormat
        ("/models/embed", {"inputs": TEXTS}, is_bare),
        # milvus, internal/util/function/models/tei/tei.go; weaviate, modules/text2vec-huggingface
        ("/models/embed/embed", {"inputs": TEXTS, "truncate": True, "truncation_direction": "Left"}, is_bare),
        ("/models/embed/embed", {"inputs": TEXTS, "options": {"wait_for_model": True, "use_cache": True}}, is_bare),
        # spring-ai, OllamaApi; anything-llm, server/utils/EmbeddingEngines/ollama/index.js
        ("/api/embed", {"input": TEXTS, "keep_alive": "5m", "options": {"num_ctx": 512}}, has_ollamas_numbers),
    ],
)
async def test_vectors_are_what_their_parser_wants(ask, path, body, check):
    check(await ask(path, **named(path, "embed"), **body))


@pytest.mark.parametrize(
    ("path", "body", "check"),
    [
        # langchain4j, langchain4j-jina/…/JinaScoringModel.java; weaviate, modules/reranker-jinaai/clients/ranker.go
        ("/v1/rerank", {**RANKED, "return_documents": False}, ranks_and_counts),
        # fastgpt, packages/service/core/ai/rerank/index.ts; continue, core/llm/llms/Vllm.ts
        ("/v1/rerank", RANKED, ranks_and_counts_in_meta),
        # open-webui, backend/…/models/external.py; cherry-studio, BaseReranker.ts; dify, openai_api_compatible
        ("/v1/rerank", {**RANKED, "top_n": 2}, ranks("document")),
        # ml-commons, …/postprocess/CohereRerankPostProcessFunction.java casts to Integer and Double
        # elasticsearch, …/services/cohere/response/CohereRankedResponseEntity.java: throwUnknownField
        ("/v2/rerank", {**RANKED, "top_n": 2}, ranks()),
        # weaviate, modules/reranker-cohere/clients/ranker.go; milvus, …/models/cohere/cohere_client.go
        ("/v2/rerank", {**RANKED, "return_documents": False}, ranks()),
        # milvus, internal/util/function/models/vllm/vllm_client.go: a model is in no body of it
        ("/models/rerank/rerank", {**RANKED, "truncate_prompt_tokens": 8}, ranks_and_counts_in_meta),
        # milvus, …/models/tei/tei.go; continue, core/llm/llms/HuggingFaceTEI.ts
        (
            "/models/rerank/rerank",
            {"query": "abc", "texts": DOCUMENTS, "truncate": True, "truncation_direction": "Right"},
            ranks_in_a_list,
        ),
    ],
)
async def test_rankings_are_what_their_parser_wants(ask, path, body, check):
    check(await ask(path, **named(path, "rerank"), **body))


async def test_errors_are_what_their_parsers_want(refuse):
    _, error = await refuse("/v1/embeddings", model="none", input=TEXTS)
    # async-openai, src/error.rs: message and type are strings; weaviate's jinaai.go reads detail, a string
    assert {name: type(error["error"][name]) for name in ("message", "type")} == {"message": str, "type": str}
    assert isinstance(error["detail"], str)
    _, error = await refuse("/v2/rerank", model="none", **RANKED)
    assert isinstance(error["message"], str)  # weaviate, modules/reranker-cohere: cohereApiError
    _, error = await refuse("/models/none/embed", inputs=TEXTS)
    assert isinstance(error["error"], str)  # weaviate, modules/text2vec-huggingface: huggingFaceApiError
    _, error = await refuse("/api/embed", model="none", input=TEXTS)
    assert isinstance(error["error"], str)  # weaviate, modules/text2vec-ollama: embeddingsResponse


async def test_typesense_finds_its_model_in_the_list(client):
    """typesense, src/text_embedder_remote.cpp: ``OpenAIEmbedder::is_model_valid``."""
    listed = await (await client.get("/v1/models")).json()
    assert "embed" in [model["id"] for model in listed["data"]]
