"""Where vectors come from: the seam between ``service`` and the processes that encode."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from functools import partial
from typing import Protocol

from emb_model_provider.black_box import BlackBoxReader, box_path
from emb_model_provider.logs import EventLog
from emb_model_provider.messages.link import Detokenize, Encode, Encoded, Texts, Tokenize, Tokens
from emb_model_provider.messages.status import RestartShard, ShardStatus
from emb_model_provider.private_socket import peer_user
from emb_model_provider.process_limits import SHORTAGES
from router.link import Left, Link, ShardLostError
from router.registry import Registry

log = EventLog("router.backend")

#: A shard that refuses connections has died or is about to be replaced: the table will say so within this time.
_RECONNECT_PAUSE_S = 0.05
_SHORTAGE_PAUSE_S = 0.25
#: Within so long the supervisor knows of a process's death: one with much memory takes the kernel a while to end.
_DEATH_S = 5.0


class EmbeddingBackend(Protocol):
    """Carries one message to the model called ``model_id`` and its answer back.

    Raises ``RequestError`` for what the client must hear, ``ShardLostError`` when the process went away.
    """

    async def encode(self, model_id: str, message: Encode) -> Encoded: ...

    async def tokenize(self, model_id: str, message: Tokenize) -> Tokens: ...

    async def detokenize(self, model_id: str, message: Detokenize) -> Texts: ...


class LocalBackend:
    """The shards on this machine, one link to each, opened at the first request of a generation.

    ``demand_restart`` reaches the supervisor, which decides.
    """

    def __init__(self, registry: Registry, demand_restart: Callable[[RestartShard], None]) -> None:
        self._registry = registry
        self._demand_restart = demand_restart
        self._links: dict[str, Link] = {}
        self._opening: dict[str, asyncio.Lock] = {}
        self._is_closed = False
        #: Hears of what a process was at when it died and whose client had left.
        self.on_left: Callable[[Left], None] = lambda _left: None

    async def encode(self, model_id: str, message: Encode) -> Encoded:
        link = self._links.get(model_id)
        if link is None or link.lost.done() or not self._registry.is_current(model_id, link.generation):
            link = await self._link(model_id)
        return await link.request(message, Encoded)

    async def tokenize(self, model_id: str, message: Tokenize) -> Tokens:
        return await (await self._link(model_id)).request(message, Tokens)

    async def detokenize(self, model_id: str, message: Detokenize) -> Texts:
        return await (await self._link(model_id)).request(message, Texts)

    def in_flight(self) -> int:
        """Return how many messages wait for their answers."""
        return sum(link.in_flight for link in self._links.values())

    def close(self) -> None:
        """Close every link; what breaks so is no loss."""
        self._is_closed = True
        for link in self._links.values():
            link.close()

    async def _link(self, model_id: str) -> Link:
        while True:
            status = await self._registry.ready(model_id)
            if (link := self._linked(status)) is not None:
                return link
            async with self._opening.setdefault(status.model_id, asyncio.Lock()):
                # Others have had the lock meanwhile: they may have opened it, or found that nobody is there.
                if self._registry.is_current(status.model_id, status.generation):
                    return self._linked(status) or await self._open(status)

    def _linked(self, status: ShardStatus) -> Link | None:
        """Return the link to this generation, if it is open."""
        link = self._links.get(status.model_id)
        is_open = link is not None and link.generation == status.generation and not link.lost.done()
        return link if is_open else None

    async def _open(self, status: ShardStatus) -> Link:
        try:
            link = await self._connect(status)
        except OSError as error:
            log.warning("shard_unreachable", model=status.model_id, generation=status.generation, error=error)
            self._give_up(status.model_id, status.generation, f"its socket does not answer: {error}")
            await asyncio.sleep(_RECONNECT_PAUSE_S)
            raise ShardLostError(started=False) from error
        self._links[status.model_id] = link
        return link

    async def _connect(self, status: ShardStatus) -> Link:
        loop = asyncio.get_running_loop()
        while True:
            try:
                box = BlackBoxReader(box_path(status.socket_path))
                make = partial(Link, status.model_id, status.generation, box, self._link_broken, self._link_left)
                transport, link = await loop.create_unix_connection(make, status.socket_path)
            except OSError as error:
                if error.errno not in SHORTAGES:
                    raise
                # The shard is well and must not be replaced for it; descriptors come back as connections end.
                log.warning("no_descriptor", model=status.model_id, error=error)
                await asyncio.sleep(_SHORTAGE_PAUSE_S)
            else:
                if peer_user(transport.get_extra_info("socket")) != os.getuid():
                    link.close()
                    raise PermissionError("it is another user's")
                return link

    def _link_broken(self, link: Link) -> None:
        if self._is_closed:
            return
        if self._registry.is_relieved(link.model_id, link.generation):
            link.was_relieved = True
            log.info("shard_left", model=link.model_id, generation=link.generation)
        else:
            log.warning("shard_lost", model=link.model_id, generation=link.generation)
            if not link.complaint:
                asyncio.get_running_loop().call_later(_DEATH_S, self._expect_death, link)
        self._give_up(link.model_id, link.generation, link.complaint)

    def _expect_death(self, link: Link) -> None:
        """Have a process replaced that has ended its link, and that lives on: nobody would ask it again."""
        if not self._is_closed and self._registry.serves(link.model_id, link.generation):
            self._give_up(link.model_id, link.generation, "it has ended its link, and lives on")

    def _link_left(self, left: Left) -> None:
        if not self._is_closed:
            self.on_left(left)

    def _give_up(self, model_id: str, generation: int, complaint: str) -> None:
        """Send nothing more to a generation. One that died is replaced anyway; one that lives but fails us is not."""
        self._registry.mark_lost(model_id, generation)
        if complaint:
            self._demand_restart(RestartShard(model_id, generation, complaint))
