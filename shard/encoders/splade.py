"""SPLADE: one weight per id of the vocabulary, from a masked language model. For ``checked_transformer`` and ``parts``.

sentence-transformers' ``SpladePooling``: of the logits that the language model has for every token,
log(1 + relu(logit)), and of each id the largest (``max``) or the sum (``sum``) over the tokens of a text;
``log1p_relu`` takes the logarithm twice. Zeros are left out. The logits of a batch would be hundreds of megabytes, so
the model is split: the transformer runs on the whole batch, its language-model head on a few tokens at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from sentence_transformers.sparse_encoder.modules import SpladePooling
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from emb_model_provider.errors import unsupported
from shard.encoder import Results, SparseRow, Tokenized, Vectors
from shard.encoders.heads import BLOCK_ROWS, Features, HeadFacts, hidden_states, in_blocks

#: Logits that exist at one time: 64 MiB.
MAX_LOGITS: Final = 2**24
#: Of logits, whose size is some ten; the split computes what the model does, in the same order.
_SPLIT_TOLERANCE: Final = 1e-3
_PROBED_TOKENS: Final = 7


class LanguageHead(nn.Module):
    """A masked language model without its transformer: hidden states, shape (tokens, size) → logits."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return one row of logits per token."""
        logits: torch.Tensor = self.model(inputs_embeds=states[None]).logits
        return logits[0]


class _States(BaseModelOutput):
    """Hidden states and nothing else; Longformer's head hands on what it has beside them."""

    global_attentions = None


class _GivenStates(nn.Module):
    """Stands where the transformer was; any thread may call it."""

    def forward(self, *_arguments: object, inputs_embeds: torch.Tensor, **_options: object) -> BaseModelOutput:
        return _States(last_hidden_state=inputs_embeds)


def split_language_model(model: PreTrainedModel) -> tuple[PreTrainedModel, LanguageHead]:
    """Return the transformer of a masked language model, and the rest of it.

    Both together are compared with the model on a few tokens; raises ``LoadError`` UNSUPPORTED_MODEL for one that does
    more than run the one after the other.
    """
    prefix = model.base_model_prefix
    transformer = getattr(model, prefix, None)
    if not isinstance(transformer, PreTrainedModel):
        raise unsupported("its language model cannot be told from its transformer", "a sparse one")
    model.train(mode=False)
    ids = torch.arange(5, 5 + _PROBED_TOKENS, device=model.device)[None]
    mask = torch.ones_like(ids)
    with torch.inference_mode():
        expected = model(input_ids=ids, attention_mask=mask).logits[0]
        states = transformer(input_ids=ids, attention_mask=mask).last_hidden_state[0]
    setattr(model, prefix, _GivenStates())
    head = LanguageHead(model)
    with torch.inference_mode():
        found = head(states)
    if not torch.allclose(found.float(), expected.float(), atol=_SPLIT_TOLERANCE, rtol=_SPLIT_TOLERANCE):
        raise unsupported("its language model does more than read the last hidden states", "a sparse one")
    return transformer, head


class SpladeHead:
    """Implements ``Head``; the language model stays where the transformer is and in its format.

    ``max_active`` is the most weights that a vector keeps, the largest ones; ``None``: all.
    """

    def __init__(self, language_head: LanguageHead, pooling: SpladePooling, max_active: int | None = None) -> None:
        self._language_head = language_head
        self.modules = nn.ModuleList([language_head]).eval().requires_grad_(requires_grad=False)
        self._step = max(1, MAX_LOGITS // int(language_head.model.config.vocab_size) // BLOCK_ROWS) * BLOCK_ROWS
        self._dtype = language_head.model.dtype
        self._is_max = pooling.pooling_strategy == "max"
        self._takes_log_twice = pooling.activation_function == "log1p_relu"
        self._max_active = max_active

    @property
    def facts(self) -> HeadFacts:
        return HeadFacts(outputs=("sparse",), pooling=f"splade-{'max' if self._is_max else 'sum'}", task="sparse")

    @property
    def takes_flat_output(self) -> bool:
        return True

    def group(self, one: Tokenized) -> int:
        del one
        return 0

    def run(self, features: Features, rows: Sequence[Tokenized]) -> Results:
        states = hidden_states(features, rows)
        return Results(sparse=list(self._rows(torch.cat(states), list(accumulate(map(len, states))))))

    def _rows(self, states: torch.Tensor, ends: Sequence[int]) -> Iterator[SparseRow]:
        """Yield the vector of each text; ``ends`` are where texts end in ``states``, shape (tokens, size)."""
        texts = iter(ends)
        end = next(texts)
        pooled: torch.Tensor | None = None
        for first in range(0, len(states), self._step):
            own = states[first : first + self._step]
            logits = self._language_head(in_blocks(own.to(self._dtype)))[: len(own)].float()
            last, position = first + len(logits), first
            while position < last:
                stop = min(end, last)
                pooled = self._pool(logits[position - first : stop - first], pooled)
                position = stop
                if stop == end:
                    yield self._finish(pooled)
                    end, pooled = next(texts, last), None

    def _pool(self, logits: torch.Tensor, before: torch.Tensor | None) -> torch.Tensor:
        if self._is_max:  # the largest logit has the largest weight
            largest = logits.amax(dim=0)
            return largest if before is None else torch.maximum(before, largest)
        total = self._weights(logits).sum(dim=0)
        return total if before is None else before + total

    def _weights(self, logits: torch.Tensor) -> torch.Tensor:
        weights = logits.relu().log1p_()
        return weights.log1p_() if self._takes_log_twice else weights

    def _finish(self, pooled: torch.Tensor) -> SparseRow:
        values = (self._weights(pooled) if self._is_max else pooled).cpu().numpy()
        indices = np.flatnonzero(values)  # what is not a number stays, to be found
        return keep_largest(indices, values[indices], self._max_active)


def keep_largest(indices: npt.NDArray[np.intp], values: Vectors, most: int | None) -> SparseRow:
    """Return a sparse vector of ascending ``indices`` with its ``most`` largest weights, whatever their sign."""
    if most is not None and (dropped := len(indices) - most) > 0:
        largest = np.sort(np.argpartition(np.abs(values), dropped - 1)[dropped:])  # with all that is not a number
        indices, values = indices[largest], values[largest]
    return SparseRow(indices.astype(np.uint32), values)
