"""The score of a language model that is asked for a yes or no. Made by ``parts``, run by both forward paths.

sentence-transformers' ``LogitScore``: the logit of one token at the last place of the prompt, less that of another. Of
the language model's head, one row for each id of the vocabulary, only those two rows are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import nn
from transformers import PreTrainedModel

from emb_model_provider.errors import unsupported
from shard.encoder import Results, Tokenized
from shard.encoders.heads import Features, HeadFacts, hidden_states, in_blocks

#: Of logits, whose size is some ten.
_SPLIT_TOLERANCE: Final = 1e-3
_PROBED_TOKENS: Final = 7


class LogitScoreHead:
    """Implements ``heads.Head``.

    ``rows`` are those of the answers that count for and against, shape (1 or 2, size), in fp32.
    """

    def __init__(self, rows: nn.Linear) -> None:
        self._rows = rows
        self.modules = nn.ModuleList([rows]).eval().requires_grad_(requires_grad=False)

    @property
    def facts(self) -> HeadFacts:
        return HeadFacts(outputs=("scores",), pooling="none", task="rerank", labels=("LABEL_0",))

    @property
    def takes_flat_output(self) -> bool:
        return True

    def group(self, one: Tokenized) -> int:
        """Any texts may share a pass."""
        del one
        return 0

    def run(self, features: Features, rows: Sequence[Tokenized]) -> Results:
        last = torch.stack([states[-1] for states in hidden_states(features, rows)])
        logits = self._rows(in_blocks(last))[: len(rows)]
        score = logits[:, :1] - logits[:, 1:] if logits.shape[1] > 1 else logits
        return Results(score.cpu().numpy())


def split_answers(model: PreTrainedModel, true_id: int, false_id: int | None) -> tuple[PreTrainedModel, nn.Linear]:
    """Return a language model's transformer, and of its head the rows of the answers.

    Both together are compared with the model on a few tokens; raises ``LoadError`` UNSUPPORTED_MODEL for one that does
    more than run the one after the other, as one with soft-capped logits does.
    """
    head: object = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    transformer = model.base_model
    ids = [true_id] if false_id is None else [true_id, false_id]
    if not isinstance(transformer, PreTrainedModel) or transformer is model or not isinstance(head, nn.Linear):
        raise unsupported("its language model cannot be told from its transformer", "a reranker")
    if max(ids) >= head.out_features or min(ids) < 0:
        raise unsupported(f"the tokens of its answers ({ids}) are not among its {head.out_features}", "a reranker")
    rows = nn.Linear(head.in_features, len(ids), bias=head.bias is not None, dtype=torch.float32)
    model.train(mode=False)
    probe = torch.arange(_PROBED_TOKENS, device=model.device)[None] % head.out_features
    with torch.inference_mode():
        rows.weight.copy_(head.weight[ids])
        if head.bias is not None:
            rows.bias.copy_(head.bias[ids])
        expected = model(input_ids=probe, use_cache=False).logits[0, -1, ids].float()
        states = transformer(input_ids=probe, use_cache=False).last_hidden_state[0, -1].float()
        found = rows.to(states.device)(states)
    if not torch.allclose(found, expected, atol=_SPLIT_TOLERANCE, rtol=_tolerance(model)):
        raise unsupported("its language model does more than read the last hidden states", "a reranker")
    return transformer, rows


def _tolerance(model: PreTrainedModel) -> float:
    """Return how much of a logit its own number format may lose."""
    return _SPLIT_TOLERANCE if model.dtype == torch.float32 else 0.05
