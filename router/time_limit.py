"""How long a request may take, and what its client hears when that is over. Used by ``service``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from emb_model_provider.errors import DeadlineError


@asynccontextmanager
async def time_limit(inputs: int, *limits_s: float | None, since_s: float | None = None) -> AsyncIterator[float | None]:
    """End what runs within after the shortest of the times that are given (0 and ``None`` are none).

    They count from ``since_s`` on the loop's clock, by default from now. Yields when that is, on the same clock. Raises
    ``DeadlineError``; ``inputs`` is how many were asked for.
    """
    given = [limit_s for limit_s in limits_s if limit_s]
    limit_s = min(given) if given else None
    since_s = asyncio.get_running_loop().time() if since_s is None else since_s
    try:
        async with asyncio.timeout_at(None if limit_s is None else since_s + limit_s) as limit:
            yield limit.when()
    except TimeoutError:
        if limit_s is None or not limit.expired():
            raise
        raise _too_late(limit_s, inputs) from None


def _too_late(limit_s: float, inputs: int) -> DeadlineError:
    advice = "Send fewer inputs at once, or ask" if inputs > 1 else "Ask"
    return DeadlineError(
        f"No answer within {limit_s:g} s, so this request was taken back. {advice} again when there is less to do; "
        "the limit is the shorter one of EMB_PROVIDER_REQUEST_TIMEOUT_S and the header x-request-timeout."
    )
