"""One embedding request from start to end, free of any web framework: check, slice, send, retry, assemble."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

from emb_model_provider.errors import EncodeError, InvalidRequestError, RequestError, UnavailableError
from emb_model_provider.logs import EventLog
from emb_model_provider.messages import Encode, Encoded, ShardStatus
from router.backend import EmbeddingBackend
from router.link import ShardLostError
from router.registry import Registry

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
class EmbeddingRequest:
    """What a client asks for, whatever dialect it spoke. Exactly one of ``texts`` and ``token_ids`` is not empty."""

    model: str
    texts: tuple[str, ...] = ()
    token_ids: tuple[tuple[int, ...], ...] = ()
    dimensions: int | None = None
    prompt_name: str | None = None

    @property
    def count(self) -> int:
        return len(self.texts) or len(self.token_ids)


@dataclass(frozen=True, slots=True)
class EmbeddingResult:
    """The answer, in the order asked.

    ``parts`` are the shard's answers one after the other; ``prompt_tokens`` what the model really read;
    ``truncated`` the indexes of inputs that were cut.
    """

    model_id: str
    parts: tuple[Encoded, ...]
    prompt_tokens: int
    truncated: tuple[int, ...]


class EmbeddingService:
    """Answers embedding requests from a backend."""

    def __init__(self, registry: Registry, backend: EmbeddingBackend) -> None:
        self._registry = registry
        self._backend = backend

    async def embed(self, request: EmbeddingRequest) -> EmbeddingResult:
        """Return the vectors; raise ``RequestError`` with what the client must hear."""
        model_id = self._registry.find(request.model).model_id
        status = await self._registry.ready(model_id)
        _check_dimensions(request, status)
        slices = list(slice_request(request, status))
        if len(slices) == 1:
            parts = [await self._encode(model_id, slices[0])]
        else:
            parts = await self._encode_all(model_id, slices)
        return _assemble(model_id, parts)

    async def _encode_all(self, model_id: str, slices: list[Encode]) -> list[Encoded]:
        parts: dict[int, Encoded] = {}
        queue = iter(enumerate(slices))

        async def work() -> None:
            for index, one in queue:
                parts[index] = await self._encode(model_id, one)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(_SLICES_IN_FLIGHT, len(slices))):
                    group.create_task(work())
        except* RequestError as errors:
            raise _first(errors) from None
        return [parts[index] for index in range(len(slices))]

    async def _encode(self, model_id: str, message: Encode) -> Encoded:
        started_losses = 0
        for _ in range(_MAX_LOSSES):
            try:
                return await self._backend.encode(model_id, message)
            except ShardLostError as lost:
                started_losses += lost.started
                log.warning("resend", model=model_id, started=lost.started, inputs=message.count)
                if started_losses >= _MAX_STARTED_LOSSES:
                    raise _crashed_model() from None
        raise UnavailableError(
            "The model's process keeps going away before it can answer. Try again in a while.", retry_after_s=_PAUSE_S
        )


def _crashed_model() -> EncodeError:
    return EncodeError(
        "The model's process died while it worked on this request, more than once. "
        "If this keeps happening with the same input, that input is the likely cause.",
        code="request_crashed_model",
    )


def slice_request(request: EmbeddingRequest, status: ShardStatus) -> Iterator[Encode]:
    """Cut a request into messages of bounded count and size (characters or token ids), in order."""
    inputs = request.texts or request.token_ids
    begin, units = 0, 0
    for index, one in enumerate(inputs):
        if index > begin and (index - begin >= _SLICE_INPUTS or units + len(one) > _SLICE_UNITS):
            yield _message(request, status, begin, index)
            begin, units = index, 0
        units += len(one)
    yield _message(request, status, begin, len(inputs))


def _message(request: EmbeddingRequest, status: ShardStatus, begin: int, end: int) -> Encode:
    return Encode(
        texts=request.texts[begin:end],
        token_ids=request.token_ids[begin:end],
        dimensions=request.dimensions,
        prompt_name=request.prompt_name,
        overlong=status.overlong,
        first_index=begin,
    )


def _check_dimensions(request: EmbeddingRequest, status: ShardStatus) -> None:
    assert status.info is not None
    if request.dimensions is not None and request.dimensions > status.info.encoder.dimension:
        raise InvalidRequestError(
            f"The model {status.model_id!r} has {status.info.encoder.dimension} dimensions; "
            f"'dimensions' must be at most that, not {request.dimensions}.",
            param="dimensions",
        )


def _assemble(model_id: str, parts: list[Encoded]) -> EmbeddingResult:
    truncated: list[int] = []
    offset = 0
    for part in parts:
        truncated.extend(offset + index for index in part.truncated)
        offset += len(part.tokens)
    tokens = sum(sum(part.tokens) for part in parts)
    return EmbeddingResult(model_id, tuple(parts), tokens, tuple(truncated))


def _first(errors: ExceptionGroup[RequestError]) -> RequestError:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, RequestError)
    return error
