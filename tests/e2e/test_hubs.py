"""Models of both hubs, downloaded by the real clients from a hub on 127.0.0.1 and served by the installed command."""

import json
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

from tests.support.hub import LoopbackHub
from tests.support.server import Server
from tests.support.tiny_models import make_corom, make_gte, make_sentence_transformers

RECORDED = json.loads((Path(__file__).parents[1] / "support/recorded/modelscope_vectors.json").read_text("utf-8"))
TEXTS = RECORDED["texts"]

GTE = "iic/nlp_gte_sentence-embedding_chinese-base"
COROM = "damo/nlp_corom_sentence-embedding_chinese-base"
ENGLISH = "sentence-transformers/all-MiniLM-L12-v2"

# As the guide writes it: unquoted JSON over many lines, other settings around it.
GUIDE = f"""# 模型服务
EMB_PROVIDER_MODEL_SOURCE=auto
EMB_PROVIDER_MODEL_MAPPING={{
  "gte": {{
    "name": "{GTE}",
    "source": "modelscope",
    "precision": "fp32"
  }},
  "corom": {{"name": "{COROM}"}},
  "english": {{"name": "{ENGLISH}", "source": "huggingface"}}
}}
EMB_PROVIDER_MAX_BATCH_SIZE=16
EMB_PROVIDER_READY_WAIT_S=0.2   # answer 503 early
"""


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    made = {
        GTE: make_gte(root / "gte", **RECORDED["models"]["gte"]["options"]),
        COROM: make_corom(root / "corom", **RECORDED["models"]["corom"]["options"]),
        ENGLISH: make_sentence_transformers(root / "english", seed=5),
    }
    return {name: Path(directory) for name, directory in made.items()}


@pytest.fixture
def hub(directories):
    with LoopbackHub() as hub:
        hub.add(GTE, directories[GTE], hubs={"modelscope"})
        hub.add(COROM.replace("damo/", "iic/"), directories[COROM], hubs={"modelscope"})
        hub.add(ENGLISH, directories[ENGLISH], hubs={"huggingface"})
        yield hub


def endpoints(hub: LoopbackHub) -> dict[str, str]:
    return {
        "EMB_PROVIDER_HUGGINGFACE_ENDPOINT": hub.endpoint,
        "EMB_PROVIDER_MODELSCOPE_ENDPOINT": hub.endpoint,
        "NO_PROXY": "127.0.0.1,localhost",
    }


def single(name: str, hub: LoopbackHub, **more: str) -> dict[str, str]:
    return (
        endpoints(hub)
        | {"EMB_PROVIDER_MODEL_NAME": name}
        | {f"EMB_PROVIDER_{key}": value for key, value in more.items()}
    )


def detail(server: Server, model_id: str) -> dict[str, object]:
    return server.get(f"/v1/models/{model_id}").json


def test_three_models_of_two_hubs_from_the_guides_env_file_then_again_offline(hub, directories, tmp_path):
    with Server(tmp_path, dotenv=GUIDE, env=endpoints(hub)) as server:
        server.wait_ready()
        vectors = {model: np.array(server.embed(model, TEXTS)) for model in ("gte", "corom", "english")}
        # Whatever the company: each text alone is the same, by alias and by full name.
        for index, text in enumerate(TEXTS):
            for model, name in (("gte", GTE), ("corom", COROM), ("english", ENGLISH)):
                asked = name if index % 2 else model
                assert np.array(server.embed(asked, [text])[0]) == pytest.approx(vectors[model][index], abs=1e-5)
        assert [detail(server, model)["source"] for model in ("gte", "corom", "english")] == [
            "modelscope", "modelscope", "huggingface",
        ]  # fmt: skip
        assert detail(server, "gte")["max_tokens"] == 128

    # modelscope's own pipeline made these, in an environment of its own.
    assert vectors["gte"] == pytest.approx(np.array(RECORDED["models"]["gte"]["vectors"]), abs=1e-5)
    assert vectors["corom"] == pytest.approx(np.array(RECORDED["models"]["corom"]["vectors"]), abs=1e-5)
    assert np.linalg.norm(vectors["corom"], axis=1).min() > 1.5, "CoROM is not normalised"
    explicit = SentenceTransformer(
        modules=[
            Transformer(str(directories[GTE]), max_seq_length=128, model_kwargs={"dtype": "float32"}),
            Pooling(32, pooling_mode="cls"),
            Normalize(),
        ],
        device="cpu",
    )
    assert vectors["gte"] == pytest.approx(explicit.encode(TEXTS, batch_size=1), abs=1e-5)
    english = SentenceTransformer(str(directories[ENGLISH]), device="cpu")
    assert vectors["english"] == pytest.approx(english.encode(TEXTS, batch_size=1), abs=1e-5)

    hub.clear_requests()
    with Server(tmp_path, dotenv=GUIDE, env=endpoints(hub) | {"EMB_PROVIDER_OFFLINE": "true"}) as server:
        server.wait_ready()
        for model, before in vectors.items():
            assert np.array(server.embed(model, TEXTS)) == pytest.approx(before, abs=1e-5)
    assert hub.requests == []


def test_a_download_killed_half_way_shows_its_progress_and_is_completed_at_the_next_start(hub, tmp_path):
    hub.throttle(200_000)
    server = Server(tmp_path, env=single(GTE, hub, READY_WAIT_S="0.1")).start()
    shown = server.wait_for_output(re.compile(r"downloading (\d+) % \(\S+ \S+ of \S+ \S+\)"))
    assert int(shown.group(1)) < 100
    answer = server.post("/v1/embeddings", {"model": GTE, "input": "你好"})
    assert answer.status == 503
    assert "downloading" in answer.json["error"]["message"]
    assert detail(server, GTE)["download"]["total_bytes"] > 0
    time.sleep(0.5)
    server.process.send_signal(signal.SIGKILL)
    server.process.wait(10)
    hub.heal()
    with Server(tmp_path, env=single(GTE, hub)) as again:
        again.wait_ready()
        assert np.array(again.embed(GTE, TEXTS)) == pytest.approx(
            np.array(RECORDED["models"]["gte"]["vectors"]), abs=1e-5
        )


def test_a_corrupt_download_is_refused_and_a_good_one_taken_at_the_next_start(hub, tmp_path):
    hub.corrupt(ENGLISH, "model.safetensors")
    with Server(tmp_path, env=single(ENGLISH, hub)) as server:
        server.wait_for_states(**{ENGLISH: "failed"})
        assert detail(server, ENGLISH)["reason"] == "corrupt_download"
        assert "model.safetensors" in detail(server, ENGLISH)["detail"]
    hub.heal()
    with Server(tmp_path, env=single(ENGLISH, hub)) as server:
        server.wait_ready()


def test_every_way_a_model_cannot_be_had_has_a_reason_a_person_can_act_on(hub, directories, tmp_path):
    hub.add("o/private", directories[ENGLISH], hubs={"huggingface"}, access="gated")
    mapping = {
        "tiny": {"name": "iic/nlp_gte_sentence-embedding_chinese-tiny", "source": "modelscope"},
        "typo": {"name": "sentence-transformers/all-MiniLM-L6-v22", "source": "huggingface"},
        "gated": {"name": "o/private", "source": "huggingface"},
        "good": {"name": ENGLISH},
    }
    with Server(tmp_path, env=endpoints(hub) | {"EMB_PROVIDER_MODEL_MAPPING": json.dumps(mapping)}) as server:
        server.wait_for_states(tiny="failed", typo="failed", gated="failed", good="ready")
        found = {
            name: (detail(server, name)["reason"], detail(server, name)["detail"]) for name in mapping if name != "good"
        }
        assert found["tiny"][0] == found["typo"][0] == "no_such_model"
        assert "chinese-small" in found["tiny"][1] or "chinese-base" in found["tiny"][1]
        assert "all-MiniLM-L6-v2" in found["typo"][1]
        assert found["gated"][0] == "no_permission"
        assert "EMB_PROVIDER_HUGGINGFACE_TOKEN" in found["gated"][1]
        assert server.embed("good", ["hi"])


def test_without_a_network_the_reason_says_so_and_a_cached_model_is_served_all_the_same(hub, tmp_path):
    with Server(tmp_path, env=single(ENGLISH, hub)) as server:
        server.wait_ready()
    hub.down("refuse")
    mapping = {"cached": {"name": ENGLISH}, "missing": {"name": GTE, "source": "modelscope"}}
    with Server(tmp_path, env=endpoints(hub) | {"EMB_PROVIDER_MODEL_MAPPING": json.dumps(mapping)}) as server:
        server.wait_for_states(cached="ready", missing="failed")
        assert detail(server, "missing")["reason"] == "no_network"
        assert "EMB_PROVIDER_MODELSCOPE_ENDPOINT" in detail(server, "missing")["detail"]


def test_auto_tries_the_other_hub_when_the_first_lacks_the_model_and_says_so(hub, directories, tmp_path):
    hub.add("BAAI/only-on-modelscope", directories[ENGLISH], hubs={"modelscope"})
    with Server(tmp_path, env=single("BAAI/only-on-modelscope", hub)) as server:
        server.wait_ready()
        assert detail(server, "BAAI/only-on-modelscope")["source"] == "modelscope"
    log = (tmp_path / "logs" / "emb_model_provider.log").read_text()
    assert re.search(r"huggingface.*modelscope", log)
