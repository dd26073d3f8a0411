"""Three spans for each request on the link: tokenising, waiting, encoding. Handed by ``main`` to ``channel``."""

from __future__ import annotations

import time
from collections.abc import Callable

from emb_model_provider.messages.framing import Message
from emb_model_provider.messages.link import Encoded
from emb_model_provider.tracing import Tracer

#: Takes the ``traceparent`` of a request and what became of it.
Tell = Callable[[str, Message], None]


def trace_outcomes(tracer: Tracer, model_id: str) -> Tell:
    """Return what makes the spans of an answer from the times in it, laid back to back before now."""

    def tell(traceparent: str, outcome: Message) -> None:
        if not isinstance(outcome, Encoded):
            return
        facts: dict[str, str | int | float] = {
            "emb.model": model_id,
            "emb.inputs": len(outcome.tokens),
            "emb.tokens": sum(outcome.tokens),
        }
        timing, ended_ns = outcome.timing, time.time_ns()
        steps = (("encode", timing.encode_ms), ("queue", timing.queue_ms), ("tokenize", timing.tokenize_ms))
        for name, took_ms in steps:
            began_ns = ended_ns - int(1e6 * took_ms)
            tracer.record(name, traceparent, began_ns, ended_ns, facts)
            ended_ns = began_ns

    return tell
