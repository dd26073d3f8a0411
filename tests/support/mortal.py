"""A backend whose process dies of certain inputs, and a service before it."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence
from typing import Any

from emb_model_provider.messages.status import ShardTable
from router.link import ShardLostError
from router.registry import Registry
from router.service import EmbeddingService, Policy
from tests.support.statuses import make_info, make_status


class Mortal:
    """One process after the other: each works on ``at_once`` messages at a time and dies of each deadly input.

    What it has then is lost. A message that is to be alone is worked on alone.
    """

    at_once = 1

    def __init__(self, *deadly: Hashable) -> None:
        self.deadly = set(deadly)
        self.deaths = 0
        self.on_death = lambda: None
        self.seen: list[Any] = []
        self._here: dict[asyncio.Future[Any], Any] = {}
        self._task: asyncio.Task[None] | None = None

    def inputs(self, message: Any) -> Sequence[Hashable]:
        return message.texts

    def answer(self, message: Any) -> Any:
        raise NotImplementedError

    async def _ask(self, message: Any) -> Any:
        self.seen.append(message)
        future = asyncio.get_running_loop().create_future()
        self._here[future] = message
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        while self._here:
            await asyncio.sleep(0)
            alone = [future for future, message in self._here.items() if message.alone]
            started = alone[:1] or list(self._here)[: self.at_once]
            if any(self.deadly & set(self.inputs(self._here[future])) for future in started):
                self.deaths += 1
                self.on_death()
                here, self._here = self._here, {}
                for future in here:
                    if not future.done():
                        future.set_exception(ShardLostError(started=future in started))
                continue
            for future in started:
                message = self._here.pop(future)
                if not future.done():
                    future.set_result(self.answer(message))


def make_service(backend: Any, policy: Policy | None = None) -> EmbeddingService:
    """Return the service of one model "m" that ``backend`` encodes for."""
    registry = Registry(ready_wait_s=0.05)
    registry.update(ShardTable((make_status("m", info=make_info()),)))
    return EmbeddingService(registry, backend, policy)
