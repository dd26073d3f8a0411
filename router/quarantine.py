"""Inputs that have ended a model's process, or may have, and for how long nobody tries them again: pure.

Used by ``trials``.

An input is known by a digest of everything that the device sees of it, so that the same one is refused whoever sends it
and however many processes the model has had since.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final

from emb_model_provider.errors import EncodeError, QuarantinedError, UnavailableError
from emb_model_provider.messages.link import Detokenize, Encode, Tokenize

_MAX_INPUTS: Final = 10_000
_DIGEST_BYTES: Final = 16
_PAUSE_S: Final = 10.0


class Quarantine:
    """Holds fingerprints for ``for_s`` seconds each; beyond ``max_inputs`` the one asked for longest ago goes first."""

    def __init__(
        self, for_s: float, max_inputs: int = _MAX_INPUTS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._for_s = for_s
        self._max_inputs = max_inputs
        self._clock = clock
        self._until_s: OrderedDict[bytes, float] = OrderedDict()
        self._last_until_s = 0.0
        self._suspects: OrderedDict[bytes, None] = OrderedDict()
        #: How many inputs have been found guilty here, ever.
        self.found_guilty = 0
        #: Hears of every input that is found guilty here.
        self.on_added: Callable[[bytes], None] = lambda _fingerprint: None

    def __len__(self) -> int:
        """Return how many inputs are refused now."""
        now_s = self._clock()
        return sum(until_s > now_s for until_s in self._until_s.values())

    def __bool__(self) -> bool:
        """Tell the same as a non-zero length, at no cost: asked for every request."""
        return bool(self._until_s) and self._last_until_s > self._clock()

    def add(self, fingerprint: bytes) -> None:
        """Refuse this input from now on."""
        self.found_guilty += 1
        self.learn(fingerprint)
        self.clear(fingerprint)
        self.on_added(fingerprint)

    def learn(self, fingerprint: bytes) -> None:
        """Do so for an input that somebody else has found guilty."""
        if self._for_s <= 0:
            return
        self._until_s[fingerprint] = self._last_until_s = self._clock() + self._for_s
        self._until_s.move_to_end(fingerprint)
        while len(self._until_s) > self._max_inputs:
            self._until_s.popitem(last=False)

    def left_s(self, fingerprint: bytes) -> float:
        """Return for how many seconds this input is refused; 0 when it is welcome."""
        until_s = self._until_s.get(fingerprint)
        if until_s is None:
            return 0.0
        left_s = until_s - self._clock()
        if left_s <= 0:
            del self._until_s[fingerprint]
            return 0.0
        self._until_s.move_to_end(fingerprint)
        return left_s

    # ------------------------------------------------------------------------------------------------ suspects

    @property
    def has_suspects(self) -> bool:
        """Whether any input is to be tried alone when it comes again; asked for every request."""
        return bool(self._suspects)

    def found(self, fingerprints: Iterable[bytes], *, alone: bool) -> None:
        """Hear what a process was at when it died, of which nobody waits for the verdict, its client having left.

        One that was alone there has killed it. Others are suspect: the next who asks for one has it tried alone.
        """
        if self._for_s <= 0:
            return
        for one in fingerprints:
            if alone:
                self.add(one)
            else:
                self._suspects[one] = None
        while len(self._suspects) > self._max_inputs:
            self._suspects.popitem(last=False)

    def is_suspect(self, fingerprint: bytes) -> bool:
        return fingerprint in self._suspects

    def clear(self, fingerprint: bytes) -> None:
        """Suspect an input no more: a process has lived through it."""
        self._suspects.pop(fingerprint, None)


def fingerprint(model_id: str, message: Encode | Tokenize | Detokenize, index: int) -> bytes:
    """Return what tells the input at ``index`` of ``message`` from all others that the process may see."""
    seen = (model_id, *_seen(message, index))
    return hashlib.blake2b(repr(seen).encode(), digest_size=_DIGEST_BYTES).digest()


def _seen(message: Encode | Tokenize | Detokenize, index: int) -> tuple[object, ...]:
    match message:
        case Tokenize():
            return "tokenize", message.texts[index], message.add_special_tokens, message.prompt_name, message.prompt
        case Detokenize():
            return "detokenize", message.token_ids[index], message.skip_special_tokens
        case Encode():
            return (
                message.texts[index] if message.texts else message.token_ids[index],
                message.seconds[index] if message.seconds else None,
                message.prompt_name,
                message.prompt,
                message.max_tokens,
                message.overlong,
                message.outputs,
            )


def quarantined(label: str, left_s: float) -> QuarantinedError:
    """Return the error of an input that is not tried."""
    return QuarantinedError(
        f"{label.capitalize()} has ended the model's process more than once and is not tried for another "
        f"{left_s:.0f} s. Change or leave out that input.",
        param="input",
    )


def crashed_model(label: str) -> EncodeError:
    """Return the error of an input that has just been found guilty."""
    return EncodeError(
        f"The model's process died twice while it worked on {label}, the second time on nothing else. "
        "Change or leave out that input.",
        param="input",
        code="request_crashed_model",
    )


def keeps_dying() -> UnavailableError:
    """Return the error of innocents whose process dies again and again."""
    return UnavailableError(
        "The model's process keeps going away before it can answer. Try again in a while.", retry_after_s=_PAUSE_S
    )
