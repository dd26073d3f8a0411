"""One model of each kind behind one port, each held against its own library."""

import json

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, MultiVectorEncoder

from tests.support import tiny_models
from tests.support.server import Server
from tests.support.tiny_classifiers import make_bert_classifier, make_xlm_roberta_classifier
from tests.support.tiny_heads import make_multi_vector
from tests.support.tiny_language_models import card_scores, make_qwen3

QUERY = "吃完海鲜可以喝牛奶吗?"
DOCUMENTS = ["不可以，早晨喝牛奶不科学", "The weather is lovely today.", "海鲜 seafood 牛奶 milk", "好", "word " * 300]


@pytest.mark.timeout(300)
def test_each_kind_answers_on_its_routes_and_says_what_it_is_on_others(tmp_path):
    rank = make_xlm_roberta_classifier(tmp_path / "rank")
    feel = make_bert_classifier(tmp_path / "feel", labels=("消极", "积极"))
    embed = tiny_models.make_sentence_transformers(tmp_path / "embed")
    asked = make_qwen3(tmp_path / "qwen3-reranker", length=512)
    filled_up = {"strategy": "fixed", "attend": False, "length": 24}
    late = make_multi_vector(tmp_path / "late", expansion=filled_up)
    folders = {"rank": rank, "feel": feel, "embed": embed, "asked": asked, "late": late}
    mapping = {name: {"name": str(folder)} for name, folder in folders.items()}
    settings = {"EMB_PROVIDER_MODEL_MAPPING": json.dumps(mapping), "EMB_PROVIDER_DEVICE": "cpu"}
    with Server(tmp_path, env=settings) as server:
        server.wait_ready(240)
        models = {model["id"]: model for model in server.get("/v1/models").json["data"]}
        body = {"model": "rank", "query": QUERY, "documents": DOCUMENTS}
        ranking = server.post("/v1/rerank", body).json
        told = server.post("/v1/rerank", body | {"model": "asked", "prompt": "Find what is healthy"}).json
        by_token = server.post("/v1/rerank", body | {"model": "late"}).json
        refused = server.post("/v1/embeddings", {"model": "rank", "input": "a"})
        tokens = server.post("/models/rank/tokenize", {"inputs": QUERY}).json
        predicted = server.post("/models/feel/predict", {"inputs": DOCUMENTS[0]}).json
        vector = server.embed("embed", [QUERY])[0]
        parts = server.post(
            "/v1/embeddings",
            {"model": "embed", "input": [QUERY], "normalize": False, "truncate": "START", "truncate_prompt_tokens": 5},
        ).json
    assert {name: model["task"] for name, model in models.items()} == {
        "rank": "rerank",
        "feel": "classify",
        "embed": "embed",
        "asked": "rerank",
        "late": "multi_vector",
    }
    reference = CrossEncoder(str(rank), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32})
    expected = [float(reference.predict([(QUERY, one)], show_progress_bar=False)[0]) for one in DOCUMENTS]
    found = {item["index"]: item["relevance_score"] for item in ranking["results"]}
    assert [found[index] for index in range(len(DOCUMENTS))] == pytest.approx(expected, abs=1e-4)
    assert [item["index"] for item in ranking["results"]] == sorted(found, key=found.get, reverse=True)
    wanted = card_scores(asked, [(QUERY, one) for one in DOCUMENTS], "Find what is healthy", max_length=512)
    found = {item["index"]: item["relevance_score"] for item in told["results"]}
    assert [found[index] for index in range(len(DOCUMENTS))] == pytest.approx(wanted, abs=1e-4)
    assert_late_scores(late, {item["index"]: item["relevance_score"] for item in by_token["results"]})
    assert refused.status == 400
    assert "rerank" in refused.json["error"]["message"]
    assert tokens[0][0]["special"]
    assert {item["label"] for item in predicted} == {"消极", "积极"}
    assert sum(item["score"] for item in predicted) == pytest.approx(1, abs=1e-5)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-4)
    assert parts["usage"]["prompt_tokens"] == 5
    assert abs(np.linalg.norm(parts["data"][0]["embedding"]) - 1) > 0.01


def assert_late_scores(folder, found):
    model = MultiVectorEncoder(str(folder), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32})
    query = model.encode_query([QUERY], show_progress_bar=False)
    expected = [
        float(model.similarity(query, model.encode_document([one], show_progress_bar=False))) for one in DOCUMENTS
    ]
    assert [found[index] for index in range(len(DOCUMENTS))] == pytest.approx(expected, abs=1e-4)
