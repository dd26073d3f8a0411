"""The load: clients that ask in their own ways, each answer entered into the ledger. Run by ``run``."""

from __future__ import annotations

import asyncio
import base64
import itertools
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import aiohttp
import numpy as np

from tests.chaos.ledger import Ledger, Sent, judge
from tests.support.faulty_server import FaultyModel

_NO_ANSWER_S = 90.0
_TRIES_AFTER_A_CUT = 8
_EN = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "it",
    "rains",
    "on",
    "every",
    "shore",
]
_ZH = "今天天气很好我们去公园散步然后回家做饭吃苹果看书学习新的知识"
#: What a client sends that must hurt nobody else; ``{}`` is a number of its own.
POISONS = (
    "!raise {}", "!oom {}", "!oom=4 {}", "!memory {}", "!nan {}", "!overflow {}", "!untokenizable {}",
    "!exit-times=1 {}", "!kill-times=1 {}", "!raise-times=1 {}", "!sleep=1.5 {}", "!spin=1 {}", "!say {}\x1b[31m\r\n",
)  # fmt: skip
#: These take the process with them each time.
KILLERS = ("!exit {}", "!exit=0 {}", "!segfault {}", "!kill {}", "!fatal {}", "!sys-exit {}")


@dataclass
class Load:
    """What all clients share. ``numbers`` make every text and every request one of its own."""

    url: str
    models: dict[str, FaultyModel]
    ledger: Ledger
    stopping: asyncio.Event
    numbers: itertools.count[int]
    think_s: float = 0.05

    def text(self, rng: random.Random, number: int, index: int, words: int) -> str:
        """Return a text that no other request has."""
        body = " ".join(rng.choices(_EN, k=words)) if rng.random() < 0.5 else "".join(rng.choices(_ZH, k=words * 2))
        return f"{number}.{index} {body}"


class Client:
    """One client with a connection pool of its own."""

    def __init__(self, load: Load, seed: int) -> None:
        self._load = load
        self._rng = random.Random(seed)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=4), timeout=aiohttp.ClientTimeout(total=_NO_ANSWER_S)
        )

    async def close(self) -> None:
        await self._session.close()

    async def small(self) -> None:
        """One to three short texts at a time."""
        await self._repeat(lambda: self._texts(self._rng.randint(1, 3), 6))

    async def bulk(self) -> None:
        """Some hundred texts at a time."""
        await self._repeat(lambda: self._texts(self._rng.randint(80, 300), 12))

    async def leaving(self) -> None:
        """Ask for much and leave before it can be there."""
        while not self._load.stopping.is_set():
            await self._leave(self._make(self._texts(self._rng.randint(1, 120), 8), poisoned=False))
            await self._pause(0.3)

    async def crowd(self) -> None:
        """Ask the same several times at once, as a page does that many have open; the first of them leaves."""
        while not self._load.stopping.is_set():
            texts = self._texts(self._rng.choice((1, 1, 3, 100)), 60)
            model_id = self._rng.choice(list(self._load.models))
            equal = [self._make(texts, poisoned=False, model_id=model_id) for _ in range(5)]
            await asyncio.gather(self._leave(equal[0]), *map(self.ask, equal[1:]))
            await self._pause(0.3)

    async def poison(self, orders: tuple[str, ...], every_s: float) -> None:
        """Send one bad text among good ones, again and again."""
        while not self._load.stopping.is_set():
            await self._pause(self._rng.uniform(0.5, 1.5) * every_s)
            if not self._load.stopping.is_set():
                await self.poison_once(self._rng.choice(orders))

    async def poison_once(self, order: str, model_id: str | None = None) -> None:
        texts = self._texts(self._rng.randint(0, 4), 4)
        bad = order.format(next(self._load.numbers))
        texts.insert(self._rng.randint(0, len(texts)), bad)
        self._load.ledger.poison_sent += 1
        await self.ask(self._make(texts, poisoned=True, model_id=model_id))

    async def ask(self, sent: Sent) -> int:
        """Send one request and enter its answer; a connection that is cut is asked again, as clients' libraries do."""
        ledger = self._load.ledger
        began_s = time.monotonic()
        for attempt in range(_TRIES_AFTER_A_CUT):
            try:
                status, headers, body = await self._post(sent)
            except TimeoutError:
                ledger.lost += 1
                ledger.note(
                    f"{sent.request_id} ({sent.model_id}, {len(sent.texts)} texts): no answer in {_NO_ANSWER_S:g} s"
                )
                return 0
            except (aiohttp.ClientError, OSError):
                ledger.cut += 1
                await asyncio.sleep(0.1 * 2**attempt)
                continue
            model = self._load.models[sent.model_id]
            judge(ledger, sent, status, headers, body, [model.vector(text) for text in sent.texts])
            ledger.took(time.monotonic() - began_s)
            return status
        ledger.lost += 1
        ledger.note(f"{sent.request_id}: the connection was cut {_TRIES_AFTER_A_CUT} times")
        return 0

    async def probe(self, model_id: str) -> int:
        """Ask one short text."""
        return await self.ask(self._make(self._texts(1, 3), poisoned=False, model_id=model_id))

    # ------------------------------------------------------------------------------------------------ its parts

    async def _leave(self, sent: Sent) -> None:
        self._load.ledger.cancelled += 1
        try:
            async with asyncio.timeout(self._rng.uniform(0.0, 0.05)):
                await self._post(sent)
        except (TimeoutError, aiohttp.ClientError, OSError):
            pass  # that was the point

    async def _repeat(self, texts: Callable[[], list[str]]) -> None:
        while not self._load.stopping.is_set():
            await self.ask(self._make(texts(), poisoned=False))
            await self._pause(self._load.think_s)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds * self._rng.uniform(0.5, 1.5)):
                await self._load.stopping.wait()
        except TimeoutError:
            pass

    def _texts(self, count: int, words: int) -> list[str]:
        number = next(self._load.numbers)
        return [self._load.text(self._rng, number, index, words) for index in range(count)]

    def _make(self, texts: list[str], *, poisoned: bool, model_id: str | None = None) -> Sent:
        self._load.ledger.sent += 1
        self._load.ledger.texts += len(texts)
        model = model_id or self._rng.choice(list(self._load.models))
        return Sent(f"chaos-{next(self._load.numbers)}", model, tuple(texts), poisoned)

    async def _post(self, sent: Sent) -> tuple[int, Mapping[str, str], object]:
        as_base64 = self._rng.random() < 0.5
        body = {"model": sent.model_id, "input": list(sent.texts)}
        if as_base64:
            body["encoding_format"] = "base64"
        headers = {"x-request-id": sent.request_id}
        async with self._session.post(f"{self._load.url}/v1/embeddings", json=body, headers=headers) as response:
            try:
                answer = await response.json(content_type=None)
            except ValueError:
                answer = None
            if as_base64 and response.status == 200:
                for row in answer["data"]:
                    row["embedding"] = np.frombuffer(base64.b64decode(row["embedding"]), dtype="<f4").tolist()
            return response.status, response.headers, answer
