"""What a model is for, and what its library does with its scores, as its files say. Called by ``layouts``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from emb_model_provider.errors import LoadError, LoadReason, unsupported
from emb_model_provider.modelmap import ModelSpec, Task
from shard.model_files.generative import is_generative_reranker
from shard.model_files.json_files import Document, has_architecture, read_object

Activation = Literal["identity", "sigmoid", "softmax"]

#: ``model_type`` in ``config_sentence_transformers.json``; a cross-encoder's task depends on its labels.
_KINDS: Final[dict[str, Task]] = {
    "SentenceTransformer": "embed",
    "SparseEncoder": "sparse",
    "MultiVectorEncoder": "multi_vector",
    "ColBERT": "multi_vector",  # PyLate 3
}
_ACTIVATIONS: Final[dict[str, Activation]] = {
    "torch.nn.modules.linear.Identity": "identity",
    "torch.nn.Identity": "identity",
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
    "torch.nn.Sigmoid": "sigmoid",
    "torch.nn.modules.activation.Softmax": "softmax",
    "torch.nn.Softmax": "softmax",
}
#: ``problem_type`` in ``config.json`` → what transformers' text-classification pipeline then applies.
_PROBLEMS: Final[dict[str, Activation]] = {"multi_label_classification": "sigmoid", "regression": "identity"}
#: transformers' own number of labels where a configuration names none.
_UNSTATED_LABELS: Final = 2
#: ``transformer_task`` of a transformer that makes scores.
_CLASSIFICATION: Final = "sequence-classification"
_RANKING: Final = "text-ranking"
_EMBEDDING: Final = "sentence-embedding"
#: What sentence-transformers writes into a model card for a model trained with its ``MatryoshkaLoss``.
_CARD_DIMENSIONS: Final = re.compile(r'"matryoshka_dims":\s*(\[[\d,\s]*\])')
_MOST_CARD_BYTES: Final = 1024 * 1024


def find_task(spec: ModelSpec, config: Document, configuration: Document, options: Document | None) -> Task:
    """Return what a model is for: as the operator says, else as its files do.

    ``config`` is ``config.json``, ``configuration`` ModelScope's ``configuration.json``, ``options`` is
    ``config_sentence_transformers.json`` of a directory with ``modules.json``.
    """
    kind = None if options is None else options.get("model_type", "SentenceTransformer")
    if spec.task is not None:
        return spec.task
    # Stanford's ColBERT; and PyLate before it named its kind.
    if has_architecture(config, "HF_ColBERT") or (options is not None and "query_prefix" in options):
        return "multi_vector"
    if kind is not None and kind != "CrossEncoder":
        return _KINDS.get(str(kind), "embed")
    if configuration.get("task") == _RANKING or is_generative_reranker(spec, config, kind):
        return "rerank"
    if kind == "CrossEncoder" or has_architecture(config, "ForSequenceClassification"):
        return "rerank" if count_labels(config) == 1 else "classify"
    return "embed"


def is_modelscope_ranking(configuration: Document) -> bool:
    """Tell whether ModelScope's own ranking pipeline serves a model, by that pipeline's rules."""
    pipeline = configuration.get("pipeline")
    is_named = isinstance(pipeline, Mapping) and pipeline.get("type") == _RANKING
    return is_named and configuration.get("task") == _RANKING


def is_modelscope_embedding(configuration: Document) -> bool:
    """Tell whether ModelScope's own embedding pipeline serves a model, by that pipeline's rules.

    Most repositories that were copied to ModelScope name the task and nothing else; modelscope itself hands those to
    sentence-transformers.
    """
    return configuration.get("task") == _EMBEDDING and ("pipeline" in configuration or "model" in configuration)


def count_labels(config: Document) -> int:
    """Return how many labels a classification head has."""
    labels, stated = config.get("id2label"), config.get("num_labels")
    # Where both are there and differ, transformers makes a head of so many and gives it names of its own.
    if stated is None and isinstance(labels, Mapping):
        stated = len(labels)
    return stated if isinstance(stated, int) and stated > 0 else _UNSTATED_LABELS


def check_labels(task: Task, labels: int) -> None:
    """Raise ``LoadError`` for a reranker whose scores are not one number per pair."""
    if task == "rerank" and labels != 1:
        raise unsupported(
            f'its head has {labels} labels, and documents are ranked by one score; set "task": "classify" in its '
            "mapping entry to get all of them",
            "a reranker",
        )


def states_labels(config: Document) -> bool:
    """Tell whether a configuration says how many labels there are."""
    return "id2label" in config or "num_labels" in config


def makes_scores(folder: Path) -> bool:
    """Tell whether sentence-transformers' transformer in ``folder`` is a classifier."""
    return read_object(folder / "sentence_bert_config.json").get("transformer_task") == _CLASSIFICATION


def check_scores(folder: Path, task: Task, modules: int) -> None:
    """Raise ``LoadError`` where that transformer, the first of ``modules``, makes no scores and ``task`` wants them.

    And where it makes them and ``task`` is another.
    """
    if task not in ("rerank", "classify"):
        if makes_scores(folder):
            raise unsupported(f'it makes scores of texts, and is no model for "{task}": leave out its "task"')
    elif modules > 1:
        raise unsupported("its scores are made by modules behind the transformer, which is not supported")
    elif not (folder / "sentence_bert_config.json").exists():
        raise LoadError(
            LoadReason.INCOMPLETE_DOWNLOAD,
            f"{folder / 'sentence_bert_config.json'} is missing, without which a CrossEncoder makes no scores: the "
            "copy of the model is not complete",
        )
    elif not makes_scores(folder):
        raise unsupported(f'its sentence_bert_config.json does not have "transformer_task": "{_CLASSIFICATION}"')


def find_activation(config: Document, options: Document | None, labels: int) -> Activation:
    """Return what the model's library applies to its logits.

    A cross-encoder's is named in its files; else it is sigmoid for one label and nothing for more
    (``sentence_transformers.CrossEncoder``). For models of transformers alone it is what its text-classification
    pipeline does.
    """
    nested = config.get("sentence_transformers")
    named = (
        (options or {}).get("activation_fn")
        or (nested.get("activation_fn") if isinstance(nested, Mapping) else None)
        or config.get("sbert_ce_default_activation_function")
    )
    if isinstance(named, str) and named.startswith("torch."):
        if named not in _ACTIVATIONS:
            raise unsupported(f"its scores go through {named}, which is not supported")
        return _ACTIVATIONS[named]
    if labels == 1:
        return "sigmoid"
    if named or nested or options:
        return "identity"
    return _PROBLEMS.get(str(config.get("problem_type")), "softmax")


def find_matryoshka(directory: Path, config: Document, options: Document | None) -> tuple[int, ...]:
    """Return the dimensions that a model says it is trained to be cut to, ascending; empty where it says nothing."""
    for document in (config, options or {}):
        for key in ("matryoshka_dimensions", "matryoshka_dims"):
            if dimensions := _dimensions(document.get(key)):
                return dimensions
    card = directory / "README.md"
    try:
        text = card.read_bytes()[:_MOST_CARD_BYTES].decode("utf-8", errors="replace")
    except OSError:
        return ()
    match = _CARD_DIMENSIONS.search(text)
    return () if match is None else _dimensions([int(one) for one in re.findall(r"\d+", match[1])])


def _dimensions(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(isinstance(one, int) and one > 0 for one in value):
        return ()
    return tuple(sorted(set(value)))
