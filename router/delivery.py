"""Brings one slice of a request to its model, through the death of processes. Used by ``service``.

When a shard dies, what was not on its device is innocent and sent again as it was. What was is suspect: each input is
sent once more by itself, alone on the device. An input that is alone there when the process dies a second time has
killed it, gets its own error, and is kept in quarantine.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from emb_model_provider.errors import RequestError
from emb_model_provider.logs import EventLog
from emb_model_provider.messages import Encode, Encoded, InputError, ShardStatus, SparseRows, TokenVectors
from router.backend import EmbeddingBackend
from router.gate import Gate, Turn, Work
from router.link import ShardLostError
from router.quarantine import Quarantine, crashed_model, fingerprint, keeps_dying, quarantined
from router.registry import Registry
from router.requests import EncodeRequest
from router.visit import VISIT, request_id

log = EventLog("router.delivery")

_MAX_LOSSES: Final = 10


@dataclass(eq=False, slots=True)
class Call:
    """A request on its way.

    ``tokens`` are estimates, one for each input; ``deadline_s`` is on the loop's clock, ``None`` for none.
    """

    request: EncodeRequest
    status: ShardStatus
    gate: Gate
    client: str
    tokens: list[int]
    is_small: bool
    deadline_s: float | None

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
        return max(1, int(1000 * (self.deadline_s - asyncio.get_running_loop().time())))


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What became of an innocent input that was tried: the result of this work, cut to so many dimensions."""

    work: Work
    dimensions: int | None
    encoded: Encoded


class Delivery:
    """Sends slices to a backend; what it knows of guilty inputs outlives requests and processes."""

    def __init__(
        self,
        registry: Registry,
        backend: EmbeddingBackend,
        quarantine: Quarantine,
        on_resent: Callable[[str], None] = lambda _model_id: None,
    ) -> None:
        self._registry = registry
        self._backend = backend
        self._on_resent = on_resent
        self._quarantine = quarantine
        #: Inputs that are being tried, and the verdict, if there is one; others with the same input wait for that.
        self._trials: dict[bytes, asyncio.Future[_Verdict | None]] = {}

    async def send(self, call: Call, begin: int, end: int) -> list[Encoded]:
        """Return the results of the inputs from ``begin`` up to ``end``, in order, in one part or several.

        Raises ``RequestError``; a ``partial`` request gets an error of one input as that input's result.
        """
        if not self._quarantine:
            return await self._send_healthy(call, begin, end)
        parts: list[Encoded] = []
        for index in range(begin, end):
            if (left_s := self._left_s(call, index)) > 0:
                if index > begin:
                    parts += await self._send_healthy(call, begin, index)
                parts.append(_without(call, quarantined(call.request.label(index), left_s)))
                begin = index + 1
        if begin < end:
            parts += await self._send_healthy(call, begin, end)
        return parts

    def refuse_quarantined(self, call: Call) -> None:
        """Raise ``QuarantinedError`` for a request that cannot be answered whole, before any of it is sent."""
        if not self._quarantine or call.request.partial:
            return
        for index in range(call.request.count):
            if (left_s := self._left_s(call, index)) > 0:
                raise quarantined(call.request.label(index), left_s)

    def _left_s(self, call: Call, index: int) -> float:
        return self._quarantine.left_s(_fingerprint(call, index))

    async def _send_healthy(self, call: Call, begin: int, end: int) -> list[Encoded]:
        model_id = call.status.model_id
        turn = call.turn(begin, end)
        for _ in range(_MAX_LOSSES):
            if not call.gate.is_open(turn):
                await call.gate.wait(turn)
            is_answered = False
            try:
                # First the wait for a process: what is learnt meanwhile of these inputs has to count.
                await self._registry.ready(model_id)
                while trials := self._trials_of(call, begin, end):
                    await asyncio.wait(trials)
                    await self._registry.ready(model_id)
                if not (self._quarantine and any(self._left_s(call, index) for index in range(begin, end))):
                    encoded = await self._backend.encode(model_id, call.message(begin, end))
                    is_answered = True
                    return [encoded]
            except ShardLostError as lost:
                log.warning(
                    "resend", request_id=request_id() or None, model=model_id, suspect=lost.started, inputs=end - begin
                )
                self._on_resent(model_id)
                if lost.started:
                    return await self._try_each(call, begin, end)
                # Let those that heard of the same death begin their trials; their tasks take a turn of the loop more.
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                continue
            finally:
                call.gate.turn_over(turn, is_answered=is_answered)
            return await self.send(call, begin, end)  # something among these has been found guilty since
        raise keeps_dying()

    def _trials_of(self, call: Call, begin: int, end: int) -> list[asyncio.Future[_Verdict | None]]:
        if not self._trials:
            return []
        found = (self._trials.get(_fingerprint(call, index)) for index in range(begin, end))
        return [trial for trial in found if trial is not None]

    async def _try_each(self, call: Call, begin: int, end: int) -> list[Encoded]:
        """Send suspects one by one; all of them at once, for the shard puts them one after the other."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._try(call, index)) for index in range(begin, end)]
        except* RequestError as errors:
            raise first_error(errors) from None
        return [task.result() for task in tasks]

    async def _try(self, call: Call, index: int) -> Encoded:
        """Try one suspect, unless somebody does already: then that verdict counts for this one, too.

        An innocent one's result is that of all who asked for the same: each trial has the device for itself.
        """
        mark, work, dimensions = _fingerprint(call, index), call.work(index, index + 1), call.request.dimensions
        while (trial := self._trials.get(mark)) is not None:
            await asyncio.wait([trial])
            verdict = trial.result()
            if verdict is not None and (verdict.work, verdict.dimensions) == (work, dimensions):
                return verdict.encoded
        self._trials[mark] = asyncio.get_running_loop().create_future()
        verdict = None
        try:
            encoded = await self._send_alone(call, index, mark)
            if not encoded.errors:  # an error names the input as its own client calls it
                verdict = _Verdict(work, dimensions, encoded)
            return encoded
        finally:
            self._trials.pop(mark).set_result(verdict)

    async def _send_alone(self, call: Call, index: int, mark: bytes) -> Encoded:
        """Send one suspect by itself. It waits for no turn: it has had one, and others wait for its verdict."""
        for _ in range(_MAX_LOSSES):
            # First the wait for a process: another router may find the same input guilty meanwhile.
            await self._registry.ready(call.status.model_id)
            if (left_s := self._quarantine.left_s(mark)) > 0:
                return _without(call, quarantined(call.request.label(index), left_s))
            try:
                return await self._backend.encode(call.status.model_id, call.message(index, index + 1, alone=True))
            except ShardLostError as lost:
                if lost.started:
                    log.error("input_kills", request_id=request_id() or None, model=call.status.model_id, index=index)
                    self._quarantine.add(mark)
                    return _without(call, crashed_model(call.request.label(index)))
        raise keeps_dying()


def first_error(errors: ExceptionGroup[RequestError]) -> RequestError:
    """Return one of the errors in a group, which may hold groups."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, RequestError)
    return error


def _fingerprint(call: Call, index: int) -> bytes:
    return fingerprint(call.status.model_id, call.message(index, index + 1), 0)


def _without(call: Call, error: RequestError) -> Encoded:
    """Return the result of an input that has none, or raise its error where all are wanted."""
    if not call.request.partial:
        raise error
    assert call.status.info is not None
    encoder, wanted = call.status.info.encoder, call.request.outputs
    dimension = 0
    if "dense" in wanted:
        dimension = call.request.dimensions or encoder.dimension
    elif "scores" in wanted:
        dimension = max(1, len(encoder.labels))
    return Encoded(
        vectors=bytes(4 * dimension),
        dimension=dimension,
        tokens=(0,),
        sparse=SparseRows(struct.pack("<II", 0, 0), b"", b"") if "sparse" in wanted else None,
        token_vectors=TokenVectors(b"", encoder.token_dimension, (0,)) if "multi_vector" in wanted else None,
        errors=(InputError(0, error.status, error.kind, error.code, error.message),),
    )
