"""Where a model's texts are cut: what its files state, its table of positions, and settings. Called by ``loader``."""

from __future__ import annotations

from typing import Final

from sentence_transformers.base.modules import Transformer
from sentence_transformers.base.modules.module import Module
from transformers import PreTrainedTokenizerFast

from emb_model_provider.errors import unsupported
from emb_model_provider.logs import EventLog
from shard.encoders.positions import find_position_table
from shard.encoders.text_options import text_options
from shard.model_files.recipe import Recipe

log = EventLog("shard.loading.lengths")

#: For models that state no length at all (T5's positions are relative): enough for a chapter, not for a whole disk.
_UNSTATED_MAX_TOKENS: Final = 8192
_LARGEST_STATED_TOKENS: Final = 1_000_000  # transformers writes 1e30 for "no limit"


def max_tokens(transformer: Module, recipe: Recipe) -> int:
    """Return the length to cut at: as set, else as the model says, never more than it has positions.

    A model that computes its positions has as many as its files say, in ``config.json`` or as their own length.
    """
    own = own_length(transformer)
    stated = own if recipe.max_length is None else recipe.max_length
    if stated < 1:
        raise unsupported(f"its files state a length of {stated} tokens: set max_length in its mapping entry")
    positions = _positions(transformer)
    if positions is not None and own <= _LARGEST_STATED_TOKENS and _computes_positions(transformer):
        positions = max(positions, own)
    if positions is not None and stated > positions:
        if recipe.max_length is not None:
            log.warning("max_length_capped", asked=recipe.max_length, positions=positions)
        return positions
    if stated > _LARGEST_STATED_TOKENS:
        log.warning("max_length_unstated", using=_UNSTATED_MAX_TOKENS, setting="max_length in the mapping entry")
        return _UNSTATED_MAX_TOKENS
    return int(stated)


def own_length(transformer: Module) -> int:
    """Return the length that the model's files state. sentence-transformers has put it into its tokenizer.

    Where they name none it is that of ``config.json``; where they do, what ``config.json`` says does not count.
    """
    stated: object = None
    if isinstance(transformer, Transformer):
        stated = text_options(transformer).get("max_length")
    elif isinstance(length := getattr(transformer, "max_seq_length", None), int):
        stated = length  # a module of the model's own cuts by it, whatever its tokenizer says
    return int(stated if isinstance(stated, int) else transformer.tokenizer.model_max_length)


def usual_length(tokenizer: PreTrainedTokenizerFast) -> int:
    """Return the length that a tokenizer without a model states, or that of models which state none."""
    stated = int(tokenizer.model_max_length)
    return stated if 0 < stated <= _LARGEST_STATED_TOKENS else _UNSTATED_MAX_TOKENS


def _positions(transformer: Module) -> int | None:
    """Count usable positions. RoBERTa and its kin start at padding_idx + 1, which their table's size includes."""
    table, first = find_position_table(transformer)
    if table is not None:
        return table.num_embeddings - first
    stated = getattr(getattr(transformer, "config", None), "max_position_embeddings", None)
    return stated if isinstance(stated, int) and stated > 0 else None


def _computes_positions(transformer: Module) -> bool:
    """Tell whether positions are rotations, or distances (DeBERTa's), of which there is no end."""
    if find_position_table(transformer)[0] is not None:
        return False
    is_rotary = any(name.endswith("inv_freq") for name, _ in transformer.named_buffers())
    return is_rotary or bool(getattr(getattr(transformer, "config", None), "relative_attention", False))
