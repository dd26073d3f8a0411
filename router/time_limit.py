"""How long a request may take, and what its client hears when that is over. Used by ``service``."""

from __future__ import annotations

import asyncio
from types import TracebackType

from emb_model_provider.errors import DeadlineError


class TimeLimit:
    """Ends what runs within after the shortest of the times that are given (0 and ``None`` are none).

    They count from ``since_s`` on the loop's clock, by default from now. Entering returns when that is, on the same
    clock. Raises ``DeadlineError``; ``inputs`` is how many were asked for. A class, because the event loop keeps
    account of every asynchronous generator, which takes longer than the limit itself.
    """

    __slots__ = ("_inputs", "_limit_s", "_timeout")

    def __init__(self, inputs: int, *limits_s: float | None, since_s: float | None = None) -> None:
        self._inputs = inputs
        self._limit_s = min([limit_s for limit_s in limits_s if limit_s], default=None)
        until_s = None
        if self._limit_s is not None:
            until_s = self._limit_s + (asyncio.get_running_loop().time() if since_s is None else since_s)
        self._timeout = asyncio.timeout_at(until_s)

    async def __aenter__(self) -> float | None:
        await self._timeout.__aenter__()
        return self._timeout.when()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, error, at)
        except TimeoutError:
            raise self._too_late() from None

    def _too_late(self) -> DeadlineError:
        advice = "Send fewer inputs at once, or ask" if self._inputs > 1 else "Ask"
        return DeadlineError(
            f"No answer within {self._limit_s:g} s, so this request was taken back. {advice} again when there is less "
            "to do; the limit is the shorter one of EMB_PROVIDER_REQUEST_TIMEOUT_S and the header x-request-timeout."
        )
