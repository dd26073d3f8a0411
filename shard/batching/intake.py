"""From a request to the tokens that the model will read, or to the error that the client gets. Called by ``engine``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from emb_model_provider.errors import EncodeError, InvalidRequestError, RequestError
from emb_model_provider.logs import EventLog
from emb_model_provider.messages.link import (
    Detokenize,
    Encode,
    Failed,
    InputError,
    Output,
    Texts,
    Token,
    Tokenize,
    Tokens,
)
from emb_model_provider.messages.status import EncoderInfo
from shard.batching.failures import as_failed, as_input_error
from shard.encoder import CutSide, Encoder, Reading, Tokenized
from shard.encoders.in_parts import cut_evenly

log = EventLog("shard.batching.intake")

_SMALL_INPUTS: Final = 8
#: Characters or token ids; some 0.1 ms.
_SMALL_UNITS: Final = 512
#: Tokens of one ``Tokens`` message; every one of them is some 30 bytes on the way to the router, and more in it.
_MOST_SPELLED_TOKENS: Final = 500_000
_SPELLED_AT_ONCE_CHARS: Final = 65_536
_OUTPUT_NAMES: Final[dict[Output, str]] = {
    "dense": "dense vectors",
    "sparse": "sparse vectors",
    "multi_vector": "token vectors (multi_vector)",
    "scores": "scores of a classification head",
}
Answer = TypeVar("Answer")


def tokenize(encoder: Encoder, request: Encode) -> Sequence[Tokenized | InputError] | Failed:
    """Return each input's tokens, or why the request cannot be served.

    In a ``partial`` request an input that cannot be served has its own error instead.
    """

    def read() -> Sequence[Tokenized | InputError]:
        reading = read_options(encoder, request)
        if request.partial:
            return _read_partially(encoder, request, reading)
        return _read(encoder, request, reading)

    return _guarded(read, request)


def spell(encoder: Encoder, request: Tokenize | Detokenize) -> Tokens | Texts | Failed:
    """Return the tokens of texts, or the texts of tokens."""

    def read() -> Tokens | Texts:
        if isinstance(request, Detokenize):
            return Texts(tuple(encoder.detokenize(request.token_ids, skip_special_tokens=request.skip_special_tokens)))
        prompt = request.prompt
        if prompt is None and request.prompt_name is not None:
            prompt = encoder.resolve_prompt(request.prompt_name)
        return Tokens(tuple(_spell(encoder, request, prompt)))

    return _guarded(read, request)


def _spell(encoder: Encoder, request: Tokenize, prompt: str | None) -> list[tuple[Token, ...]]:
    # Step by step: tokens take a hundred times the memory of their text until it is known that they are too many.
    chars = [len(prompt or "") + len(text) for text in request.texts]
    rows: list[tuple[Token, ...]] = []
    found = 0
    for step in cut_evenly(chars, len(chars), _SPELLED_AT_ONCE_CHARS):
        some = encoder.spell(request.texts[step], prompt=prompt, add_special_tokens=request.add_special_tokens)
        found += sum(map(len, some))
        if found > _MOST_SPELLED_TOKENS:
            raise InvalidRequestError(
                f"These texts have more than {_MOST_SPELLED_TOKENS} tokens, too many for one answer; "
                "send them in several requests.",
                param="input",
            )
        rows += some
    return rows


def is_small(request: Encode) -> bool:
    """Tell whether a request is tokenised sooner than handed to another thread."""
    inputs = request.texts or request.token_ids
    if len(inputs) > _SMALL_INPUTS:
        return False
    around = len(request.prompt or "") * len(inputs) + sum(map(len, request.seconds))
    return sum(map(len, inputs)) + around <= _SMALL_UNITS


def read_options(encoder: Encoder, request: Encode) -> Reading:
    """Return how the inputs of a request are to be read.

    Raises ``InvalidRequestError`` for what this model does not do, which says what it does.
    """
    info = encoder.info
    _check_outputs(info, request)
    if request.seconds and info.task not in ("rerank", "classify"):
        raise InvalidRequestError("This model takes single texts, not pairs.", param="input")
    if request.seconds and len(request.seconds) != len(request.texts):
        raise InvalidRequestError("Every pair needs a first and a second text.", param="input")
    prompt = request.prompt
    if prompt is None:
        prompt = encoder.resolve_prompt(request.prompt_name)
    side: CutSide | None = request.overlong if request.overlong in ("start", "end") else None
    return Reading(
        prompt=prompt,
        outputs=tuple(output for output in info.outputs if output in request.outputs),
        raw=request.normalize is False and info.normalized and "dense" in request.outputs,
        cut_side=side,
        max_tokens=request.max_tokens,
        prompt_name=request.prompt_name,
    )


def _check_outputs(info: EncoderInfo, request: Encode) -> None:
    missing = [output for output in request.outputs if output not in info.outputs]
    if missing or not request.outputs:
        has = " and ".join(_OUTPUT_NAMES[output] for output in info.outputs)
        wanted = " or ".join(_OUTPUT_NAMES[output] for output in missing) or "no output at all"
        raise InvalidRequestError(
            f"This model gives {has}; it does not give {wanted}. Its task is {info.task!r}.", code="unsupported_output"
        )
    if request.dimensions is None:
        return
    if "dense" not in request.outputs:
        raise InvalidRequestError("'dimensions' cuts dense vectors, and none were asked for.", param="dimensions")
    if not 0 < request.dimensions <= info.dimension:
        raise InvalidRequestError(f"This model has {info.dimension} dimensions; ask for 1 to that.", param="dimensions")


def _guarded(work: Callable[[], Answer], request: Encode | Tokenize | Detokenize) -> Answer | Failed:
    try:
        return work()
    except RequestError as error:
        return as_failed(error)
    except BaseException:  # a tokenizer may raise anything, a panic of Rust is no Exception; only this request fails
        log.exception("tokenize_failed", request_id=request.request_id or None)
        return as_failed(EncodeError("the model's tokenizer failed on this input"))


def _read(encoder: Encoder, request: Encode, reading: Reading) -> list[Tokenized]:
    if request.token_ids:
        inputs = [
            _accept_ids(encoder, ids, reading, request.label(index)) for index, ids in enumerate(request.token_ids)
        ]
    else:
        inputs = encoder.tokenize(request.texts, reading, request.seconds)
    if request.overlong == "error":
        _refuse_overlong(inputs, request)
    return inputs


def _read_partially(encoder: Encoder, request: Encode, reading: Reading) -> list[Tokenized | InputError]:
    """Read all inputs at once, and where that fails each by itself."""
    whole = _guarded(lambda: _read(encoder, request, reading), request)
    if not isinstance(whole, Failed):
        return list(whole)
    inputs: list[Tokenized | InputError] = []
    for index in range(request.count):
        only = _only(request, index)
        one = _guarded(lambda only=only: _read(encoder, only, reading), only)  # type: ignore[misc]
        inputs.append(as_input_error(one, index) if isinstance(one, Failed) else one[0])
    return inputs


def _only(request: Encode, index: int) -> Encode:
    return Encode(
        texts=request.texts[index : index + 1],
        token_ids=request.token_ids[index : index + 1],
        seconds=request.seconds[index : index + 1],
        overlong=request.overlong,
        first_index=request.first_index + index,
        labels=request.labels[index : index + 1],
        request_id=request.request_id,
    )


def _accept_ids(encoder: Encoder, ids: Sequence[int], reading: Reading, label: str) -> Tokenized:
    try:
        return encoder.accept_ids(ids, reading)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"{label.capitalize()}: {error.message}", param="input") from None


def _refuse_overlong(inputs: Sequence[Tokenized], request: Encode) -> None:
    for index, one in enumerate(inputs):
        if one.truncated:
            at_least = "" if one.counted else "more than "
            # What is left of it is as long as may be: queries and documents can have lengths of their own.
            raise InvalidRequestError(
                f"This model's maximum context length is {len(one.ids)} tokens, however {request.label(index)} has "
                f"{at_least}{one.original_tokens} tokens. Please reduce the length of the input.",
                param="input",
                code="context_length_exceeded",
            )
