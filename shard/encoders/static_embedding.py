"""Static models: a tokenizer, a table of one row per token, and the mean of a text's rows. No transformer.

``modules`` loads the table, ``parts`` makes a path and a tokenizer of it. What is read is what sentence-transformers'
``StaticEmbedding`` reads: its own files, and those of model2vec, whose tokens may share rows and have weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, chain
from pathlib import Path
from typing import Final

import numpy as np
import torch
from safetensors.torch import load_file
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional

from emb_model_provider.errors import LoadError, LoadReason, unsupported
from shard.encoder import Results, Tokenized
from shard.encoders.heads import HeadFacts, Heads
from shard.encoders.in_parts import Helpers
from shard.encoders.text_tokenizer import TextTokenizer, TokenizerFacts
from shard.fidelity import PROBES
from shard.foreign_ids import Decode
from shard.model_files.weights import find_checkpoint, read_pickled

_TOKENIZER: Final = "tokenizer.json"
_OWN_NAME: Final = "embedding.weight"
_MODEL2VEC_NAME: Final = "embeddings"
#: As transformers writes "no limit".
_NO_LIMIT: Final = 10**30


class TokenTable(StaticEmbedding):
    """sentence-transformers' module, but for how its rows are kept, and that a tokenizer may cut.

    Rows of 16 bit are widened as they are looked up (``storage16``), and summed up in fp32.
    """

    def __init__(self, tokenizer: Tokenizer, rows: torch.Tensor) -> None:
        super().__init__(tokenizer, rows)
        self.embedding = nn.Embedding(self.num_embeddings, self.embedding_dim, _weight=rows, _freeze=True)  # type: ignore[assignment]
        # Special tokens are never put around a text, nor counted.
        tokenizer.post_processor = None

    @property
    def max_seq_length(self) -> int:
        """The length that the tokenizer's own file cuts at, as the library does; else as transformers says none."""
        return (self.tokenizer.truncation or {}).get("max_length") or _NO_LIMIT

    def forward(self, features: dict[str, torch.Tensor], **_options: object) -> dict[str, torch.Tensor]:
        """Add the means of ``input_ids``, texts end to end that begin at ``offsets``: shape (texts, dimension), fp32.

        A text without tokens has zeros.
        """
        ids, table = features["input_ids"], self.embedding.weight
        if table.dtype != torch.float32:
            ids, table = torch.arange(len(ids), device=ids.device), self.embedding(ids)
        features["sentence_embedding"] = functional.embedding_bag(ids, table, features["offsets"], mode="mean")
        return features

    def make_tokenizer(self, max_tokens: int, decode: Decode | None, helpers: Helpers) -> TextTokenizer:
        """Return the tokenizer, which cuts at ``max_tokens``; ``decode`` reads ids that are not its own."""
        added = self.tokenizer.get_added_tokens_decoder()
        cut = self.tokenizer.truncation or {}
        facts = TokenizerFacts(
            vocabulary_size=min(self.num_embeddings, max(self.tokenizer.get_vocab().values()) + 1),
            cut_side="start" if cut.get("direction") == "left" else "end",
            special_ids=frozenset(number for number, token in added.items() if token.special),
            takes_nothing=True,
        )
        return TextTokenizer(self.tokenizer, facts, max_tokens, decode=decode, helpers=helpers)


class StaticHeads(Heads):
    """What follows a table: takes the mean that it has made."""

    @property
    def facts(self) -> HeadFacts:
        return replace(super().facts, pooling="mean")


class StaticPath:
    """Implements ``sentence_transformer.ForwardPath``: each text is summed up by itself, in the order of its tokens."""

    def __init__(self, table: TokenTable, heads: StaticHeads, device: str) -> None:
        self._table = table.eval()
        self._heads = heads
        self._device = torch.device(device)

    def split(self, batch: Sequence[Tokenized]) -> list[list[int]]:
        groups: dict[int, list[int]] = {}
        for index, one in enumerate(batch):
            groups.setdefault(self._heads.group(one), []).append(index)
        return list(groups.values())

    def run(self, rows: Sequence[Tokenized]) -> Results:
        """Return the results of ``rows``, which ``split`` has put together."""
        *starts, total = accumulate((len(row.ids) for row in rows), initial=0)
        ids = np.fromiter(chain.from_iterable(row.ids for row in rows), np.int64, total)
        # A tokenizer may know a few tokens more than there are rows; a card would not survive one.
        if total and (largest := ids.max()) >= self._table.num_embeddings:
            raise IndexError(f"the token {largest} has no row in the table of {self._table.num_embeddings}")
        features = {"input_ids": torch.from_numpy(ids), "offsets": torch.tensor(starts)}
        features = {name: value.to(self._device) for name, value in features.items()}
        return self._heads.run(self._table(features), rows)


def load_table(folder: Path) -> TokenTable:
    """Read the table in ``folder``, mapped where it is fp32 safetensors; raise ``LoadError`` where it is none."""
    table = TokenTable(_read_tokenizer(folder / _TOKENIZER), _read_rows(folder))
    largest = max(table.preprocess(list(PROBES))["input_ids"].tolist(), default=0)
    if largest >= table.num_embeddings:
        raise LoadError(
            LoadReason.WRONG_WEIGHTS,
            f"the table in {folder} has {table.num_embeddings} rows and none for the token {largest} of its tokenizer, "
            "which common texts have: they do not belong together",
        )
    return table


def _read_tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # it has no narrower one, neither for a file that is not there
        raise LoadError(
            LoadReason.INCOMPLETE_DOWNLOAD,
            f"{path} cannot be read ({error}): delete it and start again to download it once more",
        ) from error


def _read_rows(folder: Path) -> torch.Tensor:
    checkpoint = find_checkpoint(folder)
    tensors: dict[str, torch.Tensor] = {}
    for file in checkpoint.files:
        tensors |= read_pickled(file) if checkpoint.pickled else load_file(file)
    rows = tensors.get(_OWN_NAME)
    if rows is None and _MODEL2VEC_NAME in tensors:
        rows = _fold(tensors, folder)
    if rows is None or rows.dim() != 2:
        raise LoadError(
            LoadReason.WRONG_WEIGHTS,
            f"the weights in {folder} hold no table named {_OWN_NAME} or {_MODEL2VEC_NAME}, but "
            f"{', '.join(f'{name} {tuple(tensor.shape)}' for name, tensor in sorted(tensors.items())) or 'nothing'}",
        )
    if not rows.is_floating_point():
        raise unsupported(
            f"its table is quantised ({str(rows.dtype).removeprefix('torch.')}), which sentence-transformers does not "
            "read either: save it in float32 or float16 (model2vec: quantize_to)"
        )
    return rows.float()


def _fold(tensors: dict[str, torch.Tensor], folder: Path) -> torch.Tensor:
    """Return one row per token of model2vec's tensors, as sentence-transformers makes them."""
    try:
        return StaticEmbedding._fold_model2vec_weights(  # noqa: SLF001 - what `load` does
            tensors[_MODEL2VEC_NAME], tensors.get("mapping"), tensors.get("weights")
        )
    except (RuntimeError, IndexError) as error:
        raise LoadError(LoadReason.WRONG_WEIGHTS, f"the weights in {folder} do not belong together: {error}") from error
