"""Which tokenizer reads a model's texts: by its kind, its chat template, its vocabulary. Called by ``loader``."""

from __future__ import annotations

from typing import Final

from sentence_transformers.base.modules.module import Module
from transformers import PreTrainedTokenizerFast

from emb_model_provider.errors import LoadError, LoadReason, unsupported
from shard.encoders.asked_pairs import AskedTokenizer, Write, template_writer, write_qwen3
from shard.encoders.cut_vocabulary import warn_if_cut
from shard.encoders.in_parts import Helpers
from shard.encoders.late_interaction import LateTokenizer, Lengths
from shard.encoders.own_reading import check_reading
from shard.encoders.routed import BareTokenizer, LookedUpRoutes, RoutedTokenizer
from shard.encoders.static_embedding import TokenTable
from shard.encoders.text_tokenizer import TextTokenizer, TokenizerFacts
from shard.foreign_ids import Decode
from shard.loading.lengths import own_length, usual_length
from shard.model_files.generative import GenerativeFiles
from shard.model_files.recipe import Recipe

#: SentencePiece's sign for a blank, which a vocabulary that is made up may have beside its special tokens.
_WORD_START: Final = "▁"


def make_tokenizer(
    transformer: Module,
    max_tokens: int,
    decode: Decode | None,
    helpers: Helpers,
    lengths: Lengths | None = None,
    generative: GenerativeFiles | None = None,
    looked_up: LookedUpRoutes | None = None,
) -> TextTokenizer:
    """Return the model's tokenizer, which cuts at ``max_tokens``; ``decode`` reads ids that are not its own.

    ``lengths`` are those of queries and documents of a multi-vector model, ``generative`` is how a language model is
    asked for scores, ``looked_up`` is what a routed model has beside the transformer.
    """
    if isinstance(transformer, TokenTable):
        return transformer.make_tokenizer(max_tokens, decode, helpers)
    tokenizer = fast_tokenizer(transformer)
    check_reading(transformer, tokenizer, min(max_tokens, own_length(transformer)))
    warn_if_cut(tokenizer, _rows(transformer))
    facts = _facts(tokenizer, vocabulary_size(transformer))
    if looked_up is not None:
        return RoutedTokenizer(
            tokenizer.backend_tokenizer, facts, max_tokens, looked_up, decode=decode, helpers=helpers
        )
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
    tokenizer = fast_tokenizer(static)
    check_vocabulary(tokenizer)
    length = max_tokens or usual_length(tokenizer)
    read = BareTokenizer(tokenizer.backend_tokenizer, _facts(tokenizer, rows), length, decode=decode, helpers=helpers)
    tokenizer.backend_tokenizer.post_processor = None
    check_reading(static, tokenizer, length)
    return read


def find_question(transformer: Module, recipe: Recipe) -> GenerativeFiles | None:
    """Return how a language model is asked for scores; ``None`` where pairs are read as they are.

    One with a classification head is asked, too, if its chat template carries a query and a document: so does
    ``CrossEncoder`` read it. Where the model's modules say how texts are read, they have the say.
    """
    if recipe.generative is not None or recipe.task != "rerank" or recipe.layout != "transformers":
        return recipe.generative
    if fast_tokenizer(transformer).chat_template is None or transformer.input_formatter.pair_roles_failure({}):
        return None
    return GenerativeFiles()


def vocabulary_size(transformer: Module) -> int:
    """Return below which number an id is both in the tokenizer, which may leave some out, and in the model's table."""
    tokens = max(fast_tokenizer(transformer).get_vocab().values()) + 1
    rows = _rows(transformer)
    return tokens if rows is None else min(tokens, rows)


def _facts(tokenizer: PreTrainedTokenizerFast, vocabulary: int) -> TokenizerFacts:
    return TokenizerFacts(
        vocabulary_size=vocabulary,
        cut_side="start" if tokenizer.truncation_side == "left" else "end",
        special_ids=frozenset(tokenizer.all_special_ids),
        split_special_tokens=bool(tokenizer.split_special_tokens),
    )


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


def fast_tokenizer(transformer: Module) -> PreTrainedTokenizerFast:
    """Return a module's own tokenizer; raise ``LoadError`` where that is none in Rust."""
    tokenizer: PreTrainedTokenizerFast | None = transformer.tokenizer
    if tokenizer is None or not tokenizer.is_fast:
        raise unsupported(f"its tokenizer ({type(tokenizer).__name__}) has no tokenizer.json form")
    return tokenizer


def check_vocabulary(tokenizer: PreTrainedTokenizerFast) -> None:
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


def _rows(transformer: Module) -> int | None:
    model = getattr(transformer, "model", None)
    table = model.get_input_embeddings() if model is not None else None
    return getattr(table, "num_embeddings", None)
