"""Makes tiny rerankers and classifiers: a body of ``tiny_models`` with the head that its family has.

As in ``tiny_models``: random weights from a seed, into ``directory``, which is returned.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.support import tiny_models
from tests.support.tiny_models import SHAPE, Weights
from tests.support.tiny_tokenizers import write_json


def make_bert_classifier(directory: Path, *, labels: Sequence[str] = ("LABEL_0",), seed: int = 31) -> Path:
    """``BertForSequenceClassification``: a pooler and one linear layer."""
    tiny_models.make_plain(directory, seed=seed)
    random = np.random.RandomState(seed)
    _give_head(
        directory,
        prefix="bert.",
        architecture="BertForSequenceClassification",
        labels=labels,
        head=_linear(random, "bert.pooler.dense", SHAPE.hidden) | _linear(random, "classifier", len(labels)),
    )
    return directory


def make_xlm_roberta_classifier(directory: Path, *, labels: Sequence[str] = ("LABEL_0",), seed: int = 32) -> Path:
    """``XLMRobertaForSequenceClassification`` as ``BAAI/bge-reranker-*``: two linear layers on the first token."""
    tiny_models.make_xlm_roberta(directory, seed=seed)
    random = np.random.RandomState(seed)
    _give_head(
        directory,
        prefix="roberta.",
        architecture="XLMRobertaForSequenceClassification",
        labels=labels,
        head=_linear(random, "classifier.dense", SHAPE.hidden) | _linear(random, "classifier.out_proj", len(labels)),
    )
    return directory


def make_modelscope_ranker(directory: Path, *, max_length: int | None = None, seed: int = 33) -> Path:
    """``iic/nlp_corom_passage-ranking_*``: a BERT whose configuration says nothing of labels."""
    make_bert_classifier(directory, seed=seed)
    config = read_json(directory / "config.json")
    write_json(directory / "config.json", {key: value for key, value in config.items() if "label" not in key})
    preprocessor: dict[str, Any] = {"type": "text-ranking"}
    if max_length is not None:
        preprocessor["max_length"] = max_length
    configuration = {
        "framework": "pytorch",
        "task": "text-ranking",
        "model": {"type": "bert"},
        "pipeline": {"type": "text-ranking"},
        "preprocessor": preprocessor,
    }
    write_json(directory / "configuration.json", configuration)
    return directory


def set_config(directory: Path, **values: object) -> Path:
    """Change keys of ``config.json``."""
    write_json(directory / "config.json", read_json(directory / "config.json") | values)
    return directory


def read_json(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def _give_head(directory: Path, *, prefix: str, architecture: str, labels: Sequence[str], head: Weights) -> None:
    weights = {f"{prefix}{name}": array for name, array in load_file(directory / "model.safetensors").items()}
    save_file(weights | head, directory / "model.safetensors", metadata={"format": "pt"})
    numbered: Mapping[str, str] = {str(number): label for number, label in enumerate(labels)}
    set_config(
        directory,
        architectures=[architecture],
        id2label=numbered,
        label2id={label: number for number, label in enumerate(labels)},
    )


def _linear(random: np.random.RandomState, name: str, outputs: int) -> Weights:
    weight = (random.standard_normal((outputs, SHAPE.hidden)) * 0.3).astype(np.float32)
    bias = (random.standard_normal(outputs) * 0.1).astype(np.float32)
    return {f"{name}.weight": weight, f"{name}.bias": bias}
