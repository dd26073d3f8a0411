"""What the rest of the shard knows of a model: values, the ``Encoder`` seam, and the cut to fewer dimensions.

Called by ``engine``, ``main`` and every implementation below ``encoders/``. Knows numpy and nothing of torch,
so that the scheduler and the engine are testable in milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from emb_model_provider.messages.link import Output, Token
from emb_model_provider.messages.status import EncoderInfo

Vectors = npt.NDArray[np.float32]
Ids = npt.NDArray[np.uint32]
#: Which end of an overlong text is cut off.
CutSide = Literal["start", "end"]


class Reading(NamedTuple):
    """How the inputs of a request are to be read, and what is wanted of them; the same for all of them.

    ``prompt_name`` is that of the prompt where it was asked for by name: some models treat queries and documents
    differently beyond that. ``outputs`` are in the order of ``EncoderInfo.outputs``. ``raw``: dense vectors are wanted
    as they are before the model's own last step, which normalises them. ``cut_side`` ``None`` is the side that the
    model's tokenizer prefers; ``max_tokens`` ``None`` is the model's length, and never more than that.
    """

    prompt: str | None = None
    outputs: tuple[Output, ...] = ("dense",)
    raw: bool = False
    cut_side: CutSide | None = None
    max_tokens: int | None = None
    prompt_name: str | None = None


#: No prompt, a dense vector as the model makes it.
PLAIN: Final = Reading()


class Tokenized(NamedTuple):
    """One input ready for the device; two that are equal have the same results.

    ``ids`` carry the model's special tokens and are cut to its length; ``original_tokens`` counts them before the
    cut, or is a number below that where the text was so long that it was not tokenised to its end (not ``counted``).
    ``prompt_tokens`` leading ids belong to the prompt, which some models leave out of their pooling. ``type_ids`` is
    ``None`` where all are 0. ``outputs`` and ``raw`` are those of the ``Reading``. ``is_query`` and ``expanded``, the
    number of trailing ids that a query was filled up with, are for late interaction. ``route`` is the way that a text
    takes through a routed model: 0 is the one that other models have alone, one below 0 has no inference.
    """

    ids: tuple[int, ...]
    original_tokens: int
    prompt_tokens: int = 0
    type_ids: tuple[int, ...] | None = None
    outputs: tuple[Output, ...] = ("dense",)
    raw: bool = False
    is_query: bool = False
    expanded: int = 0
    counted: bool = True
    route: int = 0

    @property
    def is_inferred(self) -> bool:
        """Tell whether a model computes its results, in place of looking them up."""
        return self.route >= 0

    @property
    def truncated(self) -> bool:
        """Whether the model sees less than it was given."""
        return self.original_tokens > len(self.ids)


@dataclass(frozen=True, slots=True)
class SparseRow:
    """A sparse vector: ids of the vocabulary, ascending, and their weights; both of one length."""

    indices: Ids
    values: Vectors


NO_ROW: Final = SparseRow(np.empty(0, np.uint32), np.empty(0, np.float32))
_NO_TOKENS: Final[Vectors] = np.empty((0, 0), np.float32)


class Result(NamedTuple):
    """What one input gave. ``row`` is its dense vector, or its logits; ``tokens`` one vector per token it keeps."""

    row: Vectors | None = None
    sparse: SparseRow | None = None
    tokens: Vectors | None = None


@dataclass(frozen=True, slots=True)
class Results:
    """What one batch gave: for each input at least the outputs that it asks for.

    ``rows`` are dense vectors, or raw logits, shape (inputs, ``row_dimension``), C-contiguous. ``sparse`` and
    ``tokens`` have one entry per input. Each is ``None`` where no input of the batch asks for it; an entry that its
    input has not asked for is not looked at, and must be finite.
    """

    rows: Vectors | None = None
    sparse: Sequence[SparseRow] | None = None
    tokens: Sequence[Vectors] | None = None

    def each(self) -> list[Result]:
        """Return one result per input."""
        if self.sparse is None and self.tokens is None:
            assert self.rows is not None
            return [Result(row) for row in self.rows]
        count = len(next(part for part in (self.rows, self.sparse, self.tokens) if part is not None))
        nothing = [None] * count
        parts = (self.rows if self.rows is not None else nothing, self.sparse or nothing, self.tokens or nothing)
        return [Result(*entry) for entry in zip(*parts, strict=True)]

    def at(self, index: int) -> Results:
        """Return the results of one input as those of a batch."""
        return self._between(index, index + 1)

    def first(self, count: int) -> Results:
        """Return the results of the first inputs."""
        return self._between(0, count)

    def _between(self, begin: int, end: int) -> Results:
        return Results(
            None if self.rows is None else self.rows[begin:end],
            None if self.sparse is None else self.sparse[begin:end],
            None if self.tokens is None else self.tokens[begin:end],
        )

    @property
    def is_finite(self) -> bool:
        """Whether every number of every input is finite."""
        return (
            (self.rows is None or bool(np.isfinite(self.rows).all()))
            and all(np.isfinite(row.values).all() for row in self.sparse or ())
            and all(np.isfinite(vectors).all() for vectors in self.tokens or ())
        )


def in_order(passes: Sequence[tuple[Sequence[int], Results]], count: int) -> Results:
    """Join the results of passes, each with the indices of its inputs among ``count``.

    Each kind of result that any pass has, all of them have for the inputs that ask for it; the rest gets none.
    """
    if len(passes) == 1 and list(passes[0][0]) == list(range(count)):
        return passes[0][1]
    parts = [results for _, results in passes]
    first = next((results.rows for results in parts if results.rows is not None), None)
    rows = None if first is None else np.zeros((count, first.shape[1]), dtype=np.float32)
    sparse = [NO_ROW] * count if any(results.sparse is not None for results in parts) else None
    tokens = [_NO_TOKENS] * count if any(results.tokens is not None for results in parts) else None
    for indices, results in passes:
        if rows is not None and results.rows is not None:
            rows[indices] = results.rows
        for place, index in enumerate(indices):
            if sparse is not None and results.sparse is not None:
                sparse[index] = results.sparse[place]
            if tokens is not None and results.tokens is not None:
                tokens[index] = results.tokens[place]
    return Results(rows, sparse, tokens)


def row_dimension(info: EncoderInfo) -> int:
    """Return how many numbers a row of ``Results.rows`` has; 0 for a model that makes none."""
    return len(info.labels) if "scores" in info.outputs else info.dimension


class FatalDeviceError(Exception):
    """The device is in a state in which no further answer of this process can be trusted."""


class Encoder(Protocol):
    """A model that turns texts into vectors, or into something else that a search needs.

    ``encode`` runs in as many threads at a time as ``lane.count_lanes`` says; everything from ``tokenize`` to
    ``resolve_prompt`` runs in other threads than that, several at a time.
    """

    @property
    def info(self) -> EncoderInfo:
        """What the model is, as loaded."""
        ...

    def tokenize(self, texts: Sequence[str], reading: Reading = PLAIN, seconds: Sequence[str] = ()) -> list[Tokenized]:
        """Tokenise ``prompt + text`` as the model does, or pairs with ``seconds``, of which an empty one is none.

        Raises ``InvalidRequestError`` for what is no text, and for pairs where the model takes none.
        """
        ...

    def accept_ids(self, ids: Sequence[int], reading: Reading = PLAIN) -> Tokenized:
        """Take ids of the model's own vocabulary, with or without its special tokens around them; no prompt is added.

        Raises ``InvalidRequestError`` that names an id out of range and the size of the vocabulary.
        """
        ...

    def spell(self, texts: Sequence[str], *, prompt: str | None, add_special_tokens: bool) -> list[tuple[Token, ...]]:
        """Return the tokens of ``prompt + text`` before any cut; offsets count from the start of the prompt."""
        ...

    def detokenize(self, token_ids: Sequence[Sequence[int]], *, skip_special_tokens: bool) -> list[str]:
        """Return the text of each list of ids; raises as ``accept_ids`` does."""
        ...

    def resolve_prompt(self, prompt_name: str | None) -> str | None:
        """Return the prompt of that name, or the model's default one (``None``: none) when no name is given.

        Raises ``InvalidRequestError`` that lists the known names.
        """
        ...

    def use_threads(self, count: int) -> None:
        """Let the calling thread encode on so many cores from now on."""
        ...

    def encode(self, batch: Sequence[Tokenized]) -> Results:
        """Return final results; none depends on its neighbours.

        Raises ``FatalDeviceError``, and anything else that a model may raise on a text.
        """
        ...

    def encode_exactly(self, batch: Sequence[Tokenized]) -> Results:
        """Do the same in fp32 and on the plainest path, however slowly."""
        ...


def normalized(vectors: Vectors) -> Vectors:
    """Bring each row to length 1; zero rows stay zero."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.ascontiguousarray(vectors / np.where(norms > 0, norms, 1), dtype=np.float32)


def cut(vectors: Vectors, dimensions: int) -> Vectors:
    """Keep the first ``dimensions`` of each row and bring each row to length 1 again; zero rows stay zero."""
    return normalized(cut_raw(vectors, dimensions))


def cut_raw(vectors: Vectors, dimensions: int) -> Vectors:
    """Keep the first ``dimensions`` of each row as they are."""
    if not 0 < dimensions <= vectors.shape[-1]:
        raise ValueError(f"cannot cut {vectors.shape[-1]} dimensions to {dimensions}")
    return np.ascontiguousarray(vectors[..., :dimensions], dtype=np.float32)
