"""Ends the waiting for HuggingFace where it wants to be left alone for long. Called by ``huggingface``.

After too many requests a hub says when to come back (``Retry-After``, or ``ratelimit`` of a draft of the IETF). Its
client sleeps until then, which may be an hour, and tells nobody; who tries again later is the supervisor's to say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import httpx2
from huggingface_hub import get_session
from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]  # public by their docs

#: For so long the client may wait by itself, as for an answer.
_LONGEST_S: Final = 30
_FAILED: Final = 400

#: Makes the error of a status and of what the hub says to it.
Refuse = Callable[[int, str], Exception]


def refuse_long_waits(refuse: Refuse) -> None:
    """Prepare the client that is used from now on; nothing changes where it is. ``refuse`` is the same each time."""
    hooks = get_session().event_hooks["response"]
    if (hook := _LongWaits(refuse)) not in hooks:
        hooks[:] = [*(other for other in hooks if not isinstance(other, _LongWaits)), hook]


@dataclass(frozen=True, slots=True)
class _LongWaits:
    """Looks at each answer before the client does."""

    refuse: Refuse

    def __call__(self, response: httpx2.Response) -> None:
        if response.status_code >= _FAILED and (wait_s := asked_wait_s(response.headers)) > _LONGEST_S:
            said = f"{response.reason_phrase} and asks to be left alone for {wait_s} s"
            raise self.refuse(response.status_code, said.lstrip())


def asked_wait_s(headers: Mapping[str, str]) -> int:
    """Return how many seconds the client would wait for these headers, 0 where they ask for none."""
    limit = parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds
    after = headers.get("retry-after", "").strip()
    return int(after) if after.isdecimal() else 0
