"""One embedding request from start to end, free of any web framework: check, slice, send, retry, assemble."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence, Sized
from dataclasses import dataclass

from emb_model_provider.errors import DeadlineError, EncodeError, InvalidRequestError, RequestError, UnavailableError
from emb_model_provider.logs import EventLog
from emb_model_provider.messages import Encode, Encoded, ShardStatus
from router.backend import EmbeddingBackend
from router.link import ShardLostError
from router.registry import Registry
from router.requests import EncodeRequest, EncodeResult

log = EventLog("router.service")

#: A big request crosses in slices, two at a time: the device always has the next one, and a short query that
#: comes in between waits for at most two slices of each big request, not for all 2,048 texts.
_SLICE_INPUTS = 64
_SLICE_UNITS = 128 * 1024
_SLICES_IN_FLIGHT = 2
#: A request that was on the device when its shard died is tried once more; twice is no accident.
_MAX_STARTED_LOSSES = 2
_MAX_LOSSES = 10
_PAUSE_S = 10.0


@dataclass(frozen=True, slots=True)
class _Call:
    """A request on its way. ``deadline_s`` is on the loop's clock, ``None`` for none."""

    request: EncodeRequest
    status: ShardStatus
    deadline_s: float | None

    def message(self, begin: int, end: int) -> Encode:
        """Return the inputs from ``begin`` up to ``end`` as they are sent now."""
        request = self.request
        return Encode(
            texts=request.texts[begin:end],
            token_ids=request.token_ids[begin:end],
            dimensions=request.dimensions,
            prompt_name=request.prompt_name,
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
            traceparent=request.traceparent,
        )

    def _left_ms(self) -> int:
        if self.deadline_s is None:
            return 0
        return max(1, int(1000 * (self.deadline_s - asyncio.get_running_loop().time())))


class EmbeddingService:
    """Answers embedding requests from a backend, each within ``timeout_s`` (0: whenever)."""

    def __init__(self, registry: Registry, backend: EmbeddingBackend, timeout_s: float = 0.0) -> None:
        self._registry = registry
        self._backend = backend
        self._timeout_s = timeout_s

    async def embed(self, request: EncodeRequest) -> EncodeResult:
        """Return the vectors; raise ``RequestError`` with what the client must hear."""
        try:
            async with asyncio.timeout(self._timeout_s or None) as limit:
                return await self._embed(request, limit.when())
        except TimeoutError:
            if not limit.expired():
                raise
            raise _too_late(self._timeout_s, request.count) from None

    async def _embed(self, request: EncodeRequest, deadline_s: float | None) -> EncodeResult:
        status = await self._registry.ready(self._registry.find(request.model).model_id)
        _check_dimensions(request, status)
        call = _Call(request, status, deadline_s)
        slices = slice_bounds(request.texts or request.token_ids)
        if len(slices) == 1:
            parts = [await self._encode(call, *slices[0])]
        else:
            parts = await self._encode_all(call, slices)
        return _assemble(status, parts)

    async def _encode_all(self, call: _Call, slices: list[tuple[int, int]]) -> list[Encoded]:
        parts: dict[int, Encoded] = {}
        queue = iter(enumerate(slices))

        async def work() -> None:
            for index, (begin, end) in queue:
                parts[index] = await self._encode(call, begin, end)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(_SLICES_IN_FLIGHT, len(slices))):
                    group.create_task(work())
        except* RequestError as errors:
            raise _first(errors) from None
        return [parts[index] for index in range(len(slices))]

    async def _encode(self, call: _Call, begin: int, end: int) -> Encoded:
        model_id = call.status.model_id
        started_losses = 0
        for _ in range(_MAX_LOSSES):
            try:
                return await self._backend.encode(model_id, call.message(begin, end))
            except ShardLostError as lost:
                started_losses += lost.started
                log.warning("resend", model=model_id, started=lost.started, inputs=end - begin)
                if started_losses >= _MAX_STARTED_LOSSES:
                    raise _crashed_model() from None
        raise UnavailableError(
            "The model's process keeps going away before it can answer. Try again in a while.", retry_after_s=_PAUSE_S
        )


def slice_bounds(inputs: Sequence[Sized]) -> list[tuple[int, int]]:
    """Cut inputs into runs of bounded count and size (characters or token ids); return each one's begin and end."""
    if len(inputs) == 1:
        return [(0, 1)]
    bounds: list[tuple[int, int]] = []
    begin, units = 0, 0
    for index, one in enumerate(inputs):
        if index > begin and (index - begin >= _SLICE_INPUTS or units + len(one) > _SLICE_UNITS):
            bounds.append((begin, index))
            begin, units = index, 0
        units += len(one)
    bounds.append((begin, len(inputs)))
    return bounds


def _crashed_model() -> EncodeError:
    return EncodeError(
        "The model's process died while it worked on this request, more than once. "
        "If this keeps happening with the same input, that input is the likely cause.",
        code="request_crashed_model",
    )


def _too_late(timeout_s: float, count: int) -> DeadlineError:
    advice = "Send fewer inputs at once, or ask" if count > 1 else "Ask"
    return DeadlineError(
        f"No answer within {timeout_s:g} s, so this request was taken back. {advice} again when there is less to do; "
        "the operator can raise EMB_PROVIDER_REQUEST_TIMEOUT_S."
    )


def _check_dimensions(request: EncodeRequest, status: ShardStatus) -> None:
    assert status.info is not None
    if request.dimensions is not None and request.dimensions > status.info.encoder.dimension:
        raise InvalidRequestError(
            f"The model {status.model_id!r} has {status.info.encoder.dimension} dimensions; "
            f"'dimensions' must be at most that, not {request.dimensions}.",
            param="dimensions",
        )


def _assemble(status: ShardStatus, parts: list[Encoded]) -> EncodeResult:
    assert status.info is not None
    truncated: list[int] = []
    offset = 0
    for part in parts:
        truncated.extend(offset + index for index in part.truncated)
        offset += len(part.tokens)
    tokens = sum(sum(part.tokens) for part in parts)
    return EncodeResult(status.model_id, tuple(parts), tokens, tuple(truncated), status.info.encoder.fingerprint)


def _first(errors: ExceptionGroup[RequestError]) -> RequestError:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, RequestError)
    return error
