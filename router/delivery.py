"""Brings one slice of a request to its model, through the death of processes. Used by ``service``."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Hashable
from dataclasses import dataclass
from functools import partial
from typing import Final

from emb_model_provider.errors import QuarantinedError, RequestError
from emb_model_provider.messages.link import Encode, Encoded, InputError, SparseRows, TokenVectors
from emb_model_provider.messages.status import EncoderInfo, ShardStatus
from router.backend import EmbeddingBackend
from router.gate import Gate, Turn, Work
from router.link import ShardLostError
from router.quarantine import Quarantine, fingerprint, keeps_dying
from router.registry import Registry
from router.requests import EncodeRequest
from router.trials import News, Trials
from router.visit import VISIT, request_id

#: A client may name any time, and messages carry no number beyond 64 bits. A year is without end.
_LONGEST_S: Final = 365 * 86_400.0


@dataclass(eq=False, slots=True)
class Call:
    """A request on its way. Implements ``trials.Asked``.

    ``tokens`` are estimates, one for each input; ``deadline_s`` is on the loop's clock, ``None`` for none.
    """

    request: EncodeRequest
    status: ShardStatus
    gate: Gate
    client: str
    tokens: list[int]
    is_small: bool
    deadline_s: float | None

    @property
    def model_id(self) -> str:
        return self.status.model_id

    def mark(self, index: int) -> bytes:
        return fingerprint(self.model_id, self.message(index, index + 1), 0)

    def label(self, index: int) -> str:
        return self.request.label(index)

    def wanted(self, index: int) -> Hashable:
        return self.work(index, index + 1), self.request.dimensions

    def is_anyones(self, encoded: Encoded) -> bool:
        return not encoded.errors

    def without(self, error: RequestError) -> Encoded:
        """Return the result of an input that has none, or raise its error where all are wanted."""
        if not self.request.partial:
            raise error
        assert self.status.info is not None
        return _empty(self.request, self.status.info.encoder, error)

    def message(self, begin: int, end: int, *, alone: bool = False) -> Encode:
        """Return the inputs from ``begin`` up to ``end`` as they are sent now."""
        request, visit = self.request, VISIT.get()
        return Encode(
            texts=request.texts[begin:end],
            token_ids=request.token_ids[begin:end],
            dimensions=request.dimensions,
            prompt_name=request.prompt_name_of(begin),
            overlong=request.overlong or self.status.overlong,
            first_index=begin,
            timeout_ms=self._left_ms(),
            seconds=request.seconds[begin:end],
            outputs=request.outputs,
            prompt=request.prompt,
            normalize=request.normalize,
            max_tokens=request.max_tokens,
            priority=request.priority,
            partial=request.partial,
            alone=alone,
            traceparent=request.traceparent or (visit.traceparent if visit is not None else ""),
            labels=request.labels[begin:end],
            request_id=request_id(),
        )

    def turn(self, begin: int, end: int) -> Turn:
        """Return the way through the gate of the inputs from ``begin`` up to ``end``."""
        tokens = self.tokens[begin] if end - begin == 1 else sum(self.tokens[begin:end])
        return Turn(self.client, tokens, self.is_small, self.work(begin, end), self.deadline_s)

    def work(self, begin: int, end: int) -> Work:
        """Return what the model has to do for the inputs from ``begin`` up to ``end``."""
        request = self.request
        return Work(
            request.texts[begin:end],
            request.token_ids[begin:end],
            request.seconds[begin:end],
            request.prompt,
            request.prompt_name_of(begin),
            request.outputs,
            request.normalize,
            request.overlong or self.status.overlong,
            request.max_tokens,
        )

    def _left_ms(self) -> int:
        if self.deadline_s is None:
            return 0
        left_s = self.deadline_s - asyncio.get_running_loop().time()
        return max(1, int(1000 * min(left_s, _LONGEST_S)))


class Delivery:
    """Sends slices to a backend."""

    def __init__(
        self,
        registry: Registry,
        backend: EmbeddingBackend,
        quarantine: Quarantine,
        news: News,
    ) -> None:
        self._backend = backend
        self._quarantine = quarantine
        self._trials: Trials[Encoded] = Trials(registry, quarantine, news)

    async def send(self, call: Call, begin: int, end: int) -> list[Encoded]:
        """Return the results of the inputs from ``begin`` up to ``end``, in order, in one part or several.

        Raises ``RequestError``; a ``partial`` request gets an error of one input as that input's result.
        """
        if not self._quarantine:
            return await self._send_healthy(call, begin, end)
        parts: list[Encoded] = []
        for index in range(begin, end):
            if (refusal := self._trials.refusal(call, index)) is not None:
                if index > begin:
                    parts += await self._send_healthy(call, begin, index)
                parts.append(call.without(refusal))
                begin = index + 1
        if begin < end:
            parts += await self._send_healthy(call, begin, end)
        return parts

    def refuse_quarantined(self, call: Call) -> None:
        """Raise ``QuarantinedError`` for a request that cannot be answered whole, before any of it is sent."""
        if call.request.partial:
            return
        if (refusal := self._first_refusal(call, 0, call.request.count)) is not None:
            raise refusal

    def _first_refusal(self, call: Call, begin: int, end: int) -> QuarantinedError | None:
        if not self._quarantine:
            return None
        refusals = (self._trials.refusal(call, index) for index in range(begin, end))
        return next((refusal for refusal in refusals if refusal is not None), None)

    async def _send_healthy(self, call: Call, begin: int, end: int) -> list[Encoded]:
        turn, indices = call.turn(begin, end), range(begin, end)
        for _ in self._trials.tries():
            if not call.gate.is_open(turn):
                await call.gate.wait(turn)
            is_answered = False
            try:
                await self._trials.settled(call, indices)
                if self._first_refusal(call, begin, end) is None:
                    if self._trials.has_suspects(call, indices):
                        return await self._trials.each(call, indices, partial(self._send_alone, call))
                    encoded = await self._backend.encode(call.model_id, call.message(begin, end))
                    is_answered = True
                    return [encoded]
            except ShardLostError as lost:
                if (tried := await self._trials.lost(call, indices, lost, partial(self._send_alone, call))) is not None:
                    return tried
                continue
            finally:
                call.gate.turn_over(turn, is_answered=is_answered)
            return await self.send(call, begin, end)  # something among these has been found guilty since
        raise keeps_dying()

    async def _send_alone(self, call: Call, index: int) -> Encoded:
        return await self._backend.encode(call.model_id, call.message(index, index + 1, alone=True))


def _empty(request: EncodeRequest, encoder: EncoderInfo, error: RequestError) -> Encoded:
    """Return the result of one input that has nothing but an error."""
    dimension = 0
    if "dense" in request.outputs:
        dimension = request.dimensions or encoder.dimension
    elif "scores" in request.outputs:
        dimension = max(1, len(encoder.labels))
    return Encoded(
        vectors=bytes(4 * dimension),
        dimension=dimension,
        tokens=(0,),
        sparse=SparseRows(struct.pack("<II", 0, 0), b"", b"") if "sparse" in request.outputs else None,
        token_vectors=TokenVectors(b"", encoder.token_dimension, (0,)) if "multi_vector" in request.outputs else None,
        errors=(InputError(0, error.status, error.kind, error.code, error.message),),
    )
