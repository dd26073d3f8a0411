"""Places at which a text may be cut before it is tokenised without changing a token. Called by ``text_tokenizer``.

Tokenising a book to keep its first 512 tokens takes seconds. Where a tokenizer is known to treat what is before and
after a place independently, the tokens of the part before it are the first tokens of the whole, and those of the part
after it the last. That is so for tokenizers whose first step is to split at whitespace (BERT's, and SentencePiece
models without merges across words); others are left alone. Places are chosen so that no normaliser can look across
them: between letters, digits or ideographs that neither combine nor are combined with.
"""

from __future__ import annotations

import json
import re
from typing import Final

from tokenizers import Tokenizer

_IDEOGRAPH: Final = "\u4e00-\u9fff"
_PLAIN: Final = f"0-9A-Za-z{_IDEOGRAPH}"
#: A single space between plain characters.
_BETWEEN_WORDS: Final = f"(?<=[{_PLAIN}]) (?=[{_PLAIN}])"
#: BERT makes every ideograph a word of its own.
_BETWEEN_IDEOGRAPHS: Final = f"(?<=[{_IDEOGRAPH}])(?=[{_IDEOGRAPH}])"
_SPLITTERS: Final = ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")
_NORMALIZERS: Final = ("BertNormalizer", "Precompiled", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents")
#: How far from the wished place the next safe one is looked for.
_WINDOW: Final = 10_000


class SafePlaces:
    """Finds safe places of one tokenizer."""

    def __init__(self, pattern: str) -> None:
        self._pattern = re.compile(pattern)

    def before(self, text: str, place: int) -> int | None:
        """Return the last safe place from ``place`` backwards, ``None`` where there is none nearby."""
        found = None
        for match in self._pattern.finditer(text, max(0, place - _WINDOW), place):
            found = match.start()
        return found

    def after(self, text: str, place: int) -> int | None:
        """Return the first safe place from ``place`` on, ``None`` where there is none nearby."""
        match = self._pattern.search(text, place, place + _WINDOW)
        return None if match is None else match.start()


def find_safe_places(tokenizer: Tokenizer) -> SafePlaces | None:
    """Return the safe places of a tokenizer, ``None`` for a kind that is not known to have any."""
    steps = _steps(tokenizer.pre_tokenizer)
    normalizers = _steps(tokenizer.normalizer)
    splits = any(
        step.get("type") in _SPLITTERS or (step.get("type") == "Metaspace" and step.get("split", False))
        for step in steps[:1]
    )
    # Such a one puts its mark before the first word alone, and every part of a text has a first word.
    marks_first = any(step.get("prepend_scheme") == "first" for step in steps[1:])
    if not splits or marks_first or not all(_is_local(step) for step in normalizers):
        return None
    if any(" " in token.content for token in tokenizer.get_added_tokens_decoder().values()):
        return None  # such a token may lie across a place
    has_own_words = any(step.get("handle_chinese_chars", False) for step in normalizers)
    return SafePlaces(f"{_BETWEEN_WORDS}|{_BETWEEN_IDEOGRAPHS}" if has_own_words else _BETWEEN_WORDS)


def _is_local(step: dict[str, object]) -> bool:
    """Tell whether a normaliser works on each character, or on what combines with it, by itself."""
    if step.get("type") == "Replace":  # XLM-R's: several spaces become one
        return step.get("pattern") == {"Regex": " {2,}"}
    return step.get("type") in _NORMALIZERS


def _steps(component: object) -> list[dict[str, object]]:
    if component is None:
        return []
    state = json.loads(component.__getstate__())  # type: ignore[arg-type]
    inner = state.get("pretokenizers", state.get("normalizers"))
    return list(inner) if isinstance(inner, list) else [state]
