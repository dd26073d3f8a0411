"""Opens the routes of a model on which nothing is computed. Called by ``loader``, which builds the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding

from emb_model_provider.errors import LoadError, LoadReason, unsupported
from shard.encoders.in_parts import Helpers
from shard.encoders.routed import LookedUpRoutes, SparseStaticPath
from shard.encoders.sentence_transformer import ForwardPath
from shard.encoders.text_tokenizer import TextTokenizer
from shard.foreign_ids import Decode
from shard.loading.tokenizers import make_bare_tokenizer
from shard.model_files.json_files import read_object
from shard.model_files.recipe import ModuleEntry, Recipe
from shard.model_files.routes import is_sparse_static
from shard.model_files.weights import find_checkpoint


def open_looked_up(directory: Path, recipe: Recipe, decode: Decode | None, helpers: Helpers) -> LookedUpRoutes | None:
    """Return what a routed model has for those texts that its transformer does not read; ``None`` for other models."""
    if recipe.routes is None:
        return None
    tokenizers: dict[int, TextTokenizer] = {}
    paths: dict[int, ForwardPath] = {}
    for number, way in enumerate(recipe.routes.ways):
        if not is_sparse_static(way):
            continue
        static = _load_sparse_static(directory, way[0])
        weights = np.ascontiguousarray(static.weight.detach().numpy(), dtype=np.float32)
        tokenizers[-number] = make_bare_tokenizer(static, len(weights), recipe.max_length, decode, helpers)
        paths[-number] = SparseStaticPath(weights, recipe.max_active)
    return LookedUpRoutes(recipe.routes, tokenizers, paths)


def _load_sparse_static(directory: Path, entry: ModuleEntry) -> SparseStaticEmbedding:
    folder = directory / entry.path
    named = read_object(folder / "config.json").get("path")
    if isinstance(named, str) and named.endswith(".json"):  # sentence-transformers would read it, wherever it lies
        raise unsupported(
            f"{folder / 'config.json'} names another file for its weights ({named}): save the model once more with "
            "sentence-transformers, which writes them beside it"
        )
    find_checkpoint(folder)
    static: SparseStaticEmbedding = SparseStaticEmbedding.load(
        str(directory), subfolder=entry.path, local_files_only=True
    )
    if not static.weight.isfinite().all():
        raise LoadError(LoadReason.BAD_VECTORS, f"the weights in {folder} hold what is not a finite number")
    if (last := max(static.tokenizer.get_vocab().values(), default=0)) >= len(static.weight):
        raise LoadError(
            LoadReason.WRONG_WEIGHTS,
            f"{folder} has {len(static.weight)} weights, and its tokenizer makes ids up to {last}: one of them is that "
            "of another model",
        )
    return static
