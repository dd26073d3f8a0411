"""An ``Encoder`` over sentence-transformers' own modules: the reference that every quicker one is compared with.

Built by ``loader``, called by ``engine``. Runs the modules' forward passes directly, without
``SentenceTransformer.encode``: batches come tokenised and are padded here to nearly equal lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.sentence_transformer.modules import Dropout, LayerNorm, Pooling
from torch import nn
from transformers import PreTrainedModel

from emb_model_provider.errors import InvalidRequestError
from emb_model_provider.messages import EncoderInfo
from shard.encoder import Tokenized, Vectors, cut
from shard.encoders.packing import PackedModel, packed_batches
from shard.encoders.padded_batches import padded_batches
from shard.encoders.text_tokenizer import TextTokenizer

Features = dict[str, object]

#: Padded tokens of one forward pass. On a CPU more falls out of the cache; a GPU wants many.
_MAX_TOKENS_CPU = 2048
_MAX_TOKENS_CUDA = 32768


class Pipeline:
    """The modules of one model on their device: a transformer, then pooling and what follows it in fp32."""

    def __init__(
        self,
        transformer: nn.Module,
        heads: Sequence[nn.Module],
        device: str,
        *,
        pad_id: int,
        wants_type_ids: bool,
        pools_prompt: bool,
    ) -> None:
        self.modules = nn.ModuleList([transformer, *heads]).eval().requires_grad_(requires_grad=False)
        self.pools_prompt = pools_prompt
        self._device = torch.device(device)
        self._pad_id = pad_id
        self._wants_type_ids = wants_type_ids
        self._packed: PackedModel | None = None

    @property
    def packs(self) -> bool:
        """Whether texts are laid end to end instead of padded."""
        return self._packed is not None

    @property
    def takes_flat_output(self) -> bool:
        """Whether pooling reads nothing but the last hidden states."""
        return all(isinstance(module, (Pooling, Normalize, Dense, LayerNorm, Dropout)) for module in self.modules[1:])

    def pack(self, packed: PackedModel | None) -> None:
        """Run the transformer packed from now on, or padded again."""
        if packed is not None:
            packed.use()
        elif self._packed is not None:
            self._packed.give_up()
        self._packed = packed

    @property
    def max_tokens_per_pass(self) -> int:
        """How many padded tokens one forward pass should hold."""
        return _MAX_TOKENS_CPU if self._device.type == "cpu" else _MAX_TOKENS_CUDA

    def run(self, rows: Sequence[Tokenized]) -> torch.Tensor:
        """Return the sentence embeddings of ``rows``, shape (len(rows), dimension), fp32, on the CPU.

        Rows are padded on the right whatever the tokenizer prefers: positions then start at 0 for all of them, and
        a vector is that of the text alone. Where prompts are left out of pooling, all rows have equally long ones.
        """
        features = self._features(rows)
        features = self.modules[0](features) if self._packed is None else self._run_packed(self._packed, rows, features)
        features = {name: _widened(value) for name, value in features.items()}
        for module in self.modules[1:]:
            features = module(features)
        embedding = features["sentence_embedding"]
        if not isinstance(embedding, torch.Tensor):
            raise TypeError("the model's modules made no sentence_embedding")
        return embedding.float().cpu()

    def _run_packed(self, packed: PackedModel, rows: Sequence[Tokenized], features: Features) -> Features:
        """Return what the transformer would, its output padded only now, for pooling."""
        lengths = [len(row.ids) for row in rows]
        mask, ids, types = (features.get(name) for name in ("attention_mask", "input_ids", "token_type_ids"))
        assert isinstance(mask, torch.Tensor)
        assert isinstance(ids, torch.Tensor)
        inside = mask.bool()
        hidden = packed.run(ids[inside], types[inside] if isinstance(types, torch.Tensor) else None, lengths)
        padded = hidden.new_zeros((*mask.shape, hidden.shape[-1]))
        padded[inside] = hidden
        return features | {"token_embeddings": padded}

    def _features(self, rows: Sequence[Tokenized]) -> Features:
        width = max(len(row.ids) for row in rows)
        ids = np.full((len(rows), width), self._pad_id, dtype=np.int64)
        mask = np.zeros((len(rows), width), dtype=np.int64)
        types = np.zeros((len(rows), width), dtype=np.int64)
        for number, row in enumerate(rows):
            ids[number, : len(row.ids)] = row.ids
            mask[number, : len(row.ids)] = 1
            if row.type_ids is not None:
                types[number, : len(row.ids)] = row.type_ids
        features: Features = {"input_ids": self._place(ids), "attention_mask": self._place(mask), "modality": "text"}
        if self._wants_type_ids:
            features["token_type_ids"] = self._place(types)
        if not self.pools_prompt and rows[0].prompt_tokens:
            features["prompt_length"] = rows[0].prompt_tokens
        return features

    def _place(self, matrix: np.ndarray[tuple[int, int], np.dtype[np.int64]]) -> torch.Tensor:
        return torch.from_numpy(matrix).to(self._device, non_blocking=True)


class SentenceTransformerEncoder:
    """Implements ``shard.encoder.Encoder``. ``truncate_dimension`` is the model's own cut of its vectors."""

    def __init__(
        self,
        pipeline: Pipeline,
        tokenizer: TextTokenizer,
        info: EncoderInfo,
        *,
        prompts: dict[str, str],
        default_prompt_name: str | None,
        truncate_dimension: int | None = None,
    ) -> None:
        self.info = info
        self._pipeline = pipeline
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._default_prompt = None if default_prompt_name is None else prompts[default_prompt_name]
        self._truncate_dimension = truncate_dimension

    def pack(self, *, packed: bool) -> None:
        """Lay texts end to end from now on, or pad them again; raise ``TypeError`` for a model that cannot."""
        if packed:
            model = getattr(self._pipeline.modules[0], "model", None)
            if not isinstance(model, PreTrainedModel) or not self._pipeline.takes_flat_output:
                raise TypeError("this model's parts need more than its last hidden states")
            self._pipeline.pack(PackedModel(model))
        else:
            self._pipeline.pack(None)
        self.info = replace(self.info, batching="packed" if packed else "padded")

    def tokenize(self, texts: Sequence[str], *, prompt: str | None) -> list[Tokenized]:
        return self._tokenizer.tokenize(texts, prompt)

    def accept_ids(self, ids: Sequence[int]) -> Tokenized:
        return self._tokenizer.accept_ids(ids)

    def resolve_prompt(self, prompt_name: str | None) -> str | None:
        if prompt_name is None:
            return self._default_prompt
        if prompt_name not in self._prompts:
            known = ", ".join(self._prompts) or "none"
            raise InvalidRequestError(
                f"This model has no prompt named {prompt_name!r}; it has: {known}.", param="prompt_name"
            )
        return self._prompts[prompt_name]

    def encode(self, batch: Sequence[Tokenized]) -> Vectors:
        vectors = np.empty((len(batch), self.info.dimension), dtype=np.float32)
        form_batches = packed_batches if self._pipeline.packs else padded_batches
        batches = form_batches(
            [len(one.ids) for one in batch],
            [0 if self._pipeline.pools_prompt else one.prompt_tokens for one in batch],
            max_tokens=self._pipeline.max_tokens_per_pass,
        )
        with torch.inference_mode():
            for rows in batches:
                found = self._pipeline.run([batch[row] for row in rows]).numpy()
                vectors[rows] = self._cut(found)
        return vectors

    def _cut(self, vectors: Vectors) -> Vectors:
        if self._truncate_dimension is None:
            return vectors
        if self.info.normalized:
            return cut(vectors, self._truncate_dimension)
        return vectors[:, : self._truncate_dimension]


def _widened(value: object) -> object:
    """Bring the transformer's output to fp32: pooling and normalising in 16 bit loses what the model has."""
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.float()
    if isinstance(value, tuple):
        return tuple(_widened(one) for one in value)
    return value
