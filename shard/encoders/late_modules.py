"""Builds the modules of a late-interaction model from a directory. For ``modules``, ``parts`` and ``loader``.

By the rules of sentence-transformers' ``MultiVectorEncoder``, whose own loading would leave a missing projection
random; here that is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import nn
from transformers import AddedToken, PreTrainedTokenizerFast

from emb_model_provider.errors import LoadError, LoadReason, unsupported
from shard.encoders.late_interaction import FillUp, Lengths
from shard.model_files.late_files import LateFiles
from shard.model_files.weights import find_checkpoint, read_pickled

_PROJECTION = "linear.weight"


def complete_modules(modules: Sequence[nn.Module], late: LateFiles, directory: Path, said: set[str]) -> list[nn.Module]:
    """Return the modules with everything that the files say beside them; ``said`` is in the transformer's own file."""
    transformer, *following = modules
    assert isinstance(transformer, Transformer)
    for name, length in late.lengths:
        if name not in said:
            setattr(transformer, name, length)
    if late.says_expansion and "query_expansion" not in said:
        transformer.query_expansion = None if late.expansion is None else dict(late.expansion)
    register_markers(transformer.tokenizer, late.markers)
    if late.is_stanford:
        following = [_inline_projection(directory)]
    if late.is_bare:
        # A pooling and what normalises its vector are of the single-vector model that this one was saved as.
        following = [step for step in following if not isinstance(step, Pooling | Normalize)]
        following += [MultiVectorMask(list(late.skiplist)), Normalize(module_input_name="token_embeddings")]
    for step in following:
        if isinstance(step, Dense):
            step.module_input_name = step.module_output_name = "token_embeddings"
    if not any(isinstance(step, Dense) for step in following) and late.is_bare:
        raise unsupported(
            "it has no projection (Dense), and a random one would give random vectors", "a multi-vector one"
        )
    return [transformer, *following]


def register_markers(tokenizer: PreTrainedTokenizerFast, markers: Sequence[str]) -> None:
    """Let the tokenizer read each marker that its vocabulary has as one token, as the model was trained."""
    vocabulary = tokenizer.get_vocab()  # with what was added to it
    tokens = []
    for marker in markers:
        for text in (marker, *marker.split(None, 1)[:1]):
            if text.strip() and text in vocabulary:
                if tokenizer.tokenize(text) != [text]:
                    tokens.append(AddedToken(text, normalized=False, special=True))
                break
    if tokens:
        tokenizer.add_special_tokens({"additional_special_tokens": tokens})


def skipped_ids(tokenizer: PreTrainedTokenizerFast, mask: MultiVectorMask) -> list[int]:
    """Return the ids of the words that a mask skips; one that is no single token of the vocabulary is not skipped."""
    words: list[str] = mask.skiplist_words
    found: list[tuple[str, Any]] = [(word, tokenizer.convert_tokens_to_ids(word)) for word in words]
    return [number for word, number in found if number != tokenizer.unk_token_id or word == tokenizer.unk_token]


def read_lengths(transformer: Any) -> Lengths:  # noqa: ANN401 - a Transformer, or a module of the model's own
    """Return the lengths of queries and documents as the transformer has them."""
    said = getattr(transformer, "query_expansion", None)
    fill_up = None
    if said is not None:
        tokenizer = transformer.tokenizer
        named = said["token"]
        own = tokenizer.mask_token_id if tokenizer.mask_token_id is not None else tokenizer.eos_token_id
        token = own if named is None else tokenizer.convert_tokens_to_ids(named)
        fill_up = FillUp(said["strategy"], token, said["length"], attended=said["attend"])
    return Lengths(getattr(transformer, "query_length", None), getattr(transformer, "document_length", None), fill_up)


def _inline_projection(directory: Path) -> Dense:
    """Return the projection that Stanford's ColBERT keeps among the transformer's weights."""
    for file in find_checkpoint(directory).files:
        weight = _tensor_of(file)
        if weight is not None:
            projection: Dense = Dense(
                weight.shape[1],
                weight.shape[0],
                bias=False,
                activation_function=nn.Identity(),
                init_weight=weight.float(),
                module_input_name="token_embeddings",
            )
            return projection
    raise LoadError(
        LoadReason.WRONG_WEIGHTS, f"the weights in {directory} have no {_PROJECTION}, ColBERT's projection of tokens"
    )


def _tensor_of(file: Path) -> torch.Tensor | None:
    if file.suffix == ".bin":
        return read_pickled(file).get(_PROJECTION)
    with safe_open(file, framework="pt") as tensors:
        return tensors.get_tensor(_PROJECTION) if _PROJECTION in tensors.keys() else None  # noqa: SIM118 - no dict
