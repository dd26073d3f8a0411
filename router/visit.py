"""One request as it passes through the router, for metrics, access log and traces. Set by ``entrance``.

In a context variable, so that neither dialects nor the service have to hand it on; whoever learns something notes it.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

from router.requests import EncodeResult


@dataclass(slots=True)
class Visit:
    """What is known so far. ``route`` is a pattern and ``model`` an id that is served: both are few.

    ``error`` is the code of the error that was answered; ``shares`` the scripts of the inputs; ``holes``
    how many inputs of an answered request were wrong already in its body, and no model has seen.
    """

    request_id: str = ""
    route: str = ""
    dialect: str = ""
    model: str = ""
    error: str = ""
    traceparent: str = ""
    result: EncodeResult | None = None
    shares: tuple[tuple[str, float], ...] = ()
    holes: int = 0

    @property
    def inputs(self) -> int:
        """How many inputs were answered, those included that have an error in place of a result."""
        return self.holes + (0 if self.result is None else sum([len(part.tokens) for part in self.result.parts]))


#: ``None`` outside of a request.
VISIT: Final[ContextVar[Visit | None]] = ContextVar("visit", default=None)


def request_id() -> str:
    """Return the id of the request that is being answered; empty outside of one."""
    visit = VISIT.get()
    return visit.request_id if visit is not None else ""
