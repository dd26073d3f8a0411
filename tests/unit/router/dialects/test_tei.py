import hashlib
import math

import pytest

from emb_model_provider.errors import (
    AuthenticationError,
    EncodeError,
    InvalidRequestError,
    ModelNotFoundError,
    OverloadedError,
    PayloadTooLargeError,
    RequestError,
    UnavailableError,
)
from emb_model_provider.messages.link import Encoded, Timing
from router.dialects.seam import Answered
from router.dialects.tei import TEI
from router.limits import RequestLimits
from router.requests import EncodeResult
from router.service import Policy
from tests.support.made_up_models import MadeUpBackend, dense_of, make_app
from tests.support.statuses import make_info


async def test_embed_answers_a_list_of_vectors_with_teis_times(client, backend):
    response = await client.post(
        "/embed", json={"model": "embed", "inputs": ["a", "bb"], "truncate": True, "truncation_direction": "Left"}
    )
    assert await response.json() == [pytest.approx(dense_of("a")), pytest.approx(dense_of("bb"))]
    assert backend.seen[0].overlong == "start"
    headers = response.headers
    assert (headers["x-compute-type"], headers["x-compute-characters"], headers["x-compute-tokens"]) == (
        "cpu",
        "3",
        "3",
    )
    times = [headers[f"x-{name}-time"] for name in ("tokenization", "queue", "inference")]
    assert times == ["1", "2", "3"]
    assert int(headers["x-compute-time"]) == int(headers["x-total-time"]) >= 0
    assert headers["x-truncated-inputs"] == "0"


@pytest.mark.parametrize(("device", "compute"), [("cuda:1", "gpu+optimized"), ("cpu", "cpu")])
def test_the_times_of_slices_that_ran_beside_each_other_are_the_longest_of_each(device, compute):
    parts = (
        Encoded(b"", 0, (1,), timing=Timing(tokenize_ms=1.4, queue_ms=20.6, encode_ms=3)),
        Encoded(b"", 0, (1,), timing=Timing(tokenize_ms=0.2, queue_ms=5, encode_ms=30)),
    )
    encoder = make_info(device=device).encoder
    assert TEI.headers(Answered(EncodeResult("m", parts, 7, ()), encoder, "req", 9, 1.2341)) == {
        "x-compute-type": compute,
        "x-compute-time": "1235",
        "x-compute-characters": "9",
        "x-compute-tokens": "7",
        "x-total-time": "1235",
        "x-tokenization-time": "1",
        "x-queue-time": "21",
        "x-inference-time": "30",
    }


class ShardsError(RequestError):
    def __init__(self, status: int, kind: str, code: str | None = None) -> None:
        super().__init__("no", code=code)
        self.status, self.kind = status, kind


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidRequestError("no"), 422),
        (ShardsError(400, "invalid_request_error", "context_length_exceeded"), 422),
        (ShardsError(400, "server_error"), 400),
        (ShardsError(413, "invalid_request_error", "input_too_large"), 413),
        (EncodeError("no", code="encode_failed"), 424),
        (EncodeError("no", code="request_crashed_model"), 500),
        (PayloadTooLargeError("no"), 413),
        (AuthenticationError("no"), 401),
        (ModelNotFoundError("no"), 404),
        (OverloadedError("no", retry_after_s=1), 429),
        (UnavailableError("no", retry_after_s=1), 503),
    ],
)
def test_each_error_has_teis_status(error, status):
    assert TEI.status_of(error) == status


async def test_a_bad_input_of_a_partial_request_is_null(ask):
    assert await ask("/embed", model="embed", inputs=[7, [1], "a"], on_error="null") == [
        None,
        None,
        pytest.approx(dense_of("a")),
    ]
    answer = await ask("/embed", model="embed", inputs=["", "a", "BAD"], on_error="null")
    assert answer == [None, pytest.approx(dense_of("a")), None]


@pytest.mark.parametrize("path", ["/models/embed/embed", "/models/owner/embed/embed", "/models/owner%2Fembed/embed"])
async def test_the_path_may_name_the_model(ask, path):
    assert await ask(path, inputs="a") == [pytest.approx(dense_of("a"))]


async def test_langchain4j_asks_at_the_path_of_hugging_faces_own_service(ask):
    """langchain4j, ``HuggingFaceApi.java`` (slashes are escaped), ``client/EmbeddingRequest.java``."""
    body = {"inputs": ["a", "b"], "options": {"wait_for_model": True}}
    for name in ("embed", "owner%2Fembed"):
        answer = await ask(f"/pipeline/feature-extraction/{name}", **body)
        assert answer == [pytest.approx(dense_of("a")), pytest.approx(dense_of("b"))]


async def test_elasticsearch_ranks_documents_and_reads_teis_answer(ask):
    """elasticsearch, ``services/huggingface/``: ``HuggingFaceRerankRequestEntity.java`` posts to the address it has.

    ``HuggingFaceRerankResponseEntity.java``: a list, and of its objects no field that it does not know.
    """
    body = {"documents": ["a", "abc"], "query": "abc"}
    bare = await ask("/models/rerank", **body, top_n=1)
    assert [(one["index"], set(one)) for one in bare] == [(1, {"index", "score"}), (0, {"index", "score"})]
    with_texts = await ask("/models/rerank", **body, return_documents=True)
    assert [one["text"] for one in with_texts] == ["abc", "a"]


async def test_the_path_may_name_the_model_with_its_prompt(ask, backend):
    await ask("/models/embed:query/embed", inputs="a")
    await ask("/models/embed/v1/embeddings", input="a", model="ignored")
    assert [one.prompt_name for one in backend.seen] == ["query", None]


async def test_a_route_without_a_model_takes_the_only_one_of_its_kind(aiohttp_client):
    client = await aiohttp_client(make_app("embed", "rerank", "classify"))
    assert (await client.post("/embed", json={"inputs": "a"})).status == 200
    assert (await client.post("/rerank", json={"query": "a", "texts": ["a"]})).status == 200
    assert (await client.post("/predict", json={"inputs": "a"})).status == 200


async def test_several_models_of_a_kind_must_be_told_apart(refuse):
    status, error = await refuse("/embed", inputs="a")
    assert status == 422
    assert error["error"].startswith(
        "Several models can be meant: embed, m3. Name one in the path, as in /models/embed/embed"
    )


async def test_no_model_of_a_kind_is_said_with_those_that_are_served(aiohttp_client):
    client = await aiohttp_client(make_app("embed"))
    response = await client.post("/predict", json={"inputs": "a"})
    assert response.status == 404
    assert "No model served here classifies texts or ranks texts. Models served here: embed." in await response.text()


async def test_sparse_vectors_and_token_vectors(ask):
    assert await ask("/embed_sparse", model="splade", inputs="aba") == [
        [{"index": 97, "value": 2.0}, {"index": 98, "value": 1.0}]
    ]
    assert await ask("/embed_all", model="m3", inputs=["ab", "c"]) == [
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
        [[0.0, 0.0, 1.0]],
    ]


async def test_rerank_scores_between_0_and_1_unless_raw(ask):
    body = {"model": "rerank", "query": "abc", "texts": ["a", "abc"]}
    assert await ask("/rerank", **body) == [
        {"index": 1, "score": 0.5},
        {"index": 0, "score": pytest.approx(1 / (1 + math.exp(2)))},
    ]
    assert await ask("/rerank", **body, raw_scores=True, return_text=True) == [
        {"index": 1, "text": "abc", "score": 0.0},
        {"index": 0, "text": "a", "score": -2.0},
    ]


async def test_predict_takes_one_input_a_pair_or_a_batch(ask, backend):
    one = await ask("/predict", model="classify", inputs="abcde", raw_scores=True)
    assert one == [{"score": 2.0, "label": "no"}, {"score": 0.0, "label": "maybe"}, {"score": -2.0, "label": "yes"}]
    await ask("/predict", model="classify", inputs=["a", "b"])
    assert (backend.seen[-1].texts, backend.seen[-1].seconds) == (("a",), ("b",))
    batch = await ask("/predict", model="classify", inputs=[["a"], ["b"]])
    assert [[row["label"] for row in rows] for rows in batch] == [["yes", "maybe", "no"]] * 2
    assert sum(row["score"] for row in batch[0]) == pytest.approx(1.0)
    mixed = await ask("/predict", model="classify", inputs=[["a", "b"], ["abcde"]])
    assert (backend.seen[-1].texts, backend.seen[-1].seconds) == (("a", "abcde"), ("b", ""))
    assert [rows[0]["label"] for rows in mixed] == ["yes", "no"]


async def test_bad_inputs_of_a_partial_request_are_null_on_every_route(ask):
    batch = await ask("/predict", model="classify", inputs=[["a"], [""], 1, ["BAD"], ["abcde"]], on_error="null")
    assert [rows and rows[0]["label"] for rows in batch] == ["yes", None, None, None, "no"]
    sparse = await ask("/embed_sparse", model="splade", inputs=["", "a", "BAD"], on_error="null")
    assert sparse == [None, [{"index": 97, "value": 1.0}], None]
    assert await ask("/embed_all", model="m3", inputs=["c", None, "BAD"], on_error="null") == [
        [[0.0, 0.0, 1.0]],
        None,
        None,
    ]
    similar = {"source_sentence": "a", "sentences": ["a", "", "BAD"]}
    scores = await ask("/similarity", model="embed", inputs=similar, parameters={"on_error": "null"})
    assert scores == [pytest.approx(1.0), None, None]


async def test_similarity_is_the_cosine_in_the_order_given(ask):
    answer = await ask(
        "/similarity",
        model="embed",
        inputs={"source_sentence": "a", "sentences": ["b", "a"]},
        parameters={"truncate": True},
    )
    assert answer == pytest.approx([0.01 / 1.01, 1.0], abs=1e-6)


async def test_similarity_by_a_reranker_is_between_0_and_1(ask):
    answer = await ask("/similarity", model="rerank", inputs={"source_sentence": "abc", "sentences": ["abc", "a"]})
    assert answer == [0.5, pytest.approx(1 / (1 + math.exp(2)))]


async def test_tokens_of_texts_and_texts_of_tokens(ask):
    answer = await ask("/tokenize", model="embed", inputs=["a"] * 40)
    assert len(answer) == 40
    assert answer[39] == [
        {"id": 1, "text": "[CLS]", "special": True, "start": None, "stop": None},
        {"id": 97, "text": "a", "special": False, "start": 0, "stop": 1},
    ]
    assert await ask("/decode", model="embed", ids=[[97], [98, 99]]) == ["a", "bc"]
    assert await ask("/decode", model="embed", ids=[97]) == ["a"]


async def test_info_says_what_the_model_is(client, aiohttp_client):
    info = await (await client.get("/models/rerank/info")).json()
    assert info["model_type"] == {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}}
    assert (info["model_id"], info["max_input_length"]) == ("owner/rerank", 8)
    assert info["max_client_batch_size"] == 2048
    assert (await client.get("/info")).status == 422
    assert (await client.head("/models/rerank/info")).status == 200
    alone = await aiohttp_client(make_app("embed"))
    assert (await (await alone.get("/info")).json())["model_type"] == {"embedding": {"pooling": "cls"}}


async def test_info_has_the_limit_that_is_set(aiohttp_client):
    client = await aiohttp_client(make_app("embed", policy=Policy(limits=RequestLimits(max_inputs=12))))
    assert (await (await client.get("/info")).json())["max_client_batch_size"] == 12


async def test_as_many_documents_as_inputs_are_taken_may_be_ranked_by_any_model(aiohttp_client):
    client = await aiohttp_client(make_app(policy=Policy(limits=RequestLimits(max_inputs=12))))
    for model in ("embed", "rerank", "colbert"):
        for count, status in ((12, 200), (13, 422)):
            body = {"query": "a", "texts": ["b"] * count}
            response = await client.post(f"/models/{model}/rerank", json=body)
            assert response.status == status, await response.text()
    body = {"model": "embed", "input": ["a"] * 10 + [""] * 3, "on_error": "null"}
    response = await client.post("/v1/embeddings", json=body)
    assert response.status == 400
    assert "has 13 inputs; at most 12" in await response.text()


async def test_the_bare_address_does_what_the_model_is_for(ask):
    for path in ("/models/embed", "/models/embed/", "/models/owner/embed/"):
        assert await ask(path, inputs="a") == [pytest.approx(dense_of("a"))]
    assert await ask("/models/rerank", query="a", texts=["a"])
    assert await ask("/models/embed", inputs={"source_sentence": "a", "sentences": ["a"]}) == pytest.approx([1.0])
    classes = await ask("/models/classify", inputs="abcde", parameters={"top_k": 2, "function_to_apply": "none"})
    assert classes == [[{"score": 2.0, "label": "no"}, {"score": 0.0, "label": "maybe"}]]
    assert await ask("/models/splade", inputs=["aba"]) == await ask("/embed_sparse", model="splade", inputs=["aba"])
    assert await ask("/models/colbert", inputs="ab", normalize=True) == [[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]]


async def test_the_bare_address_of_a_classifier_takes_lists_of_one_or_two_texts(ask, backend):
    pairs = [["a", "b"], ["abcde"]]
    assert await ask("/models/classify", inputs=pairs) == await ask("/predict", model="classify", inputs=pairs)
    assert (backend.seen[-2].texts, backend.seen[-2].seconds) == (("a", "abcde"), ("b", ""))
    best = await ask("/models/classify", inputs=pairs, parameters={"top_k": 1})
    assert [[one["label"] for one in row] for row in best] == [["yes"], ["no"]]


@pytest.mark.parametrize("kind", ["embed", "classify", "rerank", "splade", "colbert"])
async def test_the_bare_address_means_the_only_model_whatever_it_is_for(aiohttp_client, kind):
    client = await aiohttp_client(make_app(kind))
    assert (await client.post("/", json={"inputs": "a"})).status == 200


async def test_token_ids_are_taken_as_one_list_or_several(ask, backend):
    for inputs, sent in (([97], ((97,),)), ([97.0], ((97,),)), ([[97], [98, 99]], ((97,), (98, 99)))):
        for path, model in (("/embed", "embed"), ("/embed_sparse", "splade"), ("/embed_all", "colbert")):
            assert len(await ask(path, model=model, inputs=inputs)) == len(sent)
            assert (backend.seen[-1].texts, backend.seen[-1].token_ids) == ((), sent)
    await ask("/embed", model="embed", inputs=[[97]], on_error="null")
    assert backend.seen[-1].token_ids == ((97,),)


@pytest.mark.parametrize(
    ("path", "body", "meant"),
    [
        ("/embed", {"inputs": "a"}, {"embed": 1}),
        ("/embed_sparse", {"inputs": "a"}, {"splade": 1}),
        ("/embed_all", {"inputs": "a"}, {"colbert": 1}),
        ("/rerank", {"query": "a", "texts": ["b"]}, {"rerank": 1}),
        ("/predict", {"inputs": "a"}, {"classify": 1}),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["b"]}}, {"embed": 1}),
    ],
)
async def test_among_models_of_all_kinds_that_of_the_route_is_meant(aiohttp_client, path, body, meant):
    asked = []

    class Remembering(MadeUpBackend):
        async def encode(self, model_id, message):
            asked.append(model_id)
            return await super().encode(model_id, message)

    kinds = ("colbert", "splade", "classify", "rerank", "embed")
    client = await aiohttp_client(make_app(*kinds, backend=Remembering()))
    assert (await client.post(path, json=body)).status == 200
    assert asked == list(meant)


@pytest.mark.parametrize("path", ["/rerank", "/predict", "/embed", "/similarity"])
async def test_a_model_that_is_named_in_the_body_is_asked_though_another_suits_better(ask, backend, path):
    model = {"/predict": "rerank", "/embed": "m3"}.get(path, "colbert")
    inputs = {"source_sentence": "ab", "sentences": ["ab"]} if path == "/similarity" else "ab"
    body = {"query": "ab", "texts": ["ab"]} if path == "/rerank" else {"inputs": inputs}
    answer = await ask(path, model=model, **body)
    assert (
        answer
        == {
            "/rerank": [{"index": 0, "score": 2.0}],
            "/predict": [{"score": pytest.approx(1 / (1 + math.exp(3))), "label": "LABEL_0"}],
            "/embed": [pytest.approx(dense_of("ab"))],
            "/similarity": [2.0],
        }[path]
    )


async def test_where_no_model_embeds_sentences_are_compared_token_by_token(aiohttp_client):
    client = await aiohttp_client(make_app("rerank", "colbert"))
    response = await client.post("/similarity", json={"inputs": {"source_sentence": "ab", "sentences": ["ab"]}})
    assert await response.json() == [2.0]


@pytest.mark.parametrize("path", ["/embed_sparse", "/embed_all"])
async def test_a_model_that_embeds_is_asked_for_more_where_no_other_can(aiohttp_client, path):
    client = await aiohttp_client(make_app("rerank", "m3"))
    assert (await client.post(path, json={"inputs": "a"})).status == 200


async def test_a_scores_model_is_asked_as_it_is_raw_or_between_0_and_1(ask):
    body = {"query": "abc", "texts": ["a"], "return_text": False}
    assert await ask("/rerank", model="rerank", **body, raw_scores=True) == [{"index": 0, "score": -2.0}]


async def test_how_texts_are_spelled_is_the_clients_to_say(ask, backend):
    await ask("/tokenize", model="embed", inputs="a", add_special_tokens=False, prompt_name="query", prompt="p")
    asked = backend.asked[-1]
    assert (asked.texts, asked.add_special_tokens, asked.prompt_name, asked.prompt) == (("a",), False, "query", "p")
    for fields, skips in (({}, True), ({"skip_special_tokens": False}, False)):
        await ask("/decode", model="embed", ids=[97], **fields)
        assert backend.asked[-1].skip_special_tokens is skips


async def test_many_texts_are_spelled_in_their_order(ask):
    answer = await ask("/tokenize", model="embed", inputs=[chr(97 + index % 26) for index in range(50)])
    assert [row[1]["text"] for row in answer] == [chr(97 + index % 26) for index in range(50)]


@pytest.mark.parametrize(
    ("path", "body", "sentence"),
    [
        ("/similarity", {"inputs": {"sentences": ["a"]}}, "'inputs.source_sentence' is required"),
        (
            "/similarity",
            {"inputs": {"source_sentence": "", "sentences": ["a"]}},
            "'inputs.source_sentence' is required",
        ),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": []}}, "'inputs.sentences' is empty"),
        ("/similarity", {"inputs": "a"}, "'inputs' must be an object"),
        ("/decode", {"ids": []}, "'ids' is an empty list"),
        ("/decode", {"ids": None}, "'ids' must be a list"),
        ("/decode", {"ids": [[1]] * 2049}, "'ids' holds 2049 items; at most 2048"),
        ("/embed", {"inputs": []}, "'inputs' is empty"),
        ("/embed", {"inputs": ["a", ""]}, "'inputs[1]' is an empty string"),
        ("/embed", {"inputs": "a", "input_type": "nonsense"}, "'nonsense' is not a kind of input"),
        ("/rerank", {"query": "a"}, "'documents' is required"),
        ("/rerank", {"query": "a", "inputs": ["b"]}, "'texts' must be a list"),
        ("/tokenize", {"inputs": []}, "'inputs' is empty"),
    ],
)
async def test_what_is_wrong_is_named(refuse, path, body, sentence):
    _, error = await refuse(path, model="embed", **body)
    told = error["error"]
    assert (told if isinstance(told, str) else told["message"]).startswith(sentence)


@pytest.mark.parametrize(
    ("path", "body", "status", "kind"),
    [
        ("/embed", {"model": "embed"}, 422, "Validation"),
        ("/embed", {"model": "embed", "inputs": [1, "a"]}, 422, "Validation"),
        ("/embed", {"model": "nothing", "inputs": "a"}, 404, "NotFound"),
        ("/embed", {"model": "rerank", "inputs": "a"}, 422, "Validation"),
        ("/embed_all", {"model": "embed", "inputs": "a"}, 422, "Validation"),
        ("/rerank", {"model": "rerank", "query": "a", "texts": "a"}, 422, "Validation"),
        ("/predict", {"model": "classify", "inputs": [["a"], "b"]}, 422, "Validation"),
        ("/predict", {"model": "classify", "inputs": [["a", "b", "c"]]}, 422, "Validation"),
        ("/similarity", {"model": "embed", "inputs": {"source_sentence": "a"}}, 422, "Validation"),
    ],
)
async def test_errors_have_teis_shape_and_status(refuse, path, body, status, kind):
    got, error = await refuse(path, **body)
    assert (got, set(error), error["error_type"]) == (status, {"error", "error_type"}, kind)


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("/embed", {"error", "error_type"}),
        ("/v2/embed", {"message", "code", "param"}),
        ("/api/embed", {"error"}),
        ("/v1/embeddings", {"error", "detail"}),
        ("/v1/rerank", {"error", "message", "detail"}),
    ],
)
async def test_a_missing_key_is_refused_in_the_shape_of_the_route(aiohttp_client, path, shape):
    client = await aiohttp_client(make_app(keys=(hashlib.sha256(b"k").digest(),)))
    response = await client.post(path, json={})
    assert response.status == 401
    assert set(await response.json()) == shape


@pytest.mark.parametrize(
    ("body", "prompt", "overlong"),
    [
        ({"inputs": "a"}, "p: ", "error"),
        ({"inputs": {"source_sentence": "a", "sentences": ["b"]}}, "p: ", "error"),
        ({"query": "a", "texts": ["b"]}, "p: ", "error"),
    ],
)
async def test_the_bare_address_hears_options_that_stand_in_parameters(ask, backend, body, prompt, overlong):
    await ask("/models/embed", **body, parameters={"prompt": prompt, "truncate": False})
    assert (backend.seen[-1].prompt, backend.seen[-1].overlong) == (prompt, overlong)
