"""What the router knows of each model: the supervisor's shard table, corrected by what its own links see."""

from __future__ import annotations

import asyncio
import difflib
import math

from emb_model_provider.errors import ModelNotFoundError, UnavailableError
from emb_model_provider.messages.status import ShardStatus, ShardTable
from router.retry_after import LONGEST_S, bounded_s

_LONGEST_SHOWN = 128


class Registry:
    """Looks models up by id or full name and waits for them to become ready."""

    def __init__(self, ready_wait_s: float) -> None:
        self._ready_wait_s = ready_wait_s
        self._by_id: dict[str, ShardStatus] = {}
        self._by_name: dict[str, ShardStatus] = {}
        self._lost: set[tuple[str, int]] = set()
        #: What each model's vectors are made by, and how often that has changed: it may change and change back.
        self._makings: dict[str, tuple[str, int]] = {}
        self._changed = asyncio.Event()

    def update(self, table: ShardTable) -> None:
        """Replace what is known by the supervisor's newest table."""
        self._by_id = {status.model_id: status for status in table.shards}
        self._by_name = {}
        for status in table.shards:  # two models of one name: the first in the settings answers to it
            self._by_name.setdefault(status.name, status)
        # The one generation that may be asked for; of the others nobody speaks any more.
        self._lost &= {(status.model_id, status.generation) for status in table.shards}
        self._follow()
        self._notify()

    def set_ready_wait(self, ready_wait_s: float) -> None:
        """Wait so long from now on for models that are on their way."""
        self._ready_wait_s = ready_wait_s

    def mark_lost(self, model_id: str, generation: int) -> None:
        """Stop sending to a generation whose link broke, before the supervisor has said anything."""
        self._lost.add((model_id, generation))
        self._notify()

    def all(self) -> list[ShardStatus]:
        """Return every model in the order of the settings."""
        return [status for status in self._by_id.values() if status.state != "stopping"]

    def knows(self, model: str) -> bool:
        """Tell whether a model is called ``model``."""
        return model in self._by_id or model in self._by_name

    def find(self, model: str) -> ShardStatus:
        """Return the model called ``model``; raise ``ModelNotFoundError`` naming those that are served."""
        # One that was removed and finishes may have had the id that is another's full name.
        for status in (self._by_id.get(model), self._by_name.get(model)):
            if status is not None and status.state != "stopping":
                return status
        raise ModelNotFoundError(self._not_found_sentence(model), param="model")

    def is_ready(self, status: ShardStatus) -> bool:
        """Tell whether requests may be sent to this generation now.

        One that stops because its model was removed still answers the rest of those it has begun to answer.
        """
        return status.state in ("ready", "stopping") and (status.model_id, status.generation) not in self._lost

    def is_current(self, model_id: str, generation: int) -> bool:
        """Tell whether this is the generation that requests are sent to now."""
        status = self._by_id.get(model_id)
        return status is not None and status.generation == generation and self.is_ready(status)

    def serves(self, model_id: str, generation: int) -> bool:
        """Tell whether this is the generation that the supervisor takes for ready, reached or not."""
        status = self._by_id.get(model_id)
        return status is not None and status.generation == generation and status.state == "ready"

    def is_relieved(self, model_id: str, generation: int) -> bool:
        """Tell whether a generation was to go: another holds its place, or its model is served no more."""
        status = self._by_id.get(model_id)
        return status is None or status.generation != generation or status.state == "stopping"

    def making(self, model_id: str) -> tuple[str, int]:
        """Return what a model's vectors are made by (its fingerprint, and how often that has changed)."""
        return self._makings.get(model_id, ("", 0))

    async def ready(self, model_id: str) -> ShardStatus:
        """Return the model once it is ready.

        Raises ``UnavailableError`` at once when it has failed, and after the configured wait when it is still
        on its way, ``ModelNotFoundError`` when it is served no more.
        """
        if self.is_ready(status := self._row(model_id)):  # nearly always: spare it the timer
            return status
        try:
            async with asyncio.timeout(self._ready_wait_s):
                while not self.is_ready(status := self._row(model_id)):
                    if status.state == "failed":
                        raise _failed(status)
                    await self._changed.wait()
        except TimeoutError:
            raise _not_ready(self._row(model_id)) from None
        return status

    def _row(self, model_id: str) -> ShardStatus:
        """Return a model by id alone, also one that was removed and finishes."""
        return self._by_id.get(model_id) or self.find(model_id)

    def _follow(self) -> None:
        """Count each change of what vectors are made by; a process that does not serve yet has made none."""
        for status in self._by_id.values():  # of one that was removed twice a table may have two rows
            if status.info is None:
                continue
            fingerprint, changes = self._makings.get(status.model_id, ("", 0))
            if status.info.encoder.fingerprint != fingerprint:
                self._makings[status.model_id] = status.info.encoder.fingerprint, changes + 1

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _not_found_sentence(self, model: str) -> str:
        served = ", ".join(status.model_id for status in self.all()) or "none"
        model = model[:_LONGEST_SHOWN]  # a body may be all name, and nobody is answered while it is compared
        near = difflib.get_close_matches(model, [*self._by_id, *self._by_name], n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return f"The model {model!r} does not exist. Models served here: {served}.{hint}"


def retry_after_s(status: ShardStatus) -> float:
    """Return in how many seconds to ask again for a model that is not ready."""
    return LONGEST_S if status.state == "failed" else bounded_s(status.expected_ready_s)


def _failed(status: ShardStatus) -> UnavailableError:
    return UnavailableError(
        f"The model {status.model_id!r} cannot be served: {status.detail}",
        code="model_failed",
        param="model",
        retry_after_s=retry_after_s(status),
    )


def _not_ready(status: ShardStatus) -> UnavailableError:
    wait_s = retry_after_s(status)
    progress = ""
    if status.state == "downloading" and status.total_bytes:
        progress = f" ({100 * status.done_bytes // status.total_bytes} %)"
    # Of one that was lost in this moment the supervisor has said nothing yet.
    state = "restarting" if status.state == "ready" else status.state
    return UnavailableError(
        f"The model {status.model_id!r} is not ready: {state}{progress}. Try again in {math.ceil(wait_s)} s.",
        param="model",
        retry_after_s=wait_s,
    )
