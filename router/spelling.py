"""Asks a model's process which tokens texts have, or the texts of tokens, through the death of processes.

Used by ``service``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, NoReturn, TypeVar

from emb_model_provider.codec import Many
from emb_model_provider.errors import RequestError
from emb_model_provider.messages.link import Detokenize, Texts, Token, Tokenize, Tokens
from router.backend import EmbeddingBackend
from router.link import ShardLostError
from router.quarantine import Quarantine, fingerprint, keeps_dying
from router.registry import Registry
from router.trials import News, Trials

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class _Question(Generic[Row]):
    """What is asked of one model; ``send`` returns a row for each input of the message that it is given.

    Implements ``trials.Asked``.
    """

    model_id: str
    message: Tokenize | Detokenize
    send: Callable[[Tokenize | Detokenize], Awaitable[Sequence[Row]]]

    def mark(self, index: int) -> bytes:
        return fingerprint(self.model_id, self.message, index)

    def label(self, index: int) -> str:
        return f"input {index}"

    def wanted(self, index: int) -> Hashable:
        return self._alone(index).replace(request_id="")

    def without(self, error: RequestError) -> NoReturn:
        raise error

    def is_anyones(self, _row: Row) -> bool:
        return True

    async def send_alone(self, index: int) -> Row:
        """Return the row of the input at ``index``, sent by itself."""
        (row,) = await self.send(self._alone(index))
        return row

    def _alone(self, index: int) -> Tokenize | Detokenize:
        only = slice(index, index + 1)
        if isinstance(self.message, Tokenize):
            return self.message.replace(texts=self.message.texts[only], alone=True)
        return self.message.replace(token_ids=self.message.token_ids[only], alone=True)


class Spelling:
    """Sends questions to a backend; shares what is known of guilty inputs with ``delivery``."""

    def __init__(self, registry: Registry, backend: EmbeddingBackend, quarantine: Quarantine, news: News) -> None:
        self._backend = backend
        self._tokenizing: Trials[Many[Token]] = Trials(registry, quarantine, news)
        self._detokenizing: Trials[str] = Trials(registry, quarantine, news)

    async def tokenize(self, model_id: str, message: Tokenize) -> Tokens:
        """Return the tokens of each text; raise ``RequestError``."""

        async def send(one: Tokenize | Detokenize) -> Sequence[Many[Token]]:
            assert isinstance(one, Tokenize)
            return (await self._backend.tokenize(model_id, one)).rows

        return Tokens(await _ask(_Question(model_id, message, send), self._tokenizing))

    async def detokenize(self, model_id: str, message: Detokenize) -> Texts:
        """Return the text of each row of token ids; raise ``RequestError``."""

        async def send(one: Tokenize | Detokenize) -> Sequence[str]:
            assert isinstance(one, Detokenize)
            return (await self._backend.detokenize(model_id, one)).texts

        return Texts(await _ask(_Question(model_id, message, send), self._detokenizing))


async def _ask(asked: _Question[Row], trials: Trials[Row]) -> tuple[Row, ...]:
    indices = range(asked.message.count)
    for _ in trials.tries():
        await trials.settled(asked, indices)
        for index in indices:
            if (refusal := trials.refusal(asked, index)) is not None:
                raise refusal
        if trials.has_suspects(asked, indices):
            return tuple(await trials.each(asked, indices, asked.send_alone))
        try:
            return tuple(await asked.send(asked.message))
        except ShardLostError as lost:
            if (tried := await trials.lost(asked, indices, lost, asked.send_alone)) is not None:
                return tuple(tried)
    raise keeps_dying()
