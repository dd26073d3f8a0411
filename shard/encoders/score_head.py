"""Classification heads of transformers models: rerankers and classifiers. Made by ``parts``, run by both forward paths.

On padded batches the model's own code makes the logits. On texts end to end the captured graph gives the hidden
states, and the same code is run on the one token of each text that it reads: a copy of the model, without weights of
its own, has a stub in place of its body that hands that token through. Whether it reads just that token is not looked
up but found out at every start, when the logits of both ways are compared.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Final

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPoolingAndCrossAttentions

from emb_model_provider.modelmap import Task
from shard.encoder import Results, Tokenized
from shard.encoders.heads import Features, HeadFacts, in_blocks
from shard.model_files.json_files import whole

#: The name under which sentence-transformers keeps a cross-encoder's logits.
SCORES: Final = "scores"


class ScoreHead:
    """Implements ``heads.Head`` with the head that ``model`` has itself."""

    def __init__(self, model: PreTrainedModel, task: Task) -> None:
        #: Its weights belong to the transformer, which is placed and narrowed as a whole.
        self.modules = nn.ModuleList()
        self._model = model
        self._task = task
        # Heads of language models are called ``score`` and read the last token, those of encoders the first.
        self._reads_last = hasattr(model, "score") and not hasattr(model, "classifier")
        self._padding: int | None = model.config.get_text_config().pad_token_id if self._reads_last else None
        self._config = model.config
        if not self.takes_company:
            # Of texts end to end the head is handed no padding either way, but will not have several without its id.
            self._config = copy.deepcopy(model.config)
            self._config.get_text_config().pad_token_id = 0

    @property
    def facts(self) -> HeadFacts:
        names: dict[Any, Any] = self._model.config.id2label or {}  # ids are strings in some files
        return HeadFacts(
            outputs=("scores",),
            pooling="none",
            task=self._task,
            labels=tuple(whole(str(names[number])) for number in sorted(names, key=int)),
        )

    @property
    def takes_flat_output(self) -> bool:
        return self.body is not self._model

    @property
    def takes_company(self) -> bool:
        """Whether the model's own code takes several texts: not where it could not tell their padding from a token."""
        return not self._reads_last or self._padding is not None

    @property
    def body(self) -> PreTrainedModel:
        """The model without its head."""
        body = self._model.base_model
        return body if isinstance(body, PreTrainedModel) else self._model

    def let_go_of_body(self) -> None:
        """Keep of the model only what ``run`` needs where a graph with matrices of its own makes the hidden states."""
        self._model = self.without_body()

    def group(self, one: Tokenized) -> int:
        """Any texts may share a pass."""
        del one
        return 0

    def run(self, features: Features, rows: Sequence[Tokenized]) -> Results:
        scores = features.get(SCORES)
        if scores is None:
            scores = self._score(features["token_embeddings"], rows)
        if not isinstance(scores, torch.Tensor):
            raise TypeError("the model made no scores")
        return Results(scores.float().cpu().numpy())

    def _score(self, hidden: object, rows: Sequence[Tokenized]) -> torch.Tensor:
        if not isinstance(hidden, torch.Tensor):
            raise TypeError("the model made no token_embeddings")
        ends = list(accumulate(len(row.ids) for row in rows))
        places = [0, *ends[:-1]]
        if self._reads_last:
            places = [start + _last_place(row.ids, self._padding) for start, row in zip(places, rows, strict=True)]
        logits: torch.Tensor = self.without_body()(inputs_embeds=in_blocks(hidden[0, places][:, None])).logits
        return logits[: len(rows)]

    def without_body(self) -> PreTrainedModel:
        """Return the model with the head's weights alone."""
        # Made anew for each pass: narrowing replaces parts of the model after this head is made, and a copy costs
        # microseconds, as it shares everything.
        shell = copy.copy(self._model)
        shell.config = self._config
        body = self.body
        shell._modules = {  # noqa: SLF001 - a module has no public way to exchange a part in a copy of itself
            name: _HandedThrough(body) if part is body else part
            for name, part in self._model._modules.items()  # noqa: SLF001
        }
        return shell


def _last_place(ids: Sequence[int], padding: int | None) -> int:
    """Return the place that heads of language models read: of the last token that could not be padding."""
    return next((place for place in reversed(range(len(ids))) if ids[place] != padding), 0)


class _HandedThrough(nn.Module):
    """Stands where the body of a model was: its hidden states are what it is given."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self._pooler: nn.Module | None = getattr(body, "pooler", None)

    def forward(
        self, *_rest: object, inputs_embeds: torch.Tensor, **_options: object
    ) -> BaseModelOutputWithPast | BaseModelOutputWithPoolingAndCrossAttentions:
        # Of the kinds that have a cache: heads of language models ask for one, and get none.
        if self._pooler is None:
            return BaseModelOutputWithPast(last_hidden_state=inputs_embeds)
        pooled = self._pooler(inputs_embeds)
        return BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=inputs_embeds, pooler_output=pooled)
