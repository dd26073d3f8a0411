"""Texts, pairs and foreign ids → ``Tokenized``, exactly as sentence-transformers tokenises. Called by the encoders.

The Rust tokenizer is copied and set up once. transformers sets truncation and padding on each call, which raises
'Already borrowed' when two threads meet; nothing here changes it after the start, so any thread may call. It never
truncates: the special tokens stand in a known frame, and what is between them is cut here, on the side asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Final

from tokenizers import Encoding, Tokenizer
from tokenizers.decoders import ByteLevel

from emb_model_provider.errors import InvalidRequestError, unsupported
from emb_model_provider.messages.link import Token
from shard.encoder import PLAIN, CutSide, Reading, Tokenized
from shard.encoders.in_parts import ALONE, Helpers
from shard.encoders.safe_places import SafePlaces, find_safe_places
from shard.encoders.special_frame import Frame, find_frame
from shard.foreign_ids import Decode

#: A text of more characters than this, and than so many for each token that is kept, is not tokenised to its end.
_LONG_CHARS: Final = 16_384
_LONG_CHARS_PER_TOKEN: Final = 32
#: How much of it is tried first.
_TRIED_CHARS_PER_TOKEN: Final = 8
#: Prompts whose length is remembered; clients may send any number of their own.
_KNOWN_PROMPTS: Final = 256


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """What a transformers tokenizer knows beside its Rust core. ``cut_side`` is the one that it prefers.

    ``takes_nothing``: the model has a vector for a text without any token, too.
    """

    vocabulary_size: int
    cut_side: CutSide
    special_ids: frozenset[int]
    split_special_tokens: bool = False
    takes_nothing: bool = False


class TextTokenizer:
    """Tokenises with special tokens, cut to ``max_tokens``."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        facts: TokenizerFacts,
        max_tokens: int,
        *,
        decode: Decode | None = None,
        helpers: Helpers = ALONE,
    ) -> None:
        self._facts = facts
        self._helpers = helpers
        self._max_tokens = max_tokens
        self._decode = decode
        self._tokenizer = _copy(tokenizer)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = facts.split_special_tokens
        self._places = find_safe_places(self._tokenizer)
        self._frame = find_frame(self._tokenizer.encode("a"), texts=1)
        self._prompt_tokens: dict[str, tuple[int, bool]] = {}

    @property
    def vocabulary_size(self) -> int:
        """How many ids the model takes."""
        return self._facts.vocabulary_size

    def tokenize(self, texts: Sequence[str], reading: Reading = PLAIN) -> list[Tokenized]:
        """Tokenise ``prompt + text`` each."""
        prompt = reading.prompt
        frame, limit = self._frame, self._limit(reading, self._frame)
        prompt_tokens = self._count_prompt(prompt, limit) if prompt else 0
        whole = [f"{prompt}{text}" if prompt else text for text in texts]
        parts = self._shorten(whole, limit, reading)
        tokenized = []
        for encoding, part, text in zip(self._encode(parts), parts, whole, strict=True):
            ids = tuple(encoding.ids)
            if not ids and not self._facts.takes_nothing:
                raise _nothing_to_read()
            length = len(ids)
            if length > limit:
                content = ids[len(frame.parts[0]) : length - len(frame.parts[1])]
                ids = frame.fill([_cut(content, max(0, limit - frame.size), self._side(reading))])
            types = frame.types([len(ids) - frame.size])
            counted = part is text
            tokenized.append(
                Tokenized(ids, length, prompt_tokens, types, reading.outputs, reading.raw, counted=counted)
            )
        return tokenized

    def tokenize_pairs(
        self, firsts: Sequence[str], seconds: Sequence[str], reading: Reading = PLAIN
    ) -> list[Tokenized]:
        """Tokenise ``prompt + first`` with ``second`` each; of an overlong pair the longer text is cut first."""
        firsts = [f"{reading.prompt or ''}{first}" for first in firsts]
        frame, side = self._pair_frame, self._side(reading)
        room = max(0, self._limit(reading, frame) - frame.size)
        contents = self._contents(list(dict.fromkeys(firsts)))
        # Which one is the longer must come out right, so a part has more tokens than any first text.
        longest = max([room, *map(len, contents.values())])
        distinct = list(dict.fromkeys(seconds))
        parts = self._shorten(distinct, longest, reading)
        shortened = {text for text, part in zip(distinct, parts, strict=True) if part is not text}
        found = self._contents(parts)
        others = {text: found[part] for text, part in zip(distinct, parts, strict=True)}
        tokenized = []
        for first, second in zip(firsts, seconds, strict=True):
            one, other = contents[first], others[second]
            length = len(one) + len(other) + frame.size
            if len(one) + len(other) > room:
                kept = share_room(len(one), len(other), room)
                one, other = _cut(one, kept[0], side), _cut(other, kept[1], side)
            if not length:
                raise _nothing_to_read()
            tokenized.append(
                Tokenized(
                    frame.fill([one, other]),
                    length,
                    type_ids=frame.types([len(one), len(other)]),
                    outputs=reading.outputs,
                    raw=reading.raw,
                    counted=second not in shortened,
                )
            )
        return tokenized

    def accept_ids(self, ids: Sequence[int], reading: Reading = PLAIN) -> Tokenized:
        """Check ids, add the special tokens if they are not there, and cut."""
        if not ids:
            raise InvalidRequestError("An input of token ids must hold at least one id.", param="input")
        if self._decode is not None:
            return self.tokenize([self._decode(ids)], reading)[0]
        self._check_ids(ids)
        content = self._without_frame(tuple(ids))
        room = max(0, self._limit(reading, self._frame) - self._frame.size)
        kept = _cut(content, room, self._side(reading))
        return Tokenized(
            self._frame.fill([kept]),
            len(content) + self._frame.size,
            type_ids=self._frame.types([len(kept)]),
            outputs=reading.outputs,
            raw=reading.raw,
        )

    def spell(self, texts: Sequence[str], prompt: str | None, *, add_special_tokens: bool) -> list[tuple[Token, ...]]:
        """Return the tokens of ``prompt + text`` each, uncut."""
        encodings = self._encode(
            [f"{prompt}{text}" if prompt else text for text in texts],
            add_special_tokens=add_special_tokens,
            offsets=True,
        )
        return [
            tuple(
                Token(token_id, token, bool(special), *((None, None) if special else offsets))
                for token_id, token, special, offsets in zip(
                    encoding.ids, encoding.tokens, encoding.special_tokens_mask, encoding.offsets, strict=True
                )
            )
            for encoding in encodings
        ]

    def detokenize(self, token_ids: Sequence[Sequence[int]], *, skip_special_tokens: bool) -> list[str]:
        """Return the text of each list of ids."""
        for ids in token_ids:
            self._check_ids(ids)
        texts = self._tokenizer.decode_batch([list(ids) for ids in token_ids], skip_special_tokens)
        mark = _word_end(self._tokenizer)
        return [text.replace(mark, " ").strip() for text in texts] if mark else list(texts)

    @cached_property
    def _pair_frame(self) -> Frame:
        return find_frame(self._tokenizer.encode("a", "b"), texts=2)

    def _encode(self, texts: list[str], *, add_special_tokens: bool = True, offsets: bool = False) -> list[Encoding]:
        # Not counting characters saves a tenth of the time.
        encode = self._tokenizer.encode_batch if offsets else self._tokenizer.encode_batch_fast
        if not all(isinstance(text, str) for text in texts):
            # The Rust tokenizer would read a list or tuple of two as a pair of texts.
            raise InvalidRequestError("Every input must be a string.", param="input")
        try:
            return self._helpers.run(partial(encode, add_special_tokens=add_special_tokens), texts)
        except (TypeError, UnicodeEncodeError) as error:
            raise InvalidRequestError(
                "An input is not valid Unicode: it holds half of a surrogate pair.", param="input"
            ) from error

    def _text_limit(self, reading: Reading) -> int:
        return min(self._max_tokens, reading.max_tokens or self._max_tokens)

    def _limit(self, reading: Reading, frame: Frame) -> int:
        limit = self._text_limit(reading)
        if limit <= frame.size and limit < self._max_tokens:
            raise InvalidRequestError(
                f"A limit of {limit} tokens leaves no room for text: {frame.size} are special tokens.",
                param="max_tokens",
            )
        return limit

    def _side(self, reading: Reading) -> CutSide:
        return reading.cut_side or self._facts.cut_side

    def _contents(self, texts: list[str]) -> dict[str, tuple[int, ...]]:
        encodings = self._encode(texts, add_special_tokens=False)
        return {text: tuple(encoding.ids) for text, encoding in zip(texts, encodings, strict=True)}

    def _shorten(self, texts: list[str], tokens: int, reading: Reading) -> list[str]:
        """Return each text, or a part of a very long one that has more than ``tokens`` tokens on the side kept."""
        longest = max(_LONG_CHARS, _LONG_CHARS_PER_TOKEN * tokens)
        if self._places is None or not any(isinstance(text, str) and len(text) > longest for text in texts):
            return texts
        side = self._side(reading)
        return [self._part(text, tokens, side, self._places) if len(text) > longest else text for text in texts]

    def _part(self, text: str, tokens: int, side: CutSide, places: SafePlaces) -> str:
        tried = max(_LONG_CHARS, _TRIED_CHARS_PER_TOKEN * tokens)
        while tried < len(text):
            place = places.before(text, tried) if side == "end" else places.after(text, len(text) - tried)
            if place is not None:
                part = text[:place] if side == "end" else text[place:]
                if len(self._encode([part], add_special_tokens=False)[0]) > tokens:
                    return part
            tried *= 4
        return text

    def _check_ids(self, ids: Sequence[int]) -> None:
        size = self._facts.vocabulary_size
        for one in ids:
            if not 0 <= one < size:
                raise InvalidRequestError(
                    f"Token id {one} is not in this model's vocabulary of {size} tokens (0 to {size - 1}). LangChain's "
                    "OpenAIEmbeddings sends ids of cl100k unless check_embedding_ctx_length=False; send texts, or have "
                    'this model set up with "token_ids": "cl100k".',
                    param="input",
                )

    def _count_prompt(self, prompt: str, limit: int) -> int:
        """Count a prompt as sentence-transformers does: with the prefix, cut, without one trailing special token."""
        known = self._prompt_tokens.get(prompt)
        if known is None:
            (encoding,) = self._encode([prompt])
            known = len(encoding.ids), not self._facts.special_ids.isdisjoint(encoding.ids[-1:])
            if len(self._prompt_tokens) < _KNOWN_PROMPTS:
                self._prompt_tokens[prompt] = known
        tokens, ends_special = known
        return min(tokens, limit) - ends_special

    def _without_frame(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        return self._frame.strip(ids)


def share_room(first: int, second: int, room: int) -> tuple[int, int]:
    """Return how many tokens are kept of two texts of these lengths that together have more than ``room``.

    The longer one is cut first: tokenizers' ``TruncationStrategy::LongestFirst``, whose odd token goes to the longer.
    """
    shorter, longer = sorted((first, second))
    longer = shorter if shorter > room else max(shorter, room - shorter)
    if shorter + longer > room:
        shorter = room // 2
        longer = shorter + room % 2
    return (longer, shorter) if first > second else (shorter, longer)


def _copy(tokenizer: Tokenizer) -> Tokenizer:
    try:
        return Tokenizer.from_str(tokenizer.to_str())
    except Exception as error:  # it has no narrower one for a step that is an object of Python's
        raise unsupported(
            f"its tokenizer has a step in Python and therefore no tokenizer.json form ({error}), as RoFormer's, which "
            "finds words with jieba"
        ) from error


def _word_end(tokenizer: Tokenizer) -> str:
    """Return what marks the ends of words for CLIP: transformers writes blanks there, as other decoders do."""
    mark: str | None = getattr(tokenizer.model, "end_of_word_suffix", None)
    return mark or "" if isinstance(tokenizer.decoder, ByteLevel) else ""


def _nothing_to_read() -> InvalidRequestError:
    return InvalidRequestError("An input holds nothing that this model has a token for.", param="input")


def _cut(content: tuple[int, ...], room: int, side: CutSide) -> tuple[int, ...]:
    if len(content) <= room:
        return content
    return content[:room] if side == "end" else content[len(content) - room :]
