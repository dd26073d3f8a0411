"""What an engine tells its host: which threads are at which requests, and what becomes of them.

Spoken by ``engine``, heard by ``channel``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from emb_model_provider.messages.link import Detokenize, Encode, Encoded, Failed, Texts, Tokenize, Tokens
from shard.batching.lane import MOST_TOKENIZERS

#: Where a request may be when the process dies (``Listener.begins``): in a thread that reads it, or in a lane.
HOST_THREAD: Final = 0
TOKENIZER_THREADS: Final = range(1, 1 + MOST_TOKENIZERS)
SPELLING_THREAD: Final = TOKENIZER_THREADS.stop
FIRST_LANE: Final = SPELLING_THREAD + 1

Request = Encode | Tokenize | Detokenize
Outcome = Encoded | Tokens | Texts | Failed


class Listener(Protocol):
    """Hears what becomes of the work; called on any thread, so it must be quick and thread-safe."""

    def begins(self, where: int, keys: Sequence[int]) -> None:
        """Hear that a thread is at these jobs from now on: if the process dies now, one of them may be to blame."""

    def ends(self, where: int) -> None:
        """Hear that it is at none of them any more."""

    def finished(self, key: int, outcome: Outcome) -> None:
        """Take a request's answer or its error; never called for a cancelled one."""
