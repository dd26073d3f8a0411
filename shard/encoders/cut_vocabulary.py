"""Vocabularies that are plain text, of which half a copy is still a whole one. Used by ``parts``.

A ``vocab.txt`` or ``merges.txt`` that is cut off makes a tokenizer that knows fewer words, and other vectors, without
an error. It is told by what else is known of its length; half a ``tokenizer.json``, which goes before them, is no JSON.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from transformers import PreTrainedTokenizerFast

from emb_model_provider.logs import EventLog

log = EventLog("shard.encoders.cut_vocabulary")

#: Of what is expected. Tables are padded to round sizes, by a few dozen rows up to some hundred; who trains a model may
#: leave it the size of another's, so that this is a warning and no error.
_MOST_MISSING: Final = 0.1
_FEW: Final = 1000


def warn_if_cut(tokenizer: PreTrainedTokenizerFast, rows: int | None) -> None:
    """Warn where the vocabulary has far fewer tokens than the model has ``rows``, or merges that make them."""
    file = tokenizer.init_kwargs.get("vocab_file")
    if not isinstance(file, str) or not file.endswith((".txt", ".json")):
        return
    if Path(file).with_name("tokenizer.json").exists():
        return
    tokens = len(tokenizer)
    if rows is not None and _is_far_below(tokens, rows):
        log.warning("vocabulary_short", file=file, tokens=tokens, rows=rows, reason=_reason("rows of its table"))
    merges = tokenizer.init_kwargs.get("merges_file")
    if isinstance(merges, str) and _is_far_below(lines := Path(merges).read_bytes().count(b"\n"), tokens):
        log.warning("vocabulary_short", file=merges, lines=lines, tokens=tokens, reason=_reason("tokens"))


def _is_far_below(found: int, expected: int) -> bool:
    return expected - found > max(_FEW, _MOST_MISSING * expected)


def _reason(others: str) -> str:
    return f"far fewer than {others}: a copy that was cut off gives other vectors, without an error; compare its size"
