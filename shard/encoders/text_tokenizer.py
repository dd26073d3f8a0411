"""Texts and foreign token ids → ``Tokenized``, exactly as sentence-transformers tokenises. Called by the encoders.

The Rust tokenizer is copied and set up once. transformers sets truncation and padding on each call, which raises
'Already borrowed' when two threads meet; nothing here changes it after the start, so any thread may call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tokenizers import Encoding, Tokenizer

from emb_model_provider.errors import InvalidRequestError
from shard.encoder import Tokenized


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """What a transformers tokenizer knows beside its Rust core."""

    vocabulary_size: int
    truncation_side: Literal["left", "right"]
    special_ids: frozenset[int]
    split_special_tokens: bool = False


@dataclass(frozen=True, slots=True)
class _Frame:
    """The special tokens that the model wants around every text, with their type ids."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    type_ids: tuple[int, ...]  # of prefix, one token of text, suffix


class TextTokenizer:
    """Tokenises with special tokens, cut to ``max_tokens``."""

    def __init__(self, tokenizer: Tokenizer, facts: TokenizerFacts, max_tokens: int) -> None:
        self._facts = facts
        self._max_tokens = max_tokens
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = facts.split_special_tokens
        self._frame = _find_frame(self._tokenizer)
        self._tokenizer.enable_truncation(max_tokens, direction=facts.truncation_side)
        self._specials = len(self._frame.prefix) + len(self._frame.suffix)
        self._prompt_tokens: dict[str, int] = {}

    @property
    def vocabulary_size(self) -> int:
        """How many ids the model takes."""
        return self._facts.vocabulary_size

    def tokenize(self, texts: Sequence[str], prompt: str | None) -> list[Tokenized]:
        """Tokenise ``prompt + text`` each."""
        prompt_tokens = self._count_prompt(prompt) if prompt else 0
        encodings = self._encode([f"{prompt}{text}" if prompt else text for text in texts])
        return [self._tokenized(encoding, prompt_tokens) for encoding in encodings]

    def accept_ids(self, ids: Sequence[int]) -> Tokenized:
        """Check ids, add the special tokens if they are not there, and cut."""
        if not ids:
            raise InvalidRequestError("An input of token ids must hold at least one id.", param="input")
        size = self._facts.vocabulary_size
        for one in ids:
            if not 0 <= one < size:
                raise InvalidRequestError(
                    f"Token id {one} is not in this model's vocabulary of {size} tokens (0 to {size - 1}).",
                    param="input",
                )
        content = self._without_frame(tuple(ids))
        room = self._max_tokens - self._specials
        kept = content[:room] if self._facts.truncation_side == "right" else content[max(0, len(content) - room) :]
        framed = (*self._frame.prefix, *kept, *self._frame.suffix)
        return Tokenized(framed, len(content) + self._specials, type_ids=self._types(len(kept)))

    def _encode(self, texts: list[str]) -> list[Encoding]:
        if not all(isinstance(text, str) for text in texts):
            # The Rust tokenizer would read a list or tuple of two as a pair of texts.
            raise InvalidRequestError("Every input must be a string.", param="input")
        try:
            return list(self._tokenizer.encode_batch(texts))
        except (TypeError, UnicodeEncodeError) as error:
            raise InvalidRequestError(
                "An input is not valid Unicode: it holds half of a surrogate pair.", param="input"
            ) from error

    def _tokenized(self, encoding: Encoding, prompt_tokens: int) -> Tokenized:
        ids = tuple(encoding.ids)
        if not ids:
            raise InvalidRequestError("An input holds nothing that this model has a token for.", param="input")
        cut_off = sum(len(part.ids) - self._specials for part in encoding.overflowing)
        types = tuple(encoding.type_ids) if any(self._frame.type_ids) else None
        return Tokenized(ids, len(ids) + cut_off, prompt_tokens, types)

    def _count_prompt(self, prompt: str) -> int:
        """Count a prompt as sentence-transformers does: with the prefix, without one trailing special token."""
        known = self._prompt_tokens.get(prompt)
        if known is None:
            (encoding,) = self._encode([prompt])
            ids = encoding.ids
            known = len(ids) - (1 if ids and ids[-1] in self._facts.special_ids else 0)
            self._prompt_tokens[prompt] = known
        return known

    def _without_frame(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        prefix, suffix = self._frame.prefix, self._frame.suffix
        end = len(ids) - len(suffix)
        if end < len(prefix) or ids[: len(prefix)] != prefix or ids[end:] != suffix:
            return ids
        return ids[len(prefix) : end]

    def _types(self, content_tokens: int) -> tuple[int, ...] | None:
        types = self._frame.type_ids
        if not any(types):
            return None
        start = len(self._frame.prefix)
        return (*types[:start], *([types[start]] * content_tokens), *types[start + 1 :])


def _find_frame(tokenizer: Tokenizer) -> _Frame:
    encoding = tokenizer.encode("a")
    # 1 marks what the post-processor put there; an unknown character is text (0) all the same.
    mask = encoding.special_tokens_mask
    ids, types = encoding.ids, encoding.type_ids
    start = next((index for index, special in enumerate(mask) if not special), len(mask))
    end = next((index for index in range(len(mask), start, -1) if not mask[index - 1]), start)
    text_type = types[start : start + 1] or [0]
    return _Frame(tuple(ids[:start]), tuple(ids[end:]), (*types[:start], *text_type, *types[end:]))
