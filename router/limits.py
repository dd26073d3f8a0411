"""How large one request may be: pure. Checked by ``service`` before anything is sent."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from emb_model_provider.errors import InvalidRequestError
from emb_model_provider.messages.link import Tokenize
from router.admission import estimate_tokens
from router.requests import EncodeRequest

_SHORT_CHARS: Final = 4096


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Of one request; 0 is no limit. ``max_input_chars`` is of each text, prompt and pair included."""

    max_inputs: int = 2048
    max_input_chars: int = 1_000_000
    max_tokens: int = 2_000_000


def measure(request: EncodeRequest, limits: RequestLimits, longest_tokens: int | None) -> list[int]:
    """Return each input's tokens as estimated; raise ``InvalidRequestError`` for what is beyond a limit.

    No input costs more than ``longest_tokens``, to which the model cuts it.
    """
    texts = request.texts
    if len(texts) == 1 and len(texts[0]) < _SHORT_CHARS and not (request.seconds or request.prompt or request.sent):
        # Nearly always, and far below any limit that makes sense; one that an operator sets lower still is found below.
        tokens = estimate_tokens(texts[0])
        if not 0 < limits.max_input_chars < len(texts[0]) and not 0 < limits.max_tokens < tokens:
            return [tokens if longest_tokens is None else min(tokens, longest_tokens)]
    return _measure_all(request, limits, longest_tokens)


def measure_spelled(message: Tokenize, limits: RequestLimits) -> list[int]:
    """Do the same for texts of which only the tokens are wanted; the model's process bounds their true number."""
    request = EncodeRequest("", message.texts, prompt=message.prompt)
    return measure(request, replace(limits, max_inputs=0, max_tokens=0), None)


def _measure_all(request: EncodeRequest, limits: RequestLimits, longest_tokens: int | None) -> list[int]:
    count = request.sent or request.count
    if 0 < limits.max_inputs < count:
        raise InvalidRequestError(
            f"The request has {count} inputs; at most {limits.max_inputs} are taken at once. Split it, "
            "or raise EMB_PROVIDER_MAX_INPUTS on the server.",
            param="input",
        )
    tokens = _of_texts(request, limits) if request.texts else [len(ids) for ids in request.token_ids]
    if longest_tokens is not None:
        tokens = [min(one, longest_tokens) for one in tokens]
    if 0 < limits.max_tokens < sum(tokens):
        raise InvalidRequestError(
            f"Requested about {sum(tokens)} tokens, max {limits.max_tokens} tokens per request. Split it, or raise "
            "EMB_PROVIDER_MAX_REQUEST_TOKENS on the server.",
            param="input",
            code="max_tokens_per_request",
        )
    return tokens


def _of_texts(request: EncodeRequest, limits: RequestLimits) -> list[int]:
    if not request.seconds and not request.prompt:
        if 0 < limits.max_input_chars < max(map(len, request.texts)):
            _refuse_longest([len(text) for text in request.texts], request, limits)
        return [estimate_tokens(text) for text in request.texts]
    around = len(request.prompt or "")
    seconds = request.seconds or ("",) * len(request.texts)
    pairs = list(zip(request.texts, seconds, strict=True))
    chars = [around + len(first) + len(second) for first, second in pairs]
    if 0 < limits.max_input_chars < max(chars):
        _refuse_longest(chars, request, limits)
    # One query stands before each of many documents: it is measured once.
    known = {text: estimate_tokens(text) for text in {*request.texts, request.prompt or ""}}
    return [known[request.prompt or ""] + known[first] + estimate_tokens(second) for first, second in pairs]


def _refuse_longest(chars: list[int], request: EncodeRequest, limits: RequestLimits) -> None:
    index = chars.index(max(chars))
    label = request.label(index)
    raise InvalidRequestError(
        f"{label.capitalize()} has {chars[index]} characters; at most {limits.max_input_chars} are taken. Shorten it, "
        "or raise EMB_PROVIDER_MAX_INPUT_CHARS on the server.",
        param="input",
    )
