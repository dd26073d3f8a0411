"""Asks a model's process which tokens texts have, or the texts of tokens, through the death of processes.

Used by ``service``. As in ``delivery``: when a shard dies, what it was not reading is sent again as it was; what it was
is suspect, and each input is sent once more by itself, alone in the process. One that kills a second time gets its own
error, and is kept in quarantine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from emb_model_provider.codec import Many
from emb_model_provider.errors import RequestError
from emb_model_provider.logs import EventLog
from emb_model_provider.messages import Detokenize, Texts, Token, Tokenize, Tokens
from router.backend import EmbeddingBackend
from router.delivery import first_error
from router.link import ShardLostError
from router.quarantine import Quarantine, crashed_model, fingerprint, keeps_dying, quarantined
from router.registry import Registry

log = EventLog("router.spelling")

Row = TypeVar("Row")

_MAX_LOSSES: Final = 10


@dataclass(frozen=True, slots=True)
class _Question(Generic[Row]):
    """What is asked of one model; ``send`` returns a row for each input of the message that it is given."""

    model_id: str
    message: Tokenize | Detokenize
    send: Callable[[Tokenize | Detokenize], Awaitable[Sequence[Row]]]

    def mark(self, index: int) -> bytes:
        return fingerprint(self.model_id, self.message, index)

    def alone(self, index: int) -> Tokenize | Detokenize:
        """Return the input at ``index`` by itself, as it is tried."""
        only = slice(index, index + 1)
        if isinstance(self.message, Tokenize):
            return self.message.replace(texts=self.message.texts[only], alone=True)
        return self.message.replace(token_ids=self.message.token_ids[only], alone=True)


class Spelling:
    """Sends questions to a backend; shares what is known of guilty inputs with ``delivery``."""

    def __init__(
        self, registry: Registry, backend: EmbeddingBackend, quarantine: Quarantine, on_resent: Callable[[str], None]
    ) -> None:
        self._registry = registry
        self._backend = backend
        self._quarantine = quarantine
        self._on_resent = on_resent
        #: Inputs that are being tried; whoever asks for the same waits until it is known whether they kill.
        self._trials: dict[bytes, asyncio.Future[None]] = {}

    async def tokenize(self, model_id: str, message: Tokenize) -> Tokens:
        """Return the tokens of each text; raise ``RequestError``."""

        async def send(one: Tokenize | Detokenize) -> Sequence[Many[Token]]:
            assert isinstance(one, Tokenize)
            return (await self._backend.tokenize(model_id, one)).rows

        return Tokens(await self._ask(_Question(model_id, message, send)))

    async def detokenize(self, model_id: str, message: Detokenize) -> Texts:
        """Return the text of each row of token ids; raise ``RequestError``."""

        async def send(one: Tokenize | Detokenize) -> Sequence[str]:
            assert isinstance(one, Detokenize)
            return (await self._backend.detokenize(model_id, one)).texts

        return Texts(await self._ask(_Question(model_id, message, send)))

    async def _ask(self, asked: _Question[Row]) -> tuple[Row, ...]:
        for _ in range(_MAX_LOSSES):
            # First the wait for a process: what is learnt meanwhile of these inputs has to count.
            await self._registry.ready(asked.model_id)
            while trials := self._trials_of(asked):
                await asyncio.wait(trials)
                await self._registry.ready(asked.model_id)
            if self._quarantine:
                for index in range(asked.message.count):
                    self._refuse_quarantined(asked, index)
            try:
                return tuple(await asked.send(asked.message))
            except ShardLostError as lost:
                self._note_loss(asked, lost)
                if lost.started:
                    return await self._try_each(asked)
                # Let those that heard of the same death begin their trials; their tasks take a turn of the loop more.
                await asyncio.sleep(0)
                await asyncio.sleep(0)
        raise keeps_dying()

    def _note_loss(self, asked: _Question[Row], lost: ShardLostError) -> None:
        message = asked.message
        log.warning(
            "resend",
            request_id=message.request_id or None,
            model=asked.model_id,
            suspect=lost.started,
            inputs=message.count,
        )
        self._on_resent(asked.model_id)

    def _trials_of(self, asked: _Question[Row]) -> list[asyncio.Future[None]]:
        if not self._trials:
            return []
        found = (self._trials.get(asked.mark(index)) for index in range(asked.message.count))
        return [trial for trial in found if trial is not None]

    def _refuse_quarantined(self, asked: _Question[Row], index: int) -> None:
        if (left_s := self._quarantine.left_s(asked.mark(index))) > 0:
            raise quarantined(f"input {index}", left_s)

    async def _try_each(self, asked: _Question[Row]) -> tuple[Row, ...]:
        """Send suspects one by one; all of them at once, for the shard puts them one after the other."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._try(asked, index)) for index in range(asked.message.count)]
        except* RequestError as errors:
            raise first_error(errors) from None
        return tuple(task.result() for task in tasks)

    async def _try(self, asked: _Question[Row], index: int) -> Row:
        mark = asked.mark(index)
        while (trial := self._trials.get(mark)) is not None:
            await asyncio.wait([trial])
        self._trials[mark] = asyncio.get_running_loop().create_future()
        try:
            return await self._send_alone(asked, index)
        finally:
            self._trials.pop(mark).set_result(None)

    async def _send_alone(self, asked: _Question[Row], index: int) -> Row:
        for _ in range(_MAX_LOSSES):
            # First the wait for a process: another router may find the same input guilty meanwhile.
            await self._registry.ready(asked.model_id)
            self._refuse_quarantined(asked, index)
            try:
                (row,) = await asked.send(asked.alone(index))
            except ShardLostError as lost:
                if lost.started:
                    log.error(
                        "input_kills", request_id=asked.message.request_id or None, model=asked.model_id, index=index
                    )
                    self._quarantine.add(asked.mark(index))
                    raise crashed_model(f"input {index}") from None
            else:
                return row
        raise keeps_dying()
