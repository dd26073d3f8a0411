"""From a request to the tokens that the model will read, or to the error that the client gets. Called by ``engine``."""

from __future__ import annotations

from collections.abc import Sequence

from emb_model_provider.errors import EncodeError, InvalidRequestError, RequestError
from emb_model_provider.logs import EventLog
from emb_model_provider.messages import Encode, Failed
from shard.encoder import Encoder, Tokenized

log = EventLog("shard.intake")


def tokenize(encoder: Encoder, request: Encode) -> list[Tokenized] | Failed:
    """Return each input's tokens, or why the request cannot be served."""
    try:
        inputs = _tokenize(encoder, request)
        if request.overlong == "error":
            _refuse_overlong(inputs, encoder.info.max_tokens, request.first_index)
    except RequestError as error:
        return as_failed(error)
    except Exception:  # a tokenizer may raise anything; only this request fails
        log.exception("tokenize_failed")
        return as_failed(EncodeError("the model's tokenizer failed on this input"))
    return inputs


def as_failed(error: RequestError) -> Failed:
    """Return an error as it crosses the link."""
    return Failed(error.status, error.kind, error.code, error.message, error.param)


def _tokenize(encoder: Encoder, request: Encode) -> list[Tokenized]:
    if request.token_ids:
        return [_accept_ids(encoder, ids, index) for index, ids in enumerate(request.token_ids, request.first_index)]
    return encoder.tokenize(request.texts, prompt=encoder.resolve_prompt(request.prompt_name))


def _accept_ids(encoder: Encoder, ids: Sequence[int], index: int) -> Tokenized:
    try:
        return encoder.accept_ids(ids)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"Input {index}: {error.message}", param="input") from None


def _refuse_overlong(inputs: Sequence[Tokenized], max_tokens: int, first_index: int) -> None:
    for index, one in enumerate(inputs, first_index):
        if one.truncated:
            raise InvalidRequestError(
                f"This model's maximum context length is {max_tokens} tokens, however input {index} has "
                f"{one.original_tokens} tokens. Please reduce the length of the input.",
                param="input",
                code="context_length_exceeded",
            )
