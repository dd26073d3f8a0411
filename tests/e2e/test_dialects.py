"""Every dialect against one server with a tiny model of each kind: real processes, real tokenizers, real vectors."""

import base64
import json
import math

import numpy as np
import pytest

from tests.support.server import Server
from tests.support.tiny_classifiers import make_bert_classifier
from tests.support.tiny_heads import make_bge_m3, make_splade
from tests.support.tiny_models import make_sentence_transformers

TEXTS = ["吃完海鲜可以喝牛奶吗", "the weather is lovely today", "好"]
QUERY, DOCUMENTS = "海鲜", ["吃完海鲜可以喝牛奶吗", "weather", "牛奶", "weather"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    models = tmp_path_factory.mktemp("models")
    prompts = {"query": "为这个句子生成表示：", "document": "", "odd": "odd: "}
    mapping = {
        "embed": {"name": str(make_sentence_transformers(models / "embed", prompts=prompts))},
        "rank": {"name": str(make_bert_classifier(models / "rank"))},
        "m3": {"name": str(make_bge_m3(models / "m3"))},
        "splade": {"name": str(make_splade(models / "splade"))},
        "classify": {"name": str(make_bert_classifier(models / "classify", labels=("no", "maybe", "yes")))},
    }
    settings = {"EMB_PROVIDER_MODEL_MAPPING": json.dumps(mapping), "EMB_PROVIDER_DEVICE": "cpu"}
    with Server(tmp_path_factory.mktemp("server"), env=settings) as running:
        running.wait_ready(120)
        yield running


def ask(server: Server, path: str, **body):
    answer = server.post(path, body)
    assert answer.status == 200, (path, answer.body)
    return answer.json


def vectors(rows) -> np.ndarray:
    return np.array(rows, dtype=np.float32)


def test_one_vector_whatever_language_it_is_asked_for_in(server):
    expected = vectors(server.embed("embed", TEXTS))
    packed = ask(server, "/v1/embeddings", model="embed", input=TEXTS, encoding_format="base64")
    decoded = [np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in packed["data"]]
    others = {
        "OpenAI's base64": decoded,
        "Cohere": ask(server, "/v2/embed", model="embed", texts=TEXTS)["embeddings"]["float"],
        "Cohere 1": ask(server, "/v1/embed", model="embed", texts=TEXTS)["embeddings"],
        "TEI": ask(server, "/models/embed/embed", inputs=TEXTS),
        "TEI at the address itself": ask(server, "/models/embed", inputs=TEXTS),
        "Ollama": ask(server, "/api/embed", model="embed:latest", input=TEXTS)["embeddings"],
    }
    for name, rows in others.items():
        assert vectors(rows) == pytest.approx(expected, abs=1e-6), name


def test_prompts_by_role_by_name_by_text_and_by_suffix_are_the_same(server):
    expected = vectors(ask(server, "/models/embed/embed", inputs="海鲜", prompt_name="query"))
    plain = vectors(ask(server, "/models/embed/embed", inputs="海鲜"))
    assert np.abs(expected - plain).max() > 1e-3
    for body in (
        {"model": "embed:query"},
        {"model": "embed", "input_type": "search_query"},
        {"model": "embed", "task": "retrieval.query"},
        {"model": "embed", "prompt": "为这个句子生成表示："},
    ):
        made = ask(server, "/v1/embeddings", input="海鲜", **body)["data"][0]["embedding"]
        assert vectors([made]) == pytest.approx(expected, abs=1e-6), body
    document = ask(server, "/v1/embeddings", model="embed:document", input="海鲜")["data"][0]["embedding"]
    assert vectors([document]) == pytest.approx(plain, abs=1e-6)


def test_quantised_vectors_are_those_of_the_floats(server):
    floats = vectors(server.embed("embed", TEXTS))
    answer = ask(server, "/v1/embeddings", model="embed", input=TEXTS, output_dtype="int8")
    made = np.array([one["embedding"] for one in answer["data"]], dtype=np.float32)
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    assert (made * floats).sum(axis=1).min() > 0.999
    bits = ask(server, "/v2/embed", model="embed", texts=TEXTS, embedding_types=["ubinary"])["embeddings"]["ubinary"]
    assert np.array_equal(np.array(bits, dtype=np.uint8), np.packbits(floats > 0, axis=1))


def test_cut_inputs_are_told_and_may_be_refused_or_cut_at_the_start(server):
    long = "牛奶" * 300
    answer = server.post("/v1/embeddings", {"model": "embed", "input": ["a", long], "usage_details": True})
    assert answer.headers["x-truncated-inputs"] == "1"
    details = answer.json["usage"]["details"]
    assert [one["truncated"] for one in details] == [False, True]
    assert details[1]["original_tokens"] > details[1]["tokens"]
    refused = server.post("/v2/embed", {"model": "embed", "texts": [long], "truncate": "NONE"})
    assert refused.status == 400
    end = ask(server, "/models/embed/embed", inputs="海鲜" + long, truncate=True, truncation_direction="Right")
    start = ask(server, "/models/embed/embed", inputs="海鲜" + long, truncate=True, truncation_direction="Left")
    assert np.abs(vectors(end) - vectors(start)).max() > 1e-4


def test_good_inputs_are_answered_beside_bad_ones(server):
    long = "牛奶" * 300
    body = {"model": "embed", "input": ["", "好", long], "on_error": "null", "truncate": False}
    data = ask(server, "/v1/embeddings", **body)["data"]
    assert [one["embedding"] is None for one in data] == [True, False, True]
    assert data[2]["error"]["code"] == "context_length_exceeded"
    assert vectors(data[1]["embedding"]) == pytest.approx(vectors(server.embed("embed", ["好"])[0]), abs=1e-6)


def test_every_reranking_route_gives_the_same_order_and_scores(server):
    raw = [
        one["score"]
        for one in ask(server, "/score", model="rank", text_1=QUERY, text_2=DOCUMENTS, raw_scores=True)["data"]
    ]
    order = sorted(range(len(raw)), key=lambda index: -raw[index])
    assert order.index(1) + 1 == order.index(3)  # equal documents keep their order
    for path in ("/v1/rerank", "/v2/rerank", "/rerank"):
        results = ask(server, path, model="rank", query=QUERY, documents=DOCUMENTS)["results"]
        assert [one["index"] for one in results] == order
        expected = [1 / (1 + math.exp(-raw[index])) for index in order]
        assert [one["relevance_score"] for one in results] == pytest.approx(expected, abs=1e-5)
    tei = ask(server, "/rerank", query=QUERY, texts=DOCUMENTS)
    assert [one["index"] for one in tei] == order


def test_a_thousand_documents_are_ranked_in_one_request(server):
    documents = [DOCUMENTS[index % 3] for index in range(1000)]
    results = ask(server, "/v2/rerank", model="rank", query=QUERY, documents=documents, top_n=3)["results"]
    assert len({round(one["relevance_score"], 6) for one in results}) == 1
    assert [one["index"] % 3 for one in results] == [results[0]["index"]] * 3


def test_an_embedding_model_compares(server):
    rows = vectors(server.embed("embed", [QUERY, *DOCUMENTS], prompt=""))
    expected = rows[1:] @ rows[0]
    body = {"source_sentence": QUERY, "sentences": DOCUMENTS}
    assert vectors(ask(server, "/models/embed/similarity", inputs=body)) == pytest.approx(expected, abs=1e-5)
    scored = ask(server, "/v1/score", model="embed", text_1=QUERY, text_2=DOCUMENTS)["data"]
    assert vectors([one["score"] for one in scored]) == pytest.approx(expected, abs=1e-5)


def test_a_classifier_names_its_labels_in_two_dialects(server):
    rows = ask(server, "/predict", inputs=[["海鲜"], ["weather"]])
    assert [sorted(one["label"] for one in row) for row in rows] == [["maybe", "no", "yes"]] * 2
    assert [sum(one["score"] for one in row) for row in rows] == pytest.approx([1, 1], abs=1e-5)
    data = ask(server, "/classify", model="classify", input=["海鲜", "weather"])["data"]
    assert [one["label"] for one in data] == [row[0]["label"] for row in rows]
    assert [max(one["probs"]) for one in data] == pytest.approx([row[0]["score"] for row in rows], abs=1e-6)


def test_three_outputs_of_one_pass_are_those_asked_for_one_by_one(server):
    both = ask(server, "/v1/embeddings", model="m3", input=TEXTS, outputs=["dense", "sparse", "colbert"])["data"]
    dense = vectors(server.embed("m3", TEXTS))
    assert vectors([one["embedding"] for one in both]) == pytest.approx(dense, abs=1e-5)
    sparse = ask(server, "/models/m3/embed_sparse", inputs=TEXTS)
    for one, pairs in zip(both, sparse, strict=True):
        assert one["sparse_embedding"]["indices"] == [pair["index"] for pair in pairs]
        assert one["sparse_embedding"]["values"] == pytest.approx([pair["value"] for pair in pairs], abs=1e-5)
    tokens = ask(server, "/models/m3/embed_all", inputs=TEXTS)
    for one, matrix in zip(both, tokens, strict=True):
        assert vectors(one["multi_vector"]) == pytest.approx(vectors(matrix), abs=1e-5)


def test_a_sparse_model_answers_without_a_name_and_says_what_it_lacks(server):
    rows = ask(server, "/embed_sparse", inputs=TEXTS)
    assert all(pair["value"] > 0 for row in rows for pair in row)
    item = ask(server, "/v1/embeddings", model="splade", input=TEXTS[1], outputs=["sparse"])["data"][0]
    assert item["sparse_embedding"]["indices"] == [pair["index"] for pair in rows[1]]
    assert "embedding" not in item
    refused = server.post("/v1/embeddings", {"model": "splade", "input": "a"})
    assert refused.status == 400
    assert "makes sparse vectors and has no dense output" in refused.json["error"]["message"]


def test_several_models_of_a_kind_must_be_told_apart(server):
    refused = server.post("/embed", {"inputs": "a"})
    assert refused.status == 422
    assert "embed, m3" in refused.json["error"]


def test_text_to_tokens_and_back(server):
    tokens = ask(server, "/models/embed/tokenize", inputs="海鲜")[0]
    ids = ask(server, "/tokenize", model="embed", prompt="海鲜")["tokens"]
    assert [one["id"] for one in tokens] == ids
    assert [one["special"] for one in tokens] == [True, *[False] * (len(ids) - 2), True]
    text = ask(server, "/models/embed/decode", ids=ids)[0]
    assert text.replace(" ", "") == "海鲜"
    assert text in ask(server, "/detokenize", model="embed", tokens=ids)["prompt"]
    by_ids = ask(server, "/v1/embeddings", model="embed", input=[ids])["data"][0]["embedding"]
    assert vectors(by_ids) == pytest.approx(vectors(server.embed("embed", ["海鲜"])[0]), abs=1e-6)


def test_every_kind_tells_what_it_is(server):
    names = ("embed", "rank", "m3", "splade", "classify")
    kinds = {name: server.get(f"/models/{name}/info").json["model_type"] for name in names}
    assert [next(iter(kind)) for kind in kinds.values()] == [
        "embedding", "reranker", "embedding", "embedding", "classifier",
    ]  # fmt: skip
    assert kinds["splade"]["embedding"] == {"pooling": "splade"}
    assert kinds["classify"]["classifier"]["id2label"] == {"0": "no", "1": "maybe", "2": "yes"}
    listed = [one["name"] for one in server.get("/api/tags").json["models"]]
    assert listed == list(names)
    assert ask(server, "/api/show", model="embed")["capabilities"] == ["embedding"]


@pytest.mark.parametrize(
    ("path", "body", "status", "shape"),
    [
        ("/v1/embeddings", {"model": "rank", "input": "a"}, 400, {"error", "detail"}),
        ("/v2/rerank", {"model": "classify", "query": "a", "documents": ["b"]}, 400, {"message", "code", "param"}),
        ("/embed_sparse", {"model": "embed", "inputs": "a"}, 422, {"error", "error_type"}),
        ("/api/embed", {"model": "absent", "input": "a"}, 404, {"error"}),
        ("/classify", {"model": "embed", "input": "a"}, 400, {"error", "detail"}),
    ],
)
def test_what_a_model_cannot_do_is_said_in_the_language_asked(server, path, body, status, shape):
    answer = server.post(path, body)
    assert (answer.status, set(answer.json)) == (status, shape)
