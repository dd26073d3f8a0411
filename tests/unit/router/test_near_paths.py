import pytest

from router.dialects.table import by_path
from router.near_paths import NearPaths

OF_ALL = [("GET", path) for path in ("/", "/health", "/metrics", "/v1/models/{model}")]
NEAR = NearPaths([*by_path(), *OF_ALL])


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("POST /v1/embeddings/", "/v1/embeddings"),
        ("POST //v1/embeddings", "/v1/embeddings"),
        ("POST /v1//embeddings//", "/v1/embeddings"),
        ("POST /v1%2Fembeddings", "/v1/embeddings"),
        ("POST /v1/v1/embeddings", "/v1/embeddings"),
        ("POST /V1/Embeddings", "/v1/embeddings"),
        ("POST /openai/v1/rerank", "/v1/rerank"),
        ("POST /v1/v2/embed", "/v2/embed"),
        ("POST /v1/api/embed", "/api/embed"),
        ("POST /v1/detokenize", "/detokenize"),
        ("GET /v1/v1/models", "/v1/models"),
        ("HEAD /v1/health", "/health"),
        ("GET /metrics/", "/metrics"),
    ],
)
def test_a_part_too_many_or_a_wrong_slash_is_seen_through(asked, meant):
    assert NEAR.nearest(*asked.split()) == meant


@pytest.mark.parametrize(
    "asked",
    [
        "POST /v1/chat/completions",
        "GET /v1/embeddings/",
        "PUT /v1/embeddings/",
        "POST /v1/embeddings/of",
        "POST /myembed",
        "GET /api/v1/models/{model}",
        "GET //",
        "*",
    ],
)
def test_what_resembles_nothing_that_this_method_may_ask_for_gets_no_hint(asked):
    method, _, path = asked.partition(" ")
    assert NEAR.nearest(method, path) is None
