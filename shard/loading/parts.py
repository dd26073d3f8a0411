"""The parts of one loaded model, placed on their device.

Called by ``loader``; ``paths`` finds the quickest way through them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from sentence_transformers.base.modules.module import Module
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.sparse_encoder.modules import SpladePooling
from torch import nn
from transformers import PreTrainedTokenizerFast

from emb_model_provider.logs import EventLog
from shard.device import ComputePlan
from shard.encoders.bge_m3 import BgeM3Head, TokenLinears
from shard.encoders.heads import Head, Heads, measure_dimension
from shard.encoders.late_interaction import LateHead, make_mask
from shard.encoders.late_modules import skipped_ids
from shard.encoders.logit_score import LogitScoreHead
from shard.encoders.one_by_one import OneByOne
from shard.encoders.padded import PaddedPath
from shard.encoders.rescaled_rope import RescaledRope, find_rescaled
from shard.encoders.routed import RoutedHead
from shard.encoders.score_head import ScoreHead
from shard.encoders.sentence_transformer import ForwardPath
from shard.encoders.splade import SpladeHead
from shard.encoders.static_embedding import StaticHeads, StaticPath, TokenTable
from shard.encoders.storage16 import store_in_16_bit
from shard.encoders.switched_attention import SwitchedAttention, find_sparse
from shard.encoders.transposed import use_linears
from shard.loading.tokenizers import check_vocabulary, fast_tokenizer
from shard.model_files.recipe import Recipe

log = EventLog("shard.loading.parts")

_NOTHING_BESIDE: Final[Mapping[int, Sequence[nn.Module]]] = {}


@dataclass(frozen=True, slots=True)
class Parts:
    """A transformer and what follows it. ``plain`` runs them by the model's own code, long texts by ``rescaled``."""

    transformer: Module
    heads: Head
    plain: ForwardPath
    wants_type_ids: bool
    rescaled: RescaledRope | None = None


def place(
    modules: Sequence[nn.Module],
    plan: ComputePlan,
    recipe: Recipe,
    beside: Mapping[int, Sequence[nn.Module]] = _NOTHING_BESIDE,
) -> Parts:
    """Bring modules to the device and format of ``plan``; raise ``LoadError`` where the tokenizer is of no use.

    ``beside`` are those of a routed model's other ways through the same transformer, by the ways' numbers.
    """
    transformer: Any = modules[0]
    if isinstance(transformer, TokenTable):
        return _place_table(transformer, modules[1:], plan)
    if not plan.uses_bitsandbytes:  # it has placed its weights itself and refuses to be moved
        use_linears(transformer)
        transformer.to(plan.device)
    tokenizer = fast_tokenizer(transformer)
    check_vocabulary(tokenizer)
    heads = _make_head(modules, tokenizer, recipe)
    if beside:
        others = {number: _make_head(way, tokenizer, recipe) for number, way in beside.items()}
        heads = RoutedHead({0: heads, **others})
    if not isinstance(heads, SpladeHead):
        heads.modules.to(plan.device, torch.float32)
    wants_type_ids = "token_type_ids" in tokenizer.model_input_names
    rescaled: RescaledRope | None = None
    plain: ForwardPath = PaddedPath(
        transformer, heads, plan.device, pad_id=tokenizer.pad_token_id or 0, wants_type_ids=wants_type_ids
    )
    if rotaries := find_rescaled(transformer):
        plain = rescaled = RescaledRope(plain, rotaries)
        reason = "its positions are scaled by the longest text of a pass"
        log.info("long_texts_alone", above_tokens=rescaled.most_plain, reason=reason)
    if sparse := find_sparse(transformer):
        plain = SwitchedAttention(plain, sparse)
    if isinstance(heads, ScoreHead) and not heads.takes_company:
        plain = OneByOne(plain)
    return Parts(transformer, heads, plain, wants_type_ids, rescaled)


def _place_table(table: TokenTable, following: Sequence[nn.Module], plan: ComputePlan) -> Parts:
    heads = StaticHeads(following, table.embedding_dim)
    table.to(plan.device)
    heads.modules.to(plan.device, torch.float32)
    return Parts(table, heads, StaticPath(table, heads, plan.device), wants_type_ids=False)


def _make_head(modules: Sequence[nn.Module], tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> Head:
    transformer: Any = modules[0]
    following = modules[1:]
    if recipe.generative is not None:
        rows = following[0]
        assert isinstance(rows, nn.Linear)
        return LogitScoreHead(rows)
    if recipe.scores:
        return ScoreHead(transformer.model, recipe.task)
    if following and isinstance(following[0], SpladePooling):
        return SpladeHead(transformer.language_head, following[0], recipe.max_active)
    size = measure_dimension(transformer) or 0
    if recipe.late is not None:
        mask = next((step for step in following if isinstance(step, MultiVectorMask)), None)
        steps = [step for step in following if step is not mask]
        return LateHead(steps, make_mask(mask, [] if mask is None else skipped_ids(tokenizer, mask)), size)
    if following and isinstance(following[-1], TokenLinears):
        # Those that FlagEmbedding leaves out of sparse vectors, where the tokenizer has them.
        unused = {tokenizer.cls_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}
        return BgeM3Head(Heads(following[:-1], size), following[-1], frozenset(unused - {None}))
    return Heads(following, size)


def narrow(parts: Parts, plan: ComputePlan) -> None:
    """Store the large matrices of ``parts`` in 16 bit from now on; they are widened as they are used."""
    store_in_16_bit(parts.transformer, getattr(torch, plan.storage))


def count_bytes(modules: Iterable[nn.Module]) -> int:
    """Return the size of all parameters and buffers below ``modules``, shared ones once."""
    tensors = {id(tensor): tensor for module in modules for tensor in (*module.parameters(), *module.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
