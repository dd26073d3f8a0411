"""Late interaction (ColBERT): one vector per token that counts. Made by ``parts``, run by both forward paths.

By the rules of sentence-transformers' ``MultiVectorEncoder``: queries and documents have a marker and a length each, a
query may be filled up with mask tokens that count as well, and of documents some tokens (punctuation) are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.sentence_transformer.modules import Dropout, LayerNorm
from tokenizers import Tokenizer
from torch import nn

from shard.encoder import PLAIN, Reading, Results, Tokenized
from shard.encoders.heads import Features, HeadFacts, hidden_states, in_blocks, measure_dimension
from shard.encoders.in_parts import ALONE, Helpers
from shard.encoders.text_tokenizer import TextTokenizer, TokenizerFacts
from shard.foreign_ids import Decode

TokenIds = npt.NDArray[np.int64]

_STEPS: Final = (Dense, Normalize, LayerNorm, Dropout)


@dataclass(frozen=True, slots=True)
class FillUp:
    """How a short query is filled up: to ``length`` tokens with ``token``.

    ``fixed`` queries are also cut at that length. Where they are not ``attended``, no token sees the added ones.
    """

    strategy: Literal["fixed", "min"]
    token: int
    length: int
    attended: bool


@dataclass(frozen=True, slots=True)
class Lengths:
    """The most tokens of a query and of a document, ``None`` where only the model's own limit counts."""

    query: int | None = None
    document: int | None = None
    fill_up: FillUp | None = None

    def limit(self, *, is_query: bool) -> int | None:
        """Return where a text is cut."""
        if not is_query:
            return self.document
        if self.fill_up is None:
            return self.query
        if self.fill_up.strategy == "fixed":
            return self.fill_up.length
        return None if self.query is None else max(self.query, self.fill_up.length)


class LateTokenizer(TextTokenizer):
    """A ``TextTokenizer`` that treats queries and documents in their own ways.

    A text is a query where its prompt is asked for by a name that has ``query`` in it, and else a document.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        facts: TokenizerFacts,
        max_tokens: int,
        lengths: Lengths,
        *,
        decode: Decode | None = None,
        helpers: Helpers = ALONE,
    ) -> None:
        super().__init__(tokenizer, facts, max_tokens, decode=decode, helpers=helpers)
        self._lengths = lengths

    def tokenize(self, texts: Sequence[str], reading: Reading = PLAIN) -> list[Tokenized]:
        """Tokenise ``prompt + text`` each."""
        return [self._filled(one, reading) for one in super().tokenize(texts, self._limited(reading))]

    def accept_ids(self, ids: Sequence[int], reading: Reading = PLAIN) -> Tokenized:
        """Check ids, add the special tokens if they are not there, and cut."""
        return self._filled(super().accept_ids(ids, self._limited(reading)), reading)

    def _limited(self, reading: Reading) -> Reading:
        limits = [reading.max_tokens, self._lengths.limit(is_query=is_query(reading))]
        return reading._replace(max_tokens=min((limit for limit in limits if limit is not None), default=None))

    def _filled(self, one: Tokenized, reading: Reading) -> Tokenized:
        if not is_query(reading):
            return one
        fill_up = self._lengths.fill_up
        added = 0 if fill_up is None else max(0, fill_up.length - len(one.ids))
        if fill_up is None or not added:
            return one._replace(is_query=True)
        return one._replace(
            ids=(*one.ids, *[fill_up.token] * added),
            type_ids=None if one.type_ids is None else (*one.type_ids, *[0] * added),
            # Added tokens are read like any other, and hide no cut.
            original_tokens=one.original_tokens + added,
            is_query=True,
            expanded=0 if fill_up.attended else added,
        )


def is_query(reading: Reading) -> bool:
    """Tell whether texts are read as queries."""
    return reading.prompt_name is not None and "query" in reading.prompt_name.lower()


@dataclass(frozen=True, slots=True)
class Mask:
    """Which tokens count: sentence-transformers' ``MultiVectorMask``.

    ``skipped`` ids count neither in ``queries`` nor in ``documents``, as far as these are true. Of a document nothing
    else than ``only`` counts, if that is not empty. ``counts_added``: whether what a query was filled up with does.
    """

    skipped: TokenIds
    queries: bool
    documents: bool
    only: TokenIds
    counts_added: bool = True

    def keep(self, one: Tokenized) -> npt.NDArray[np.bool_]:
        """Return which tokens of a text count."""
        ids = np.array(one.ids, dtype=np.int64)
        kept = np.ones(len(ids), dtype=np.bool_)
        if one.expanded and not self.counts_added:
            kept[-one.expanded :] = False
        if self.queries if one.is_query else self.documents:
            kept &= ~np.isin(ids, self.skipped)
        if not one.is_query and len(self.only):
            kept &= np.isin(ids, self.only)
        return kept


def make_mask(module: MultiVectorMask | None, ids: Sequence[int]) -> Mask:
    """Return the mask of a model; ``ids`` are those of the module's words, as its tokenizer has them."""
    if module is None:
        nothing = np.array([], dtype=np.int64)
        return Mask(nothing, queries=False, documents=False, only=nothing, counts_added=False)
    return Mask(
        skipped=np.array(ids, dtype=np.int64),
        queries="query" in module.skiplist_tasks,
        documents="document" in module.skiplist_tasks,
        only=np.array(module.keep_only_token_ids or [], dtype=np.int64),
    )


class LateHead:
    """Implements ``Head``: ``steps`` project the hidden state of each token, ``mask`` says which count."""

    def __init__(self, steps: Sequence[nn.Module], mask: Mask, hidden_size: int) -> None:
        self.modules = nn.ModuleList(steps).eval().requires_grad_(requires_grad=False)
        self._mask = mask
        self._hidden_size = hidden_size

    @property
    def facts(self) -> HeadFacts:
        sizes = (measure_dimension(step) for step in reversed(self.modules))
        return HeadFacts(
            outputs=("multi_vector",),
            pooling="none",
            normalized=len(self.modules) > 0 and isinstance(self.modules[-1], Normalize),
            token_dimension=next((size for size in sizes if size is not None), self._hidden_size),
            task="multi_vector",
        )

    @property
    def takes_flat_output(self) -> bool:
        return all(isinstance(step, _STEPS) for step in self.modules)

    def group(self, one: Tokenized) -> int:
        del one
        return 0

    def run(self, features: Features, rows: Sequence[Tokenized]) -> Results:
        states = hidden_states(features, rows)
        projected: Features = {"token_embeddings": in_blocks(torch.cat(states))}
        for step in self.modules:
            projected = step(projected)
        vectors = projected["token_embeddings"]
        assert isinstance(vectors, torch.Tensor)
        each = np.split(vectors.float().cpu().numpy(), list(accumulate(map(len, states))))[:-1]
        return Results(tokens=[own[self._mask.keep(row)] for own, row in zip(each, rows, strict=True)])
