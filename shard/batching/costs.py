"""What a batch costs in time, as measured when the shard starts: pure, but for ``measure``, which runs the encoder.

Called by ``main`` (measures) and ``scheduler`` (predicts).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from emb_model_provider.errors import InvalidRequestError
from emb_model_provider.logs import EventLog
from shard.encoder import Encoder, Tokenized

log = EventLog("shard.batching.costs")

#: A short query never waits longer than this, unless the model is so slow that a pass this short wastes the device.
_SLICE_MS: Final = 50.0
#: A slice may lose so much throughput against the best size of batch that takes up to so long, or that was timed.
_NEARLY_BEST: Final = 1.05
_LOOKED_AT_MS: Final = 250.0
_SMALL_SHARE_OF_SLICE: Final = 0.5
#: Measuring ends with the first batch after this, but never with one size alone: it tells the price of a pass and that
#: of a token apart from the second on.
_ENOUGH_S: Final = 0.4
_FEWEST_SAMPLES: Final = 2
#: Columns of the fit, in the order of ``CostModel``'s fields.
_BASE, _TEXT, _TOKEN, _PAIR = range(4)
#: Fits whose errors differ by less are equally good.
_ROUNDING: Final = 1e-12
_FEW_TOKENS: Final = 8
#: So many short texts in one batch tell the price of a text from that of its tokens.
_CROWD: Final = 4
_USUAL_TOKENS: Final = 64
#: Batches of so many tokens are also timed as one text: only this tells the price of a pair from that of a token.
_LONG_TOKENS: Final = (256, 512)
#: A short pass is timed again until so much time has gone, but no more often than this.
_AGAIN_S: Final = 0.03
_MOST_PASSES: Final = 3
#: How fast the prediction follows what batches really take, and how far.
_FOLLOWED: Final = 0.05
_FARTHEST: Final = 4.0


@dataclass(frozen=True, slots=True)
class CostModel:
    """Milliseconds of one batch = ``base`` + ``per_text`` · texts + ``per_token`` · tokens + ``per_pair`` · Σ length².

    None is negative. A model that is given one text at a time has its price of a pass at ``per_text``.
    """

    base: float
    per_text: float
    per_token: float
    per_pair: float

    def ms(self, texts: float, tokens: float, pairs: float) -> float:
        """Return the time of a batch of so many texts and tokens, of whose lengths ``pairs`` is the sum of squares."""
        return self.base + self.per_text * texts + self.per_token * tokens + self.per_pair * pairs

    @property
    def per_usual_token(self) -> float:
        """Milliseconds of one token more, in texts of usual length."""
        return self.per_text / _USUAL_TOKENS + self.per_token + self.per_pair * _USUAL_TOKENS

    def usual_ms(self, tokens: float) -> float:
        """Return the time of a batch of so many tokens, in texts of usual length."""
        return self.base + self.per_usual_token * tokens


@dataclass(frozen=True, slots=True)
class Sample:
    """A batch that was timed: true tokens of each text, and milliseconds."""

    lengths: tuple[int, ...]
    ms: float


@dataclass(frozen=True, slots=True)
class SlicePlan:
    """How work is cut: a batch holds at most ``max_tokens`` and should take at most ``slice_ms``."""

    costs: CostModel
    slice_ms: float
    max_tokens: int

    @property
    def small_ms(self) -> float:
        """How long a small request takes at most: half a slice, or as long as a usual text where that takes more of it.

        Where a pass is slow to begin, half a slice may be less than any text takes.
        """
        usual_ms = self.costs.usual_ms(_USUAL_TOKENS)
        return max(_SMALL_SHARE_OF_SLICE * self.slice_ms, usual_ms if usual_ms <= self.slice_ms else 0.0)

    @property
    def slice_tokens(self) -> int:
        """Tokens of a slice of texts of usual length."""
        per_token = self.costs.per_usual_token
        room = self.slice_ms - self.costs.base
        return min(self.max_tokens, int(room / per_token)) if per_token > 0 else self.max_tokens

    @property
    def tokens_per_s(self) -> float:
        """Tokens that one lane encodes in a second of slices of usual texts."""
        tokens = max(_USUAL_TOKENS, self.slice_tokens)
        ms = self.costs.usual_ms(tokens)
        return 1000 * tokens / ms if ms > 0 else 0.0


class Pace:
    """How much slower or faster batches are than predicted; neighbours on the machine come and go."""

    def __init__(self) -> None:
        self.factor = 1.0

    def observe(self, predicted_ms: float, took_ms: float) -> None:
        """Learn from one batch; ``predicted_ms`` is what the cost model says, this factor left out."""
        if predicted_ms > 0:
            # Bounded before it counts: a batch during which the process stood still says nothing of those to come.
            found = min(max(took_ms / predicted_ms, 1 / _FARTHEST), _FARTHEST)
            self.factor += _FOLLOWED * (found - self.factor)


def measure(encoder: Encoder, max_tokens: int, clock: Callable[[], float] = time.perf_counter) -> SlicePlan:
    """Time batches of growing size for about half a second, longer only on a slow device, and plan slices by them.

    A size that the device has no memory for ends it, and no batch will be larger than those before. Raises what the
    encoder raises on a single short text.
    """
    began_s = clock()
    samples: list[Sample] = []
    for lengths in _shapes(encoder.info.max_tokens, max_tokens):
        try:
            samples.append(Sample(lengths, _time_ms(encoder, lengths, clock)))
        except (RuntimeError, MemoryError) as error:  # torch's own OutOfMemoryError is a RuntimeError
            if not samples:
                raise
            max_tokens = max(sum(sample.lengths) for sample in samples)
            log.warning("batches_limited", max_tokens=max_tokens, error=f"{type(error).__name__}: {error}")
            break
        if clock() - began_s > _ENOUGH_S and len(samples) >= _FEWEST_SAMPLES:
            break
    return plan(samples, max_tokens)


def plan(samples: Sequence[Sample], max_tokens: int) -> SlicePlan:
    """Return the plan that these measurements ask for.

    Which slice is nearly as good as the best batch, the fit says: a single time is at the mercy of whoever else was
    using the machine just then. None is shorter than a usual text by itself.
    """
    costs = fit(samples)
    timed = max(sum(sample.lengths) for sample in samples)
    largest = max(timed, SlicePlan(costs, _LOOKED_AT_MS, max_tokens).slice_tokens)
    spared = _NEARLY_BEST * costs.usual_ms(largest) / largest - costs.per_usual_token
    tokens = costs.base / spared if spared > 0 else 0.0
    return SlicePlan(costs, max(_SLICE_MS, costs.usual_ms(max(tokens, min(_USUAL_TOKENS, timed)))), max_tokens)


def fit(samples: Sequence[Sample]) -> CostModel:
    """Return the non-negative least-squares fit, each sample weighted by the inverse of its time.

    With four unknowns, trying every set of them that is not held at zero finds the optimum. Where too few samples
    leave several as good, it is the one with the fewest unknowns, the base before the token before the text before the
    pair. Texts have no price where there was never a crowd of short ones, and pairs none as long as no text was a long
    one: among usual texts there are as many of either to every token.
    """
    has_crowd = any(len(one.lengths) > 1 and max(one.lengths) < _USUAL_TOKENS for one in samples)
    has_long = any(max(one.lengths) > _USUAL_TOKENS for one in samples)
    unknowns = [_BASE, _TOKEN, *([_TEXT] if has_crowd else []), *([_PAIR] if has_long else [])]
    table = np.array([_row(one.lengths) for one in samples], dtype=np.float64)
    times = np.array([max(one.ms, 1e-6) for one in samples])
    table /= times[:, None]
    best: tuple[float, list[float]] = (float("inf"), [0.0] * 4)
    for size in range(1, min(len(unknowns), len(samples)) + 1):
        for columns in itertools.combinations(unknowns, size):
            found = np.linalg.lstsq(table[:, columns], np.ones(len(samples)), rcond=None)[0]
            error = float(np.square(table[:, columns] @ found - 1).sum())
            if (found >= 0).all() and error < best[0] - _ROUNDING:
                coefficients = [0.0] * 4
                for column, value in zip(columns, found, strict=True):
                    coefficients[column] = float(value)
                best = (error, coefficients)
    return CostModel(*best[1])


def _row(lengths: Sequence[int]) -> tuple[int, ...]:
    return 1, len(lengths), sum(lengths), sum(length * length for length in lengths)


def _shapes(longest: int, max_tokens: int) -> Iterator[tuple[int, ...]]:
    usual = min(_USUAL_TOKENS, longest)
    yield (min(_FEW_TOKENS, longest),)
    yield (usual,)
    if usual > _FEW_TOKENS:
        yield (_FEW_TOKENS,) * _CROWD
    for doubling in itertools.count(1):
        texts = 2**doubling
        if texts * usual > max_tokens:
            return
        yield (usual,) * texts
        if texts * usual in _LONG_TOKENS and longest > max(usual, texts * usual // 2):
            yield (min(texts * usual, longest),)


def _time_ms(encoder: Encoder, lengths: Sequence[int], clock: Callable[[], float]) -> float:
    try:
        ids = encoder.accept_ids([0]).ids
    except InvalidRequestError:  # a model may be set up to take no ids
        ids = encoder.tokenize(["0"], seconds=["0"] if encoder.info.task == "rerank" else ())[0].ids
    batch = [
        Tokenized((ids * length)[:length], original_tokens=length, outputs=encoder.info.outputs) for length in lengths
    ]

    def pass_s() -> float:
        began_s = clock()
        encoder.encode(batch)
        return clock() - began_s

    # The first pass also makes the kernels for this shape: nothing beside a pass that is as slow as this.
    passes_s = [pass_s()]
    if passes_s[0] <= _ENOUGH_S:
        passes_s.append(pass_s())
    while sum(passes_s) < _AGAIN_S and len(passes_s) < _MOST_PASSES:
        passes_s.append(pass_s())
    return 1000 * min(passes_s)
