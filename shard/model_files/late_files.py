"""What the files of a late-interaction model (ColBERT) say beside its modules. Pure reading; called by ``layouts``.

Three kinds of files are known, by the rules of sentence-transformers' ``MultiVectorEncoder``: its own, in which the
modules say everything; those of PyLate, whose ``config_sentence_transformers.json`` has the markers, lengths and the
skiplist; and those of Stanford's ColBERT, which keeps them in ``artifact.metadata``.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import Final

from shard.model_files.json_files import Document

#: ColBERT's own length of a query that is filled up.
_USUAL_QUERY_TOKENS: Final = 32
_PYLATE_KEYS: Final = (
    "query_length", "document_length", "do_query_expansion", "attend_to_expansion_tokens", "attend_to_mask_tokens",
    "query_prefix", "document_prefix", "skiplist_words",
)  # fmt: skip
_STANFORD_MARKERS: Final = (("query_token_id", "[unused0]"), ("doc_token_id", "[unused1]"))


@dataclass(frozen=True, slots=True)
class LateFiles:
    """What is to be done beyond loading the modules.

    ``markers`` are texts that the tokenizer must read as one token each. ``lengths`` and ``expansion`` are for the
    transformer, where its own file does not say them; ``expansion`` is sentence-transformers' ``QueryExpansionConfig``,
    ``None`` for none, and is not said by anything if ``says_expansion`` is false. ``is_bare``: mask and normalisation
    are not among the modules; ``skiplist`` is for the mask. ``is_stanford``: the projection lies among its
    weights.
    """

    prompts: tuple[tuple[str, str], ...]
    markers: tuple[str, ...] = ()
    lengths: tuple[tuple[str, int], ...] = ()
    says_expansion: bool = False
    expansion: tuple[tuple[str, object], ...] | None = None
    skiplist: tuple[str, ...] = ()
    is_bare: bool = False
    is_stanford: bool = False


def read_pylate(options: Document, *, is_bare: bool) -> LateFiles:
    """Read ``config_sentence_transformers.json`` of sentence-transformers itself or of PyLate."""
    own = options.get("prompts")
    prompts = {"query": "", "document": ""} | {
        str(name): str(text or "") for name, text in (own if isinstance(own, dict) else {}).items()
    }
    markers = []
    for key, role in (("query_prefix", "query"), ("document_prefix", "document")):
        if key in options:
            marker = str(options[key] or "")
            markers.append(marker)
            prompts[role] = marker + prompts[role].removeprefix(marker)
    lengths = {key: value for key in ("query_length", "document_length") if isinstance(value := options.get(key), int)}
    says, expansion = _pylate_expansion(options, lengths)
    # PyLate leaves punctuation out of documents unless a model says otherwise.
    is_pylate = bool(markers) or options.get("model_type") == "ColBERT"
    words = options.get("skiplist_words")
    return LateFiles(
        prompts=tuple(prompts.items()),
        markers=tuple(markers),
        lengths=tuple(lengths.items()),
        says_expansion=says,
        expansion=expansion,
        skiplist=tuple(map(str, words)) if isinstance(words, list) else tuple(string.punctuation) if is_pylate else (),
        is_bare=is_bare,
    )


def read_stanford(metadata: Document) -> LateFiles:
    """Read ``artifact.metadata``, which may be empty."""
    query, document = (str(metadata.get(key) or mark) for key, mark in _STANFORD_MARKERS)
    length = metadata.get("query_maxlen")
    longest = metadata.get("doc_maxlen")
    expansion = {
        "strategy": "fixed",
        "attend": bool(metadata.get("attend_to_mask_tokens")),
        "length": length if isinstance(length, int) and length else _USUAL_QUERY_TOKENS,
    }
    return LateFiles(
        prompts=(("query", f"{query} "), ("document", f"{document} ")),
        markers=(f"{query} ", f"{document} "),
        lengths=(("document_length", longest),) if isinstance(longest, int) else (),
        says_expansion=True,
        expansion=tuple(expansion.items()),
        skiplist=tuple(string.punctuation) if metadata.get("mask_punctuation", True) else (),
        is_bare=True,
        is_stanford=True,
    )


def _pylate_expansion(options: Document, lengths: dict[str, int]) -> tuple[bool, tuple[tuple[str, object], ...] | None]:
    """Return whether queries are said to be filled up or not, and how; takes the length out of ``lengths``."""
    if "query_expansion" in options:
        said = options["query_expansion"]
        return True, tuple(said.items()) if isinstance(said, dict) else None
    if not any(key in options for key in _PYLATE_KEYS):
        return False, None
    if options.get("do_query_expansion") is False:
        return True, None
    attend = options.get("attend_to_expansion_tokens", options.get("attend_to_mask_tokens"))
    length = lengths.pop("query_length", _USUAL_QUERY_TOKENS)
    return True, (("strategy", "fixed"), ("attend", bool(attend)), ("length", length))
