"""The special tokens that a model wants around and between its texts. Called by ``text_tokenizer``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from tokenizers import Encoding


@dataclass(frozen=True)
class Frame:
    """Special tokens and their type ids, with a gap for each text.

    ``parts`` has one entry more than there are texts; ``text_types`` one entry per text.
    """

    parts: tuple[tuple[int, ...], ...]
    part_types: tuple[tuple[int, ...], ...]
    text_types: tuple[int, ...]

    @cached_property
    def size(self) -> int:
        return sum(map(len, self.parts))

    @cached_property
    def has_types(self) -> bool:
        return any(self.text_types) or any(map(any, self.part_types))

    def fill(self, contents: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """Return the ids of texts within the frame."""
        ids = self.parts[0]
        for content, part in zip(contents, self.parts[1:], strict=True):
            ids = (*ids, *content, *part)
        return ids

    def strip(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        """Return what stands within the frame of one text; ids without it as they are."""
        prefix, suffix = self.parts
        end = len(ids) - len(suffix)
        if end < len(prefix) or ids[: len(prefix)] != prefix or ids[end:] != suffix:
            return ids
        return ids[len(prefix) : end]

    def types(self, lengths: Sequence[int]) -> tuple[int, ...] | None:
        """Return the type ids of texts of these lengths within the frame, ``None`` where all are 0."""
        if not self.has_types:
            return None
        types = self.part_types[0]
        for length, kind, part in zip(lengths, self.text_types, self.part_types[1:], strict=True):
            types = (*types, *([kind] * length), *part)
        return types


def find_frame(encoding: Encoding, *, texts: int) -> Frame:
    """Read off a short encoding of one-letter texts where special tokens stand."""
    # 1 marks what the post-processor put there; an unknown character is text (0) all the same.
    mask, ids, types = encoding.special_tokens_mask, encoding.ids, encoding.type_ids
    owners = encoding.sequence_ids
    # A post-processor behind a template numbers all pieces anew, so it is their order that tells texts apart.
    numbers = sorted(
        {owner for owner, is_special in zip(owners, mask, strict=True) if owner is not None and not is_special}
    )
    if len(numbers) != texts:  # one of them has no token at all
        numbers = list(range(texts))
    parts: list[tuple[int, ...]] = []
    part_types: list[tuple[int, ...]] = []
    text_types: list[int] = []
    begin = 0
    for number in numbers:
        own = [index for index, owner in enumerate(owners) if owner == number and not mask[index]]
        start, end = (own[0], own[-1] + 1) if own else (begin, begin)
        parts.append(tuple(ids[begin:start]))
        part_types.append(tuple(types[begin:start]))
        text_types.append(types[start] if own else 0)
        begin = end
    parts.append(tuple(ids[begin:]))
    part_types.append(tuple(types[begin:]))
    return Frame(tuple(parts), tuple(part_types), tuple(text_types))
