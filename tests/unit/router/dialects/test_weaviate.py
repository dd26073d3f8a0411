"""What Weaviate's modules for containers of its own send, and what they read of an answer."""

import pytest

from emb_model_provider.messages.status import ShardTable
from router.app import build_app
from router.auth import Authenticator
from router.handlers import Handlers
from router.registry import Registry
from router.service import EmbeddingService
from tests.support.made_up_models import LIMIT, MadeUpBackend, dense_of, make_app
from tests.support.statuses import make_status

#: ``clients/transformers/transformers.go``, ``vecRequest``: what is not set is sent as Go's zero.
ONE = {"dims": 0, "vector": None, "error": ""}


def config(task, **more):
    return {"pooling_strategy": "masked_mean", "task_type": task, **more}


@pytest.mark.parametrize(("task", "prompt"), [("passage", "passage"), ("query", "query")])
async def test_one_text_has_its_vector_and_the_models_prompt_for_what_it_is(ask, backend, task, prompt):
    """``vectorize`` reads ``text``, ``vector``, ``dims`` and, of another status than 200, ``error``."""
    answer = await ask("/models/embed/vectors", **ONE, text="aa", config=config(task))
    assert answer == {"text": "aa", "vector": pytest.approx(dense_of("aa")), "dim": 4, "dims": 4}
    assert backend.seen[0].prompt_name == prompt


async def test_several_texts_have_their_vectors_in_their_order(ask, backend):
    """``vectorizeBatch`` wants as many ``vectors`` as texts; ``dimensions`` stand in the configuration."""
    answer = await ask("/models/m3/vectors", texts=["a", "b", "你"], config=config("passage", dimensions=2))
    assert answer["vectors"] == [pytest.approx(dense_of(text)[:2]) for text in ("a", "b", "你")]
    assert (answer["dims"], backend.seen[0].dimensions) == (2, 2)


async def test_rankings_are_told_by_their_property_and_have_a_score_for_each_place(ask, aiohttp_client):
    """``reranker-transformers/clients/ranker.go``: ``RankInput``, ``RankResponse``; ``additional/rank/rank_result.go``
    goes by the place, and writes "" for an object without the property.
    """
    body = {"query": "abc", "documents": ["a", "", "abc"], "property": ""}
    scores = [("a", -2.0), ("", -3.0), ("abc", 0.0)]
    expected = {"scores": [{"document": document, "score": score} for document, score in scores]}
    assert await ask("/models/rerank/rerank", **body) == expected
    client = await aiohttp_client(make_app("rerank", "embed"))  # the only one of its kind needs no name
    assert await (await client.post("/rerank", json=body)).json() == expected
    del body["property"]
    assert (await client.post("/rerank", json=body)).status == 400


async def test_a_model_that_embeds_ranks_too_and_a_bad_document_has_no_score(ask):
    body = {"query": "aa", "documents": ["b", "BAD", "a", 7], "property": "", "on_error": "null"}
    answer = await ask("/models/embed/rerank", **body)
    first, second, third, fourth = (one["score"] for one in answer["scores"])
    assert (second, fourth) == (None, None)
    assert third > first


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/models/embed/vectors", {"text": ""}, "'text' is an empty string"),
        ("/models/embed/vectors", {}, "'text' is required"),
        ("/models/embed/vectors", {"texts": ["a", 7]}, "'texts[1]' must be a string"),
        ("/models/embed/vectors", {"text": "a", "config": "a"}, "'config' must be an object"),
        ("/models/embed/vectors", {"text": "a", "config": config("image")}, "is not a kind of input"),
        ("/models/rerank/rerank", {"query": "a", "property": ""}, "'documents' is required"),
        ("/models/classify/rerank", {"query": "a", "documents": ["b"], "property": ""}, "tells 3 classes apart"),
    ],
)
async def test_errors_are_a_sentence_in_error(refuse, path, body, words):
    """Anything but a string there would be an error of its JSON's reader."""
    status, error = await refuse(path, **body)
    assert (status, set(error)) == (400, {"error"})
    assert words in error["error"]


async def test_weaviate_waits_at_its_start_until_the_models_are_ready(aiohttp_client):
    """``CheckReady``: any status up to 299, within half a second, without a key's header."""
    registry = Registry(ready_wait_s=0.05)
    service = EmbeddingService(registry, MadeUpBackend())
    client = await aiohttp_client(build_app(Handlers(service, registry, LIMIT), Authenticator(()), LIMIT))
    assert (await client.get("/.well-known/ready")).status == 503
    registry.update(ShardTable((make_status("a"), make_status("b", state="loading"))))
    response = await client.get("/.well-known/ready")
    assert (response.status, await response.json()) == (503, {"error": "Not ready: b."})
    assert response.headers["Retry-After"] == "1"
    assert (await client.get("/models/a/.well-known/ready")).status == 200
    assert (await client.get("/models/b/.well-known/ready")).status == 503
    registry.update(ShardTable((make_status("a"), make_status("b"))))
    for path in ("/.well-known/ready", "/models/b/.well-known/ready"):
        assert (await client.get(path)).status == 200


async def test_what_it_shows_of_its_containers_is_an_object(client):
    """``MetaInfo``: a map of anything."""
    for path in ("/meta", "/models/embed/meta"):
        assert (await (await client.get(path)).json())["models"]["embed"] == "owner/embed"
