"""Tells the supervisor, again and again, that the router's event loop turns, and how late. Started by ``main``."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from concurrent.futures import Future

from emb_model_provider.messages.framing import Message
from emb_model_provider.messages.status import Heartbeat


async def beat(
    begin_sending: Callable[[Message], Future[None]],
    in_flight: Callable[[], int],
    quarantined: Callable[[], int],
    every_s: float,
) -> None:
    """Send ``Heartbeat`` every ``every_s`` seconds until cancelled: a loop that stands still sends none."""
    loop = asyncio.get_running_loop()
    due_s = loop.time() + every_s
    while True:
        await asyncio.sleep(max(0.0, due_s - loop.time()))
        lag_s = max(0.0, round(loop.time() - due_s, 3))
        heartbeat = Heartbeat(lag_s, in_flight(), quarantined())
        due_s = loop.time() + every_s
        sys.stderr.flush()  # what could not be written before
        # A supervisor that is stopped stops reading: that holds up nobody else, and only one of these waits for it.
        await asyncio.wrap_future(begin_sending(heartbeat))
