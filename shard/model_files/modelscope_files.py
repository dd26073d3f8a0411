"""What ModelScope's ``configuration.json`` says of pooling and length, by the rules of its own pipelines. Pure.

Called by ``layouts``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from emb_model_provider.errors import unsupported
from emb_model_provider.modelmap import ModelSpec, Pooling
from shard.model_files.json_files import as_object
from shard.model_files.prompt_families import known_default
from shard.model_files.recipe import Recipe

#: modelscope's own default when a repository does not say (``SentenceEmbeddingTransformersPreprocessor``).
_MAX_TOKENS: Final = 128
_POOLING: Final[dict[str, Pooling]] = {"cls": "cls", "avg": "mean"}
_MODEL_TYPES: Final = ("bert", "roberta", "xlm-roberta")
_BROKEN_POOLING: Final = ("avg_top2", "avg_first_last")


def read_modelscope(
    config: Mapping[str, object],
    configuration: Mapping[str, object],
    spec: ModelSpec,
    prompts: tuple[tuple[str, str], ...],
) -> Recipe:
    """Read a model of ModelScope's sentence-embedding pipeline; raise ``LoadError`` where its rules are not known."""
    model = as_object(configuration.get("model"))
    model_type = model.get("type") or config.get("model_type", model.get("model_type", "bert"))
    if model_type not in _MODEL_TYPES and spec.pooling is None:
        raise unsupported(
            f"ModelScope's sentence-embedding pipeline treats model type {model_type!r} in a way of its own "
            'that is not known here; if you know its pooling, set "pooling" in this model\'s mapping entry'
        )
    pooler = model.get("emb_pooler_type", "cls")
    if pooler in _BROKEN_POOLING and spec.pooling is None:
        raise unsupported(
            f"its emb_pooler_type {pooler!r} does not work in ModelScope itself, so there is no right answer to give; "
            'set "pooling" in this model\'s mapping entry to choose another'
        )
    pooling = spec.pooling or (_POOLING.get(pooler) if isinstance(pooler, str) else None)
    if pooling is None:
        raise unsupported(f'its emb_pooler_type {pooler!r} is unknown; set "pooling" in this model\'s mapping entry')
    return Recipe(
        "modelscope",
        pooling=pooling,
        normalize=spec.normalize if spec.normalize is not None else model.get("normalize") is True,
        max_length=spec.max_length or modelscope_length(configuration),
        prompts=prompts,
        default_prompt_name=known_default(spec.default_prompt_name, dict(prompts)),
    )


def modelscope_length(configuration: Mapping[str, object]) -> int:
    """Return how many tokens ModelScope's pipelines give a model at most."""
    preprocessor = as_object(configuration.get("preprocessor"))
    # The inference half of a preprocessor that has a half for training too.
    length = preprocessor.get("max_length", as_object(preprocessor.get("val")).get("max_length"))
    return length if isinstance(length, int) and length > 0 else _MAX_TOKENS
