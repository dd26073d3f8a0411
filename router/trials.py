"""What becomes of inputs whose process has died, and which of them it died of. Used by ``delivery`` and ``spelling``.

What the process had not begun is innocent and sent again as it was. What it had is suspect: each input is sent once
more by itself, alone in the process. An input that is alone there when the process dies a second time has killed it,
gets its own error, and is kept in quarantine. Where its client has left by then, the next who asks for it has it tried.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

from emb_model_provider.errors import QuarantinedError, RequestError
from emb_model_provider.logs import EventLog
from router.link import ShardLostError
from router.quarantine import Quarantine, crashed_model, keeps_dying, quarantined
from router.registry import Registry
from router.visit import request_id

log = EventLog("router.trials")

#: As often are innocents sent, to one process after the other, while nothing is found that these die of.
_MAX_LOSSES: Final = 10

Row = TypeVar("Row")


class Asked(Protocol[Row]):
    """What is asked of one model; inputs are told by their index. ``Row`` is the result of one."""

    @property
    def model_id(self) -> str: ...

    def mark(self, index: int) -> bytes:
        """Return the fingerprint of what the process sees of this input."""

    def label(self, index: int) -> str:
        """Return what errors call this input."""

    def wanted(self, index: int) -> Hashable:
        """Return what is wanted of this input; who wants something equal gets an equal result."""

    def without(self, error: RequestError) -> Row:
        """Return the result of an input that has none, or raise its error where all are wanted."""

    def is_anyones(self, row: Row) -> bool:
        """Tell whether this result is right for whoever wants the same: an error names an input as one client does."""


class News(Protocol):
    """What is told of a model's inputs; ``service`` implements it."""

    def resent(self, model_id: str) -> None:
        """Hear that inputs are sent again because a process died."""

    def found_guilty(self, model_id: str) -> None:
        """Hear that an input has killed a process, and which is refused from now on."""


@dataclass(frozen=True, slots=True)
class _Verdict(Generic[Row]):
    """What became of an innocent input that was tried."""

    wanted: Hashable
    row: Row


class Trials(Generic[Row]):
    """Tries suspects, each once however many ask for it; what it learns of guilty ones outlives requests."""

    def __init__(self, registry: Registry, quarantine: Quarantine, news: News) -> None:
        self._registry = registry
        self._quarantine = quarantine
        self._news = news
        #: Inputs that are being tried, and the verdict, if there is one; others with the same input wait for that.
        self._running: dict[bytes, asyncio.Future[_Verdict[Row] | None]] = {}

    def tries(self) -> Iterator[None]:
        """Yield as often as an input is to be sent; it is counted anew when another one is found guilty."""
        losses = 0
        while losses < _MAX_LOSSES:
            known = self._quarantine.found_guilty
            yield
            losses = losses + 1 if self._quarantine.found_guilty == known else 0

    async def settled(self, asked: Asked[Row], indices: Iterable[int]) -> None:
        """Wait until the model has a process and nobody tries any of these inputs."""
        # First the wait for a process: what is learnt meanwhile of these inputs has to count.
        await self._registry.ready(asked.model_id)
        while self._running and (running := self._running_of(asked, indices)):
            await asyncio.wait(running)
            await self._registry.ready(asked.model_id)

    def refusal(self, asked: Asked[Row], index: int) -> QuarantinedError | None:
        """Return why this input is not tried, if it is not."""
        if self._quarantine and (left_s := self._quarantine.left_s(asked.mark(index))) > 0:
            return quarantined(asked.label(index), left_s)
        return None

    async def lost(
        self, asked: Asked[Row], indices: range, lost: ShardLostError, send_alone: Callable[[int], Awaitable[Row]]
    ) -> list[Row] | None:
        """Return what became of inputs whose process died; ``None``: they are to be sent again as they were.

        ``send_alone`` sends one of them by itself, alone in the process.
        """
        log.warning(
            "resend",
            request_id=request_id() or None,
            model=asked.model_id,
            suspect=lost.started,
            inputs=len(indices),
        )
        self._news.resent(asked.model_id)
        if lost.started:
            return await self.each(asked, indices, send_alone)
        # Let those that heard of the same death begin their trials; their tasks take a turn of the loop more.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return None

    def _running_of(self, asked: Asked[Row], indices: Iterable[int]) -> list[asyncio.Future[_Verdict[Row] | None]]:
        found = (self._running.get(asked.mark(index)) for index in indices)
        return [trial for trial in found if trial is not None]

    def has_suspects(self, asked: Asked[Row], indices: Iterable[int]) -> bool:
        """Tell whether any of these has to be tried alone, for what became of a process before."""
        return self._quarantine.has_suspects and any(self._quarantine.is_suspect(asked.mark(i)) for i in indices)

    async def each(self, asked: Asked[Row], indices: range, send_alone: Callable[[int], Awaitable[Row]]) -> list[Row]:
        """Send suspects one by one; all of them at once, for the shard puts them one after the other."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._try(asked, index, send_alone)) for index in indices]
        except* RequestError as errors:
            raise first_error(errors) from None
        return [task.result() for task in tasks]

    async def _try(self, asked: Asked[Row], index: int, send_alone: Callable[[int], Awaitable[Row]]) -> Row:
        """Try one suspect, unless somebody does already: then that verdict counts for this one, too.

        An innocent one's result is that of all who wanted the same: each trial has the device for itself.
        """
        mark, wanted = asked.mark(index), asked.wanted(index)
        while (trial := self._running.get(mark)) is not None:
            await asyncio.wait([trial])
            verdict = trial.result()
            if verdict is not None and verdict.wanted == wanted:
                return verdict.row
        self._running[mark] = asyncio.get_running_loop().create_future()
        verdict = None
        try:
            row = await self._send_alone(asked, index, mark, send_alone)
            self._quarantine.clear(mark)
            if asked.is_anyones(row):
                verdict = _Verdict(wanted, row)
            return row
        finally:
            self._running.pop(mark).set_result(verdict)

    async def _send_alone(
        self, asked: Asked[Row], index: int, mark: bytes, send_alone: Callable[[int], Awaitable[Row]]
    ) -> Row:
        """Send one suspect by itself. It waits for no turn: it has had one, and others wait for its verdict."""
        for _ in self.tries():
            # First the wait for a process: another router may find the same input guilty meanwhile.
            await self._registry.ready(asked.model_id)
            if (refusal := self.refusal(asked, index)) is not None:
                return asked.without(refusal)
            try:
                return await send_alone(index)
            except ShardLostError as lost:
                if lost.started:
                    log.error("input_kills", request_id=request_id() or None, model=asked.model_id, index=index)
                    self._quarantine.add(mark)
                    self._news.found_guilty(asked.model_id)
                    return asked.without(crashed_model(asked.label(index)))
        raise keeps_dying()


def first_error(errors: ExceptionGroup[RequestError]) -> RequestError:
    """Return one of the errors in a group, which may hold groups."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, RequestError)
    return error
