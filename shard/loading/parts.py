"""The parts of one loaded model, placed on their device, and what they say about lengths and sizes.

Called by ``loader``; ``paths`` finds the quickest way through them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from sentence_transformers.base.modules import Transformer
from sentence_transformers.base.modules.module import Module
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.sparse_encoder.modules import SpladePooling
from torch import nn
from transformers import PreTrainedTokenizerFast

from emb_model_provider.errors import LoadError, LoadReason, unsupported
from emb_model_provider.logs import EventLog
from shard.device import ComputePlan
from shard.encoders.asked_pairs import AskedTokenizer, Write, template_writer, write_qwen3
from shard.encoders.bge_m3 import BgeM3Head, TokenLinears
from shard.encoders.cut_vocabulary import warn_if_cut
from shard.encoders.heads import Head, Heads, measure_dimension
from shard.encoders.in_parts import Helpers
from shard.encoders.late_interaction import LateHead, LateTokenizer, Lengths, make_mask
from shard.encoders.late_modules import skipped_ids
from shard.encoders.logit_score import LogitScoreHead
from shard.encoders.one_by_one import OneByOne
from shard.encoders.own_reading import check_reading
from shard.encoders.padded import PaddedPath
from shard.encoders.positions import find_position_table
from shard.encoders.rescaled_rope import RescaledRope, find_rescaled
from shard.encoders.routed import BareTokenizer, RoutedHead, RoutedTokenizer, Ways
from shard.encoders.score_head import ScoreHead
from shard.encoders.sentence_transformer import ForwardPath
from shard.encoders.splade import SpladeHead
from shard.encoders.static_embedding import StaticHeads, StaticPath, TokenTable
from shard.encoders.storage16 import store_in_16_bit
from shard.encoders.switched_attention import SwitchedAttention, find_sparse
from shard.encoders.text_options import text_options
from shard.encoders.text_tokenizer import TextTokenizer, TokenizerFacts
from shard.encoders.transposed import use_linears
from shard.foreign_ids import Decode
from shard.model_files.generative import GenerativeFiles
from shard.model_files.recipe import Recipe

log = EventLog("shard.loading.parts")

#: For models that state no length at all (T5's positions are relative): enough for a chapter, not for a whole disk.
_UNSTATED_MAX_TOKENS: Final = 8192
#: SentencePiece's sign for a blank, which a vocabulary that is made up may have beside its special tokens.
_WORD_START: Final = "▁"
_NOTHING_BESIDE: Final[Mapping[int, Sequence[nn.Module]]] = {}
_LARGEST_STATED_TOKENS: Final = 1_000_000  # transformers writes 1e30 for "no limit"


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
    tokenizer = _fast_tokenizer(transformer)
    _check_vocabulary(tokenizer)
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


def make_tokenizer(
    transformer: Module,
    max_tokens: int,
    decode: Decode | None,
    helpers: Helpers,
    lengths: Lengths | None = None,
    generative: GenerativeFiles | None = None,
    ways: Ways | None = None,
) -> TextTokenizer:
    """Return the model's tokenizer, which cuts at ``max_tokens``; ``decode`` reads ids that are not its own.

    ``lengths`` are those of queries and documents of a multi-vector model, ``generative`` is how a language model is
    asked for scores, ``ways`` are what a routed model has beside the transformer.
    """
    if isinstance(transformer, TokenTable):
        return transformer.make_tokenizer(max_tokens, decode, helpers)
    tokenizer = _fast_tokenizer(transformer)
    check_reading(transformer, tokenizer, min(max_tokens, _own_length(transformer)))
    warn_if_cut(tokenizer, _rows(transformer))
    facts = _facts(tokenizer, vocabulary_size(transformer))
    if ways is not None:
        return RoutedTokenizer(tokenizer.backend_tokenizer, facts, max_tokens, ways, decode=decode, helpers=helpers)
    if lengths is not None:
        return LateTokenizer(tokenizer.backend_tokenizer, facts, max_tokens, lengths, decode=decode, helpers=helpers)
    if generative is not None and generative.uses_template:
        write = _make_writer(transformer, tokenizer, generative)
        return AskedTokenizer(tokenizer.backend_tokenizer, facts, max_tokens, write, decode=decode, helpers=helpers)
    return TextTokenizer(tokenizer.backend_tokenizer, facts, max_tokens, decode=decode, helpers=helpers)


def make_bare_tokenizer(
    static: Module, rows: int, max_tokens: int | None, decode: Decode | None, helpers: Helpers
) -> TextTokenizer:
    """Return the tokenizer of a module without inference, which reads no special tokens and has ``rows`` weights.

    It cuts at ``max_tokens``, where that is ``None`` as its own files say.
    """
    tokenizer = _fast_tokenizer(static)
    _check_vocabulary(tokenizer)
    stated = int(tokenizer.model_max_length)
    usual = stated if 0 < stated <= _LARGEST_STATED_TOKENS else _UNSTATED_MAX_TOKENS
    length = max_tokens or usual
    read = BareTokenizer(tokenizer.backend_tokenizer, _facts(tokenizer, rows), length, decode=decode, helpers=helpers)
    tokenizer.backend_tokenizer.post_processor = None
    check_reading(static, tokenizer, length)
    return read


def _facts(tokenizer: PreTrainedTokenizerFast, vocabulary: int) -> TokenizerFacts:
    return TokenizerFacts(
        vocabulary_size=vocabulary,
        cut_side="start" if tokenizer.truncation_side == "left" else "end",
        special_ids=frozenset(tokenizer.all_special_ids),
        split_special_tokens=bool(tokenizer.split_special_tokens),
    )


def find_question(transformer: Module, recipe: Recipe) -> GenerativeFiles | None:
    """Return how a language model is asked for scores; ``None`` where pairs are read as they are.

    One with a classification head is asked, too, if its chat template carries a query and a document: so does
    ``CrossEncoder`` read it. Where the model's modules say how texts are read, they have the say.
    """
    if recipe.generative is not None or recipe.task != "rerank" or recipe.layout != "transformers":
        return recipe.generative
    if _fast_tokenizer(transformer).chat_template is None or transformer.input_formatter.pair_roles_failure({}):
        return None
    return GenerativeFiles()


def _make_writer(transformer: Module, tokenizer: PreTrainedTokenizerFast, generative: GenerativeFiles) -> Write:
    options = dict(generative.template_options)
    failure = transformer.input_formatter.pair_roles_failure(options)
    if failure is None:
        message_format = generative.message_format or transformer.input_formatter.message_format
        return template_writer(tokenizer, options, structured=message_format == "structured")
    if generative.is_qwen3:
        return write_qwen3
    raise unsupported(
        f"its chat template cannot carry a query and a document ({failure}). Put a chat_template.jinja beside it that "
        "writes messages of the roles query and document, as sentence-transformers' CrossEncoder reads it, or serve a "
        "cross-encoder such as BAAI/bge-reranker-v2-m3",
        "a reranker",
    )


def _fast_tokenizer(transformer: Module) -> PreTrainedTokenizerFast:
    tokenizer: PreTrainedTokenizerFast | None = transformer.tokenizer
    if tokenizer is None or not tokenizer.is_fast:
        raise unsupported(f"its tokenizer ({type(tokenizer).__name__}) has no tokenizer.json form")
    return tokenizer


def _check_vocabulary(tokenizer: PreTrainedTokenizerFast) -> None:
    """Raise ``LoadError`` INCOMPLETE_DOWNLOAD for the vocabulary that transformers makes up where it finds none."""
    made_up = {*tokenizer.all_special_tokens, _WORD_START}
    backend = tokenizer.backend_tokenizer
    # Asked for its size first: a vocabulary of a quarter of a million as a dict would take a start a tenth of a second.
    if backend.get_vocab_size(with_added_tokens=False) > len(made_up):
        return
    if set(backend.get_vocab(with_added_tokens=False)) - made_up:
        return
    raise LoadError(
        LoadReason.INCOMPLETE_DOWNLOAD,
        f"{tokenizer.name_or_path} holds no vocabulary for its tokenizer (tokenizer.json, or what "
        f"{type(tokenizer).__name__} is made from), so that every text would have the same vector: the copy of the "
        "model is not complete",
    )


def count_bytes(modules: Iterable[nn.Module]) -> int:
    """Return the size of all parameters and buffers below ``modules``, shared ones once."""
    tensors = {id(tensor): tensor for module in modules for tensor in (*module.parameters(), *module.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def max_tokens(transformer: Module, recipe: Recipe) -> int:
    """Return the length to cut at: as set, else as the model says, never more than it has positions.

    A model that computes its positions has as many as its files say, in ``config.json`` or as their own length.
    """
    own = _own_length(transformer)
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


def _own_length(transformer: Module) -> int:
    """Return the length that the model's files state. sentence-transformers has put it into its tokenizer.

    Where they name none it is that of ``config.json``; where they do, what ``config.json`` says does not count.
    """
    stated: object = None
    if isinstance(transformer, Transformer):
        stated = text_options(transformer).get("max_length")
    elif isinstance(length := getattr(transformer, "max_seq_length", None), int):
        stated = length  # a module of the model's own cuts by it, whatever its tokenizer says
    return int(stated if isinstance(stated, int) else transformer.tokenizer.model_max_length)


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


def vocabulary_size(transformer: Module) -> int:
    """Return below which number an id is both in the tokenizer, which may leave some out, and in the model's table."""
    tokens = max(_fast_tokenizer(transformer).get_vocab().values()) + 1
    rows = _rows(transformer)
    return tokens if rows is None else min(tokens, rows)


def _rows(transformer: Module) -> int | None:
    model = getattr(transformer, "model", None)
    table = model.get_input_embeddings() if model is not None else None
    return getattr(table, "num_embeddings", None)
