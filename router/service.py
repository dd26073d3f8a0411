"""One request from start to end, free of any web framework: check, let in, slice, send, assemble."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence, Sized
from dataclasses import dataclass, field
from typing import Final, TypeVar

from emb_model_provider.errors import InvalidRequestError, RequestError
from emb_model_provider.messages.link import Detokenize, Encoded, Texts, Tokenize, Tokens
from emb_model_provider.messages.status import EncoderInfo, ShardStatus
from router.backend import EmbeddingBackend
from router.caller import CALLER
from router.delivery import Call, Delivery
from router.gate import Gate
from router.limits import RequestLimits, measure, measure_spelled
from router.link import Left
from router.quarantine import Quarantine
from router.registry import Registry
from router.requests import EncodeRequest, EncodeResult
from router.spelling import Spelling
from router.time_limit import TimeLimits
from router.trials import first_error
from router.visit import request_id

Answer = TypeVar("Answer")

#: A big request crosses in slices, two at a time: the device always has the next one, and a short query that
#: comes in between waits for at most two slices of each big request, not for all 2,048 texts.
_SLICE_INPUTS: Final = 64
_SLICE_UNITS: Final = 128 * 1024
_SLICES_IN_FLIGHT: Final = 2
#: As the shard tells small requests from big ones, roughly: it alone knows true tokens and times.
_SMALL_INPUTS: Final = 8
_SMALL_TOKENS: Final = 1024
#: A model that has answered nobody for so long may itself be what is wrong.
_LATELY_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Policy:
    """What an operator sets: how long work may wait, how large it may be. Times of 0 are without end.

    ``routers`` share each model's rate, and so what it may have before it.
    """

    timeout_s: float = 0.0
    max_queue_s: float = 0.0
    quarantine_s: float = 600.0
    limits: RequestLimits = field(default_factory=RequestLimits)
    routers: int = 1


class ModelChangedError(Exception):
    """A model is no longer the one that a request was planned for: plan it anew, and ask again."""


class EmbeddingService:
    """Answers requests from a backend."""

    def __init__(self, registry: Registry, backend: EmbeddingBackend, policy: Policy | None = None) -> None:
        self._registry = registry
        self._policy = policy or Policy()
        self._gates: dict[str, Gate] = {}
        self._time_limits = TimeLimits()
        self.quarantine = Quarantine(self._policy.quarantine_s)
        self._delivery = Delivery(registry, backend, self.quarantine, self)
        self._spelling = Spelling(registry, backend, self.quarantine, self)
        #: Hears of each slice that is sent again because a process died.
        self.on_resent: Callable[[str], None] = lambda _model_id: None
        #: Hears of each model that is well though it has died, for what it died of is known.
        self.on_acquitted: Callable[[str], None] = lambda _model_id: None

    @property
    def limits(self) -> RequestLimits:
        """How large one request may be."""
        return self._policy.limits

    def set_policy(self, policy: Policy) -> None:
        """Take these limits and this time for requests that come from now on; queue and quarantine stay as they are."""
        self._policy = policy

    async def embed(
        self, request: EncodeRequest, since_s: float | None = None, planned_for: str | None = None
    ) -> EncodeResult:
        """Return what one and the same model has made of all inputs.

        Its time counts from ``since_s`` on the loop's clock: it may have waited for ``facts`` already. Raises
        ``RequestError`` with what the client must hear, and ``ModelChangedError`` where the model's fingerprint
        is not ``planned_for``, or changes meanwhile.
        """
        status = self._registry.find(request.model)
        gate = self.gate_of(status)
        encoder = status.info.encoder if status.info else None
        tokens = measure(request, self._policy.limits, encoder.max_tokens if encoder else None)
        caller = CALLER.get()
        client, total = request.client or caller.client, sum(tokens)
        is_small = _is_small(request, tokens)
        limits_s = self._policy.timeout_s, request.timeout_s, caller.timeout_s
        with gate.counted(client, total, is_small=is_small):
            async with self._time_limits.limit(len(tokens), *limits_s, since_s=since_s) as deadline_s:
                if not self._registry.is_ready(status):
                    status = await self._registry.ready(status.model_id)
                making = self._registry.making(status.model_id)
                if planned_for is not None and planned_for != making[0]:
                    raise ModelChangedError
                result = await self._embed(Call(request, status, gate, client, tokens, is_small, deadline_s))
                if self._registry.making(status.model_id) != making:
                    raise ModelChangedError
        gate.succeeded()
        return result

    async def facts(self, request: EncodeRequest) -> EncoderInfo:
        """Return what is known of a model: of one that has never loaded, once it has.

        What waits for that counts as any work does: it is refused when too much waits, and ends when its time is over.
        """
        status = self._registry.find(request.model)
        if status.info is None:
            tokens = measure(request, self._policy.limits, None)
            is_small, client = _is_small(request, tokens), request.client or CALLER.get().client
            status = await self._wait(status, client, tokens, is_small=is_small, timeout_s=request.timeout_s)
        assert status.info is not None
        return status.info.encoder

    async def tokenize(self, model: str, message: Tokenize) -> Tokens:
        """Return the tokens of texts as the model's tokenizer makes them."""
        message = message.replace(request_id=request_id())
        tokens = measure_spelled(message, self._policy.limits)
        return await self._ask(model, tokens, lambda model_id: self._spelling.tokenize(model_id, message))

    async def detokenize(self, model: str, message: Detokenize) -> Texts:
        """Return the texts of token ids."""
        message = message.replace(request_id=request_id())
        tokens = [len(ids) for ids in message.token_ids]
        return await self._ask(model, tokens, lambda model_id: self._spelling.detokenize(model_id, message))

    def gates(self) -> Collection[Gate]:
        """Return those of all models that have been asked for anything."""
        return self._gates.values()

    def gate(self, model_id: str) -> Gate:
        """Return what counts one model's requests."""
        gate = self._gates.get(model_id)
        if gate is None:
            gate = self._gates[model_id] = Gate(model_id, self._policy.max_queue_s)
        return gate

    def gate_of(self, status: ShardStatus) -> Gate:
        """Return the same for a model that may be loaded: it counts with the rate that its shard has measured."""
        gate = self.gate(status.model_id)
        if status.info is not None:
            gate.expect(status.info.encoder.tokens_per_s / self._policy.routers)
        return gate

    def left_behind(self, left: Left) -> None:
        """Hear of what a process was at when it died, and whose client had left."""
        self.quarantine.found(left.marks, alone=left.alone)
        if left.alone:
            self.found_guilty(left.model_id)

    # ----------------------------------------------------------------------------------------- implements trials.News

    def resent(self, model_id: str) -> None:
        self.on_resent(model_id)

    def found_guilty(self, model_id: str) -> None:
        # One that dies whatever it is asked would have every input blamed, one after the other.
        if self.gate(model_id).has_succeeded_within(_LATELY_S) and self.quarantine:
            self.on_acquitted(model_id)

    async def _wait(
        self, status: ShardStatus, client: str, tokens: list[int], *, is_small: bool, timeout_s: float | None
    ) -> ShardStatus:
        """Return a model once it is ready, what waits for it being counted."""
        gate, total = self.gate(status.model_id), sum(tokens)
        with gate.counted(client, total, is_small=is_small):
            async with self._time_limits.limit(len(tokens), self._policy.timeout_s, timeout_s, CALLER.get().timeout_s):
                return await self._registry.ready(status.model_id)

    async def _ask(self, model: str, tokens: list[int], ask: Callable[[str], Awaitable[Answer]]) -> Answer:
        status, since_s = self._registry.find(model), asyncio.get_running_loop().time()
        if not self._registry.is_ready(status):
            await self._wait(status, CALLER.get().client, tokens, is_small=True, timeout_s=None)
        limits_s = self._policy.timeout_s, CALLER.get().timeout_s
        async with self._time_limits.limit(len(tokens), *limits_s, since_s=since_s):
            return await ask(status.model_id)

    async def _embed(self, call: Call) -> EncodeResult:
        request, status = call.request, call.status
        if request.dimensions is not None:
            _check_dimensions(request, status)
        self._delivery.refuse_quarantined(call)
        if request.count == 1:
            parts = await self._delivery.send(call, 0, 1)
        else:
            inputs = request.texts or request.token_ids
            slices = slice_bounds(inputs, request.queries.texts, request.seconds)
            parts = await (self._delivery.send(call, *slices[0]) if len(slices) == 1 else self._send_all(call, slices))
        return _assemble(status, parts)

    async def _send_all(self, call: Call, slices: list[tuple[int, int]]) -> list[Encoded]:
        parts: dict[int, list[Encoded]] = {}
        queue = iter(enumerate(slices))

        async def work() -> None:
            for index, (begin, end) in queue:
                parts[index] = await self._delivery.send(call, begin, end)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(_SLICES_IN_FLIGHT, len(slices))):
                    group.create_task(work())
        except* RequestError as errors:
            raise first_error(errors) from None
        return [part for index in range(len(slices)) for part in parts[index]]


def slice_bounds(inputs: Sequence[Sized], queries: int = 0, seconds: Sequence[Sized] = ()) -> list[tuple[int, int]]:
    """Cut inputs into runs of bounded count and size (characters or token ids); return each one's begin and end.

    The first ``queries`` of them are in runs of their own. ``seconds`` are the other halves of pairs, if they are any.
    """
    if len(inputs) == 1:
        return [(0, 1)]
    bounds: list[tuple[int, int]] = []
    begin, units = 0, 0
    for index, one in enumerate(inputs):
        size = len(one) + (len(seconds[index]) if seconds else 0)
        is_full = index - begin >= _SLICE_INPUTS or units + size > _SLICE_UNITS
        if index > begin and (is_full or index == queries):
            bounds.append((begin, index))
            begin, units = index, 0
        units += size
    bounds.append((begin, len(inputs)))
    return bounds


def _is_small(request: EncodeRequest, tokens: list[int]) -> bool:
    if request.priority != "auto":
        return request.priority == "interactive"
    return len(tokens) <= _SMALL_INPUTS and sum(tokens) <= _SMALL_TOKENS


def _check_dimensions(request: EncodeRequest, status: ShardStatus) -> None:
    assert status.info is not None
    assert request.dimensions is not None
    if request.dimensions > status.info.encoder.dimension:
        raise InvalidRequestError(
            f"The model {status.model_id!r} has {status.info.encoder.dimension} dimensions; "
            f"'dimensions' must be at most that, not {request.dimensions}.",
            param="dimensions",
        )


def _assemble(status: ShardStatus, parts: list[Encoded]) -> EncodeResult:
    assert status.info is not None
    if len(parts) == 1:
        part = parts[0]
        return EncodeResult(status.model_id, (part,), sum(part.tokens), part.truncated, status.info.encoder.fingerprint)
    truncated: list[int] = []
    offset = 0
    for part in parts:
        truncated.extend(offset + index for index in part.truncated)
        offset += len(part.tokens)
    tokens = sum(sum(part.tokens) for part in parts)
    return EncodeResult(status.model_id, tuple(parts), tokens, tuple(truncated), status.info.encoder.fingerprint)
