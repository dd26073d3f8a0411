"""An encoder without a model: a text's vector is made of its characters, and magic words make it misbehave."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from emb_model_provider.errors import InvalidRequestError
from emb_model_provider.messages.link import Token
from shard.encoder import PLAIN, FatalDeviceError, Reading, Results, Tokenized
from tests.support.statuses import make_info

DIMENSION = 4
MAX_TOKENS = 40
VOCABULARY_SIZE = 0x110000


def expected_vector(text: str) -> list[float]:
    codes = [ord(character) for character in text[:MAX_TOKENS]]
    return [float(len(codes)), float(sum(codes) % 8191), float(codes[0]), float(codes[-1])]


class FakeEncoder:
    """``POISON`` raises, ``UNTOKENIZABLE`` raises in the tokenizer, ``BROKEN DEVICE`` raises what ends the process.

    ``NAN`` gives a vector that is not finite, ``OVERFLOW`` one that only ``encode_exactly`` makes finite.

    With ``closed`` the device waits until ``gate`` is set.
    """

    def __init__(self, *, closed: bool = False) -> None:
        self.info = make_info(
            dimension=DIMENSION, max_tokens=MAX_TOKENS, normalized=False, vocabulary_size=VOCABULARY_SIZE
        ).encoder
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.batch_sizes: list[int] = []
        self.encoded: list[str] = []
        self.encoded_exactly: list[str] = []
        if not closed:
            self.gate.set()

    def tokenize(self, texts: Sequence[str], reading: Reading = PLAIN, seconds: Sequence[str] = ()) -> list[Tokenized]:
        if "UNTOKENIZABLE" in texts:
            raise RuntimeError("tokenizer")
        return [
            self._tokenized([ord(character) for character in (reading.prompt or "") + text], reading) for text in texts
        ]

    def accept_ids(self, ids: Sequence[int], reading: Reading = PLAIN) -> Tokenized:
        if max(ids) >= VOCABULARY_SIZE:
            raise InvalidRequestError(f"token id {max(ids)} is not in the vocabulary")
        return self._tokenized(list(ids), reading)

    def spell(self, texts: Sequence[str], *, prompt: str | None, add_special_tokens: bool) -> list[tuple[Token, ...]]:
        return [
            tuple(Token(ord(one), one, special=False, start=index, stop=index + 1) for index, one in enumerate(text))
            for text in texts
        ]

    def detokenize(self, token_ids: Sequence[Sequence[int]], *, skip_special_tokens: bool) -> list[str]:
        return ["".join(map(chr, ids)) for ids in token_ids]

    def resolve_prompt(self, prompt_name: str | None) -> str | None:
        if prompt_name is not None:
            raise InvalidRequestError("no prompts", param="prompt_name")
        return None

    def use_threads(self, count: int) -> None:
        del count

    def encode(self, batch: Sequence[Tokenized]) -> Results:
        self.entered.set()
        assert self.gate.wait(10)
        texts = ["".join(map(chr, one.ids)) for one in batch]
        self.batch_sizes.append(len(texts))
        self.encoded += texts
        if "BROKEN DEVICE" in texts:
            raise FatalDeviceError("device-side assert")
        if "POISON" in texts:
            raise RuntimeError("poison")
        return Results(_vectors(texts, broken=("NAN", "OVERFLOW")))

    def encode_exactly(self, batch: Sequence[Tokenized]) -> Results:
        texts = ["".join(map(chr, one.ids)) for one in batch]
        self.encoded_exactly += texts
        return Results(_vectors(texts, broken=("NAN",)))

    @staticmethod
    def _tokenized(ids: list[int], reading: Reading) -> Tokenized:
        return Tokenized(tuple(ids[:MAX_TOKENS]), original_tokens=len(ids), outputs=reading.outputs, raw=reading.raw)


def _vectors(texts: Sequence[str], broken: Sequence[str]) -> np.ndarray:
    rows = [[np.nan] * DIMENSION if text in broken else expected_vector(text) for text in texts]
    return np.array(rows, dtype=np.float32)
