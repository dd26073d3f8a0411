"""Passes over few tokens as CUDA graphs: one call of the driver in place of one for every operation.

A small model on a large card computes some ten thousand tokens faster than Python asks for it. A recorded pass asks
once, and serves all texts that fit into its ``Layout``. Made by ``packed`` when the model is loaded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from emb_model_provider.logs import EventLog
from shard.encoder import Tokenized
from shard.encoders.cuda.flat_texts import FlatTexts, Layout

log = EventLog("shard.recording")

#: Tokens that passes are recorded for: half as many again as needed are computed at worst.
_TOKENS: Final = tuple(step * 2**power for power in range(4, 15) for step in (2, 3))[:-1]
#: Tokens of the longest pass that could be recorded; a card is fully used by a part of it.
MOST_TOKENS: Final = _TOKENS[-1] - 1
#: The first pass that is not so many times as quick as its calls is the last that is recorded.
_PAYING: Final = 1.25
#: Attention starts a block of the device for every stretch of 128 tokens that any text could have, which takes a
#: nanosecond even if there is none. So a pass has room for many short texts or for few long ones: one in every so many
#: tokens, none longer than that.
_ROOM: Final = ((4, 128), (32, 1024), (256, None))
_LEAST_TEXTS: Final = 4
_REPEATS: Final = 3
#: No further pass is recorded after this.
_ENOUGH_S: Final = 3.0

#: The last hidden states, and the pooled vectors of all texts, where they are made in the same pass.
Outputs = tuple[torch.Tensor, torch.Tensor | None]
Compute = Callable[[FlatTexts], Outputs]


def layouts(longest: int, *, typed: bool) -> Iterator[Layout]:
    """Yield the layouts that passes are recorded for, smallest first; no text has more than ``longest`` tokens."""
    for tokens in _TOKENS:
        most = min(tokens, longest)
        for tokens_per_text, length in _ROOM:
            yield Layout(tokens, max(_LEAST_TEXTS, tokens // tokens_per_text), min(most, length or most), typed)
            if length is not None and length >= most:
                break


@dataclass(frozen=True, slots=True)
class Recording:
    """One recorded pass: to be given a block in ``block``, replayed, and read from ``outputs``, on one stream."""

    layout: Layout
    block: torch.Tensor
    graph: torch.cuda.CUDAGraph
    outputs: Outputs


class Recordings:
    """All recorded passes of a model; ``graphs`` are theirs and those of passes that could not be recorded.

    These are kept, too: with the first graph of a stream that goes, torch gives away the memory that its libraries work
    in on that stream (``CUDAGraph::reset``), which is in all others (pytorch/pytorch#193402).
    """

    def __init__(self, recordings: list[Recording], graphs: Sequence[torch.cuda.CUDAGraph] = ()) -> None:
        self._recordings = recordings
        self._graphs = graphs

    def find(self, used: Layout) -> Recording | None:
        """Return the smallest that a pass over ``used`` fits into."""
        return next((one for one in self._recordings if one.layout.has_room_for(used)), None)


def record(compute: Compute, device: torch.device, example: Tokenized, longest: int, *, typed: bool) -> Recordings:
    """Record ``compute`` for all ``layouts``, as far as it pays and time and the device's memory go."""
    began_s = time.monotonic()
    recorder = _Recorder(compute, device, example)
    recordings: list[Recording] = []
    for layout in layouts(longest, typed=typed):
        if time.monotonic() - began_s > _ENOUGH_S:
            break
        try:
            recordings.append(recorder.record(layout))
        except RuntimeError as error:  # no memory, or an operation that cannot be recorded; it can still be called
            log.info("not_recorded", tokens=layout.tokens, error=f"{type(error).__name__}: {str(error)[:200]}")
            break
        if not recorder.pays(recordings[-1]):
            break
    log.info("passes_recorded", count=len(recordings), took_s=round(time.monotonic() - began_s, 3))
    return Recordings(recordings, recorder.graphs)


class _Recorder:
    """Makes recordings that share their memory: one of them runs at a time."""

    def __init__(self, compute: Compute, device: torch.device, example: Tokenized) -> None:
        self._compute = compute
        self._device = device
        self._example = example
        #: All that were begun.
        self.graphs: list[torch.cuda.CUDAGraph] = []
        self._pool = torch.cuda.graph_pool_handle()
        # A single one: the libraries keep a workspace of 32 MiB for every stream.
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def record(self, layout: Layout) -> Recording:
        filled = torch.empty(layout.size, dtype=torch.long)
        fitting = Tokenized(self._example.ids[: layout.longest - 1], original_tokens=0)
        layout.fill(filled.numpy(), [fitting], first_position=0)
        block = filled.to(self._device)
        usual = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(usual)
        # Around both: where a pass cannot be recorded, torch.cuda.graph leaves this thread at the stream of its own.
        with torch.cuda.stream(self._stream):
            self._compute(layout.read(block))  # libraries get ready at the first call, which cannot be recorded
            graph = torch.cuda.CUDAGraph()
            self.graphs.append(graph)
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                outputs = self._compute(layout.read(block))
        usual.wait_stream(self._stream)
        return Recording(layout, block, graph, outputs)

    def pays(self, recording: Recording) -> bool:
        """Tell whether replaying is clearly quicker than calling every operation."""
        called_s = self._time_s(lambda: self._compute(recording.layout.read(recording.block)))
        return called_s > _PAYING * self._time_s(recording.graph.replay)

    def _time_s(self, run: Callable[[], object]) -> float:
        best_s = float("inf")
        for _ in range(_REPEATS):
            torch.cuda.synchronize(self._device)
            began_s = time.perf_counter()
            run()
            torch.cuda.synchronize(self._device)
            best_s = min(best_s, time.perf_counter() - began_s)
        return best_s
