"""Stands in for ``loading.loader``: a model without torch whose vectors can be checked, and which misbehaves to order.

A model is a directory with a ``faulty.json`` (see ``Manner``; made by ``tests.support.faulty_server.FaultyModel``). A
text's tokens are its characters and its vector is made of SHA-256 of model seed and text, so a wrong, mixed or
misplaced vector cannot pass for a right one. Orders stand anywhere in a text, ``!order`` or ``!order=number``:

``!raise``          ``RuntimeError`` when the batch holds this text
``!oom``            ``RuntimeError`` "CUDA out of memory" whenever the batch holds this text
``!oom=4``          the same only when the batch has more than 4 texts
``!memory``         ``MemoryError`` (``!memory=4``: only when the batch has more than 4 texts)
``!fatal``          ``FatalDeviceError``, as a CUDA device-side assert
``!exit``           ``os._exit(1)``; ``!exit=0`` with that code
``!exit-times=1``   ``os._exit(1)`` the first time(s) that this text is encoded, counted over all processes; then fine
``!raise-times=1``  ``RuntimeError`` the first time(s), then fine
``!hang-times=1``   hangs the first time(s), then fine
``!segfault``       SIGSEGV
``!kill``           SIGKILL by its own hand, as the kernel's OOM killer does
``!sys-exit``       ``sys.exit(0)``
``!sleep=0.5``      the batch takes so many seconds longer; the GIL is free meanwhile
``!spin=5``         the batch holds the GIL in one C call for so many seconds
``!hang``           the batch never ends; the GIL is free
``!nan``            a vector that is not finite, also from ``encode_exactly``
``!overflow``       a vector that only ``encode_exactly`` makes finite
``!short``          the whole batch gets one row too few
``!eat=100``        so many MB of memory are taken for good
``!say``            a line on stderr with the text in it, control characters and all
``!wire=3``         the first time that this text is encoded, its answer leaves as ``_LIES`` says under that number
``!untokenizable``  the tokenizer raises
``!slow-token=1``   the tokenizer takes so many seconds
``!spell-exit``     ``os._exit(1)`` when its tokens are asked for; ``!spell-exit-times=1``: so many times
``!slow-spell=1``   telling them takes so many seconds

Every batch is written to ``encoded.jsonl`` in the model's directory before any order is obeyed; every start to
``starts``.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

import numpy as np

from emb_model_provider.errors import InvalidRequestError, LoadError, LoadReason
from emb_model_provider.frames import HEADER, MAGIC, VERSION
from emb_model_provider.messages.framing import pack
from emb_model_provider.messages.link import Encode, Encoded, Token
from emb_model_provider.messages.status import EncoderInfo
from shard.encoder import PLAIN, FatalDeviceError, Reading, Results, Tokenized

DIMENSION = 32
VOCABULARY_SIZE = 0x110000
FILE = "faulty.json"
ENCODED = "encoded.jsonl"
STARTS = "starts"

_ORDER = re.compile(r"!([a-z-]+)(?:=([\d.]+))?")
#: Calls through it keep the GIL.
_HOLDING = ctypes.PyDLL(None)

#: No text holds these.
_SURROGATES = range(0xD800, 0xE000)


@dataclass(frozen=True)
class Manner:
    """How a model behaves; the fields of ``faulty.json``. Read at every start, so a model can be mended or broken.

    ``ms_per_token`` and ``ms_per_batch`` are what a batch costs (sleeping, GIL free), so the capacity is known.
    ``load_*``: what the start does, in this order: the first ``crashes`` starts (-1: all) end with ``crash_code``;
    ``load_s`` sleeps, ``load_spin_s`` holds the GIL, ``load_hang`` never ends, ``load_mb`` takes memory, ``load_error``
    (a ``LoadReason``) is a configuration error, ``load_raises`` an unexpected one, ``load_memory_error`` too little
    memory. ``nan`` and ``wrong_dimension`` make every vector bad. ``leak_mb`` is lost with every batch of requests.
    """

    seed: str = ""
    dimension: int = DIMENSION
    max_tokens: int = 512
    ms_per_token: float = 0.0
    ms_per_batch: float = 0.0
    records: bool = True
    crashes: int = 0
    crash_code: int = 1
    load_s: float = 0.0
    load_spin_s: float = 0.0
    load_hang: bool = False
    load_mb: int = 0
    load_error: str = ""
    load_raises: str = ""
    load_memory_error: bool = False
    nan: bool = False
    wrong_dimension: bool = False
    leak_mb: float = 0.0


def expected_vector(text: str, seed: str = "", dimension: int = DIMENSION) -> list[float]:
    """Return a text's vector, of length 1, as float32 numbers; ``text`` already cut to the model's length."""
    digest = hashlib.shake_256(f"{seed}\0{text}".encode("utf-8", "surrogatepass")).digest(dimension)
    row = np.frombuffer(digest, dtype=np.uint8).astype(np.float64) - 127.5
    return (row / np.linalg.norm(row)).astype(np.float32).tolist()


def read_manner(directory: Path) -> Manner:
    return Manner(**json.loads((directory / FILE).read_text("utf-8")))


def load(fetched, _spec, *, threads, cache_directory):
    """Called by ``shard.main`` in place of the real one."""
    directory = fetched.directory
    starts = _count(directory / STARTS, str(os.getpid()))
    manner = read_manner(directory)
    if manner.crashes < 0 or starts <= manner.crashes:
        os._exit(manner.crash_code)
    time.sleep(manner.load_s)
    _hold_gil(manner.load_spin_s)
    if manner.load_hang:
        _hang()
    if manner.load_memory_error:
        raise MemoryError
    if manner.load_raises:
        raise RuntimeError(manner.load_raises)
    if manner.load_error:
        raise LoadError(LoadReason(manner.load_error), f"{directory} is told to fail with {manner.load_error}")
    return FaultyEncoder(directory, manner)


class FaultyEncoder:
    """Obeys the orders in its texts. Implements ``shard.encoder.Encoder``."""

    def __init__(self, directory: Path, manner: Manner) -> None:
        self._directory = directory
        self._manner = manner
        self._eaten = [_take_memory(manner.load_mb)]
        self.info = EncoderInfo(
            dimension=manner.dimension,
            max_tokens=manner.max_tokens,
            pooling="mean",
            normalized=True,
            device="cpu",
            precision="fp32",
            storage_dtype="float32",
            compute_dtype="float32",
            layout="plain",
            weights_bytes=0,
            vocabulary_size=VOCABULARY_SIZE,
            prompts=(),
            fingerprint=hashlib.sha256(manner.seed.encode()).hexdigest()[:16],
        )

    def tokenize(self, texts: Sequence[str], reading: Reading = PLAIN, seconds: Sequence[str] = ()) -> list[Tokenized]:
        for text in texts:
            for order, number in _ORDER.findall(text):
                if order == "untokenizable":
                    raise RuntimeError("this text is told to break the tokenizer")
                if order == "slow-token":
                    time.sleep(float(number or 1))
        return [self._tokenized([ord(character) for character in (reading.prompt or "") + text]) for text in texts]

    def accept_ids(self, ids: Sequence[int], reading: Reading = PLAIN) -> Tokenized:
        for one in ids:
            if not 0 <= one < VOCABULARY_SIZE:
                raise InvalidRequestError(f"token id {one} is not in the vocabulary of {VOCABULARY_SIZE} tokens")
        return self._tokenized(list(ids))

    def spell(self, texts: Sequence[str], *, prompt: str | None, add_special_tokens: bool) -> list[tuple[Token, ...]]:
        for text in texts:
            for order, number in _ORDER.findall(text):
                if order == "slow-spell":
                    time.sleep(float(number or 1))
                elif order == "spell-exit" or (
                    order == "spell-exit-times" and _count(self._mark(text), "x") <= float(number or 1)
                ):
                    os._exit(1)
        return [
            tuple(Token(ord(one), one, special=False, start=index, stop=index + 1) for index, one in enumerate(text))
            for text in texts
        ]

    def detokenize(self, token_ids: Sequence[Sequence[int]], *, skip_special_tokens: bool) -> list[str]:
        for one in (one for ids in token_ids for one in ids):
            if one in _SURROGATES or not 0 <= one < 0x110000:
                raise InvalidRequestError(f"token id {one} is not in the vocabulary", param="input")
        return ["".join(map(chr, ids)) for ids in token_ids]

    def resolve_prompt(self, prompt_name: str | None) -> str | None:
        if prompt_name is not None:
            raise InvalidRequestError("this model knows no prompts", param="prompt_name")
        return None

    def use_threads(self, count: int) -> None:
        """There are no threads to divide."""

    def encode(self, batch: Sequence[Tokenized]) -> Results:
        texts = self._begin(batch)
        for text in texts:
            for order, number in _ORDER.findall(text):
                self._obey(order, float(number) if number else None, text, len(texts))
        vectors = self._vectors(texts, broken=("!nan", "!overflow"))
        return Results(vectors[:-1] if any("!short" in text for text in texts) else vectors)

    def encode_exactly(self, batch: Sequence[Tokenized]) -> Results:
        return Results(self._vectors(self._begin(batch), broken=("!nan",)))

    def _begin(self, batch: Sequence[Tokenized]) -> list[str]:
        texts = ["".join(map(chr, one.ids)) for one in batch]
        is_asked = any(text.strip("\0") for text in texts)  # and not what is measured at the start
        if self._manner.records and is_asked:
            _append(self._directory / ENCODED, json.dumps({"pid": os.getpid(), "texts": texts}))
        cost_ms = self._manner.ms_per_batch + self._manner.ms_per_token * sum(map(len, texts))
        if cost_ms:
            time.sleep(cost_ms / 1000)
        if self._manner.leak_mb and is_asked:
            self._eaten.append(_take_memory(self._manner.leak_mb))
        return texts

    def _obey(self, order: str, number: float | None, text: str, batch_size: int) -> None:
        if order.endswith("-times"):
            if _count(self._mark(text), "x") > (number or 1):
                return
            order, number = order.removesuffix("-times"), None
        if order in ("oom", "memory") and batch_size <= (number or 0):
            return
        if order == "wire":
            if _count(self._mark(text), "x") == 1:
                row = np.array(expected_vector(text, self._manner.seed, self._manner.dimension), dtype="<f4")
                _lie_about(row.tobytes(), int(number or 0))
        elif order == "eat":
            self._eaten.append(_take_memory(number or 1))
        elif order == "say":
            sys.stderr.write(f"the model says {text}\n")
        elif order in _ORDERS:
            _ORDERS[order](number)

    def _mark(self, text: str) -> Path:
        name = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        return self._directory / f"times-{name}"

    def _vectors(self, texts: Sequence[str], broken: Sequence[str]) -> np.ndarray:
        rows = [
            [np.nan] * self._manner.dimension
            if self._manner.nan or any(word in text for word in broken)
            else expected_vector(text, self._manner.seed, self._manner.dimension)
            for text in texts
        ]
        vectors = np.array(rows, dtype=np.float32).reshape(len(texts), self._manner.dimension)
        return np.ascontiguousarray(vectors[:, :-1]) if self._manner.wrong_dimension else vectors

    def _tokenized(self, ids: list[int]) -> Tokenized:
        return Tokenized(tuple(ids[: self._manner.max_tokens]), original_tokens=len(ids))


def _raise(error: BaseException) -> NoReturn:
    raise error


def _hold_gil(seconds: float) -> None:
    if seconds:
        _HOLDING.poll(None, 0, int(seconds * 1000))


def _lie_about(row: bytes, number: int) -> None:
    """Let the next answer that holds this vector leave this process as ``_LIES[number]`` makes it."""
    import shard.channel

    honest = shard.channel.pack

    def pack(message, request_id=0):
        data = honest(message, request_id)
        if not isinstance(message, Encoded) or row not in message.vectors:
            return data
        shard.channel.pack = honest
        return _LIES[number](message, request_id, data)

    shard.channel.pack = pack


def _hang() -> None:
    threading.Event().wait()


def _take_memory(megabytes: float) -> bytearray:
    # Written to, or the kernel would not give it.
    return bytearray(b"x") * int(megabytes * 1024 * 1024)


def _append(path: Path, line: str) -> None:
    with path.open("a", encoding="utf-8", errors="surrogatepass") as file:
        file.write(line + "\n")


def _count(path: Path, line: str) -> int:
    """Add a line and return how many there are now."""
    _append(path, line)
    return len(path.read_text("utf-8").splitlines())


def _half_and_die(data: bytes) -> bytes:
    threading.Timer(0.05, os._exit, (1,)).start()
    return data[: len(data) // 2]


def _header(version: int, kind: int, length: int, request_id: int) -> bytes:
    return HEADER.pack(MAGIC, version, kind, length, request_id)


#: What a shard may put on the wire instead of an answer: (message, request id, honest bytes) to bytes.
_LIES: Final[list[Callable[[Encoded, int, bytes], bytes]]] = [
    lambda _m, _i, data: data[::-1],
    lambda _m, _i, data: _half_and_die(data),
    lambda _m, i, data: _header(VERSION + 1, data[3], 0, i),
    lambda _m, i, data: _header(VERSION, data[3], 2**32 - 1, i),
    lambda _m, i, data: _header(VERSION, 250, 0, i),
    lambda _m, i, data: _header(VERSION, data[3], 0, i),
    lambda _m, i, data: _header(VERSION, data[3], 4, i) + b"\x93\xc1\xc1\xc1",
    lambda m, i, _d: pack(m.replace(vectors=m.vectors[: len(m.vectors) // 2 // 4 * 4]), i),
    lambda m, i, _d: pack(m.replace(vectors=m.vectors[: 4 * m.dimension], tokens=m.tokens[:1]), i),
    lambda m, i, _d: pack(Encode(("a request from the wrong side",)), i),
    lambda _m, _i, data: data + data,
    lambda m, i, data: pack(m, i + 1_000_000) + data,
]
_ORDERS: Final[dict[str, Callable[[float | None], object]]] = {
    "raise": lambda _: _raise(RuntimeError("this text is told to raise")),
    "oom": lambda _: _raise(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB (told to)")),
    "memory": lambda _: _raise(MemoryError("told to")),
    "fatal": lambda _: _raise(FatalDeviceError("CUDA error: device-side assert triggered (told to)")),
    "exit": lambda code: os._exit(1 if code is None else int(code)),
    # A real one, in this thread: a signal to the process would find another one, and this one would answer meanwhile.
    "segfault": lambda _: ctypes.string_at(0),
    "kill": lambda _: os.kill(os.getpid(), signal.SIGKILL),
    "sys-exit": lambda _: sys.exit(0),
    "sleep": lambda seconds: time.sleep(seconds or 0.1),
    "spin": lambda seconds: _hold_gil(seconds or 1.0),
    "hang": lambda _: _hang(),
}
