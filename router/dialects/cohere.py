"""Cohere's JSON, to and from our types; pure. Formats: https://docs.cohere.com/reference/embed, …/rerank, …/tokenize.

The Python client (7.3) was read for what it needs of an answer: ``response_type`` chooses the class of a v1 answer,
``embeddings`` by type are lists or, for ``base64``, strings, and an error is whatever JSON has the status.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Final

import orjson

from emb_model_provider.errors import InvalidRequestError, RequestError
from emb_model_provider.messages.link import Token, Tokenize, Tokens
from emb_model_provider.messages.status import EncoderInfo
from emb_model_provider.value import Value
from router.dialects.fields import Fields, wrong
from router.dialects.jina import Ranking, parse_rerank, ranking_facts, results_json
from router.dialects.openai import FORMS, read_words, with_unit_length
from router.dialects.options import read_options, read_texts
from router.dialects.seam import Answered, Dialect, EncodeCall, Route, TokenizeCall, at_once
from router.dialects.vectors import PLAIN, VectorForm, details_json, errors_json, list_json, rows_json, to_json


class Embedding(Value, frozen=True):
    """How an answer is written. ``forms`` is empty where vectors stand in a plain list, as in v1 without types."""

    version: str
    texts: tuple[str | None, ...]
    forms: tuple[tuple[str, VectorForm], ...]
    details: bool


def parse_embed(fields: Fields, version: str) -> EncodeCall:
    """Read the body of ``/v2/embed`` or ``/v1/embed``."""
    options = read_options(fields)
    if fields.values.get("images"):
        raise InvalidRequestError("'images' is not supported: send texts in 'texts'.", param="images")
    name = fields.first_of("texts", "inputs")
    value = fields.values.get(name)
    if name == "inputs" and isinstance(value, list):
        value = [_text_of(one) for one in value]
    texts, holes = read_texts(Fields({name: value}), name, options)
    echoed = tuple(one if isinstance(one, str) else None for one in value) if isinstance(value, list) else texts
    forms = _forms(fields, version)
    request = options.request(fields.string("model") or "", texts=texts, holes=holes)
    return EncodeCall(
        with_unit_length(request, [form for _, form in forms]),
        partial(build_embed, Embedding(version, echoed, forms, options.details)),
        role=options.role,
        holes=holes,
    )


def _text_of(one: object) -> object:
    """Return the text that is the only part of one of ``inputs``; anything else as it is, to be refused so."""
    match one:
        case {"content": [{"type": "text", "text": str() as text}]}:
            return text
    return one


def _forms(fields: Fields, version: str) -> tuple[tuple[str, VectorForm], ...]:
    value = fields.values.get("embedding_types")
    if value is None:
        return () if version == "1" else (("float", PLAIN),)
    if not isinstance(value, list):
        raise wrong("embedding_types", f"a list of {list(FORMS)}", value)
    return tuple((word, FORMS[word]) for word in read_words("embedding_types", value, FORMS))


def build_embed(embedding: Embedding, answered: Answered) -> Iterator[bytes]:
    """Write the vectors of all texts, one type after another."""
    result = answered.result
    by_type = bool(embedding.forms)
    yield b'{"id":%b,"response_type":%b,"embeddings":' % (
        orjson.dumps(answered.request_id),
        b'"embeddings_by_type"' if by_type else b'"embeddings_floats"',
    )
    if not by_type:
        yield b"["
        yield from rows_json(result, PLAIN)
        yield b"]"
    else:
        before = b"{"
        for name, form in embedding.forms:
            yield before + orjson.dumps(name) + b":["
            yield from rows_json(result, form)
            yield b"]"
            before = b","
        yield b"}"
    units = {"input_tokens": result.prompt_tokens}
    rest: dict[str, object] = {
        "meta": {"api_version": {"version": embedding.version}, "billed_units": units},
        "model": result.model_id,
    }
    if embedding.details:
        rest["usage"] = {"prompt_tokens": result.prompt_tokens, "details": details_json(result)}
    if errors := errors_json(result):
        rest["errors"] = errors
    if result.fingerprint:
        rest["system_fingerprint"] = result.fingerprint
    yield b',"texts":['
    yield from list_json(embedding.texts, (len(text or "") for text in embedding.texts))
    yield b"]," + to_json(rest)[1:]


def parse_rerank_v2(fields: Fields) -> EncodeCall:
    """Read the body of ``/v2/rerank``, whose answer has no documents unless they are asked for."""
    call = parse_rerank(fields, returns_documents=False)
    ranking = call.build.args[0]  # type: ignore[attr-defined]
    return call.replace(build=partial(build_rerank, ranking))


def build_rerank(ranking: Ranking, answered: Answered) -> Iterator[bytes]:
    """Write the best documents' indexes and scores."""
    yield to_json({"id": answered.request_id, "model": answered.result.model_id})[:-1] + b',"results":['
    yield from results_json(ranking, answered)
    yield b"]," + to_json(ranking_facts(ranking, answered, "2"))[1:]


def parse_tokenize(fields: Fields) -> TokenizeCall:
    """Read the body of ``/v1/tokenize``: one text, whose tokens are wanted without special ones."""
    text = fields.text("text")
    message = Tokenize((text,), add_special_tokens=False)
    return TokenizeCall(fields.string("model") or "", message, partial(build_tokenize, text))


def build_tokenize(text: str, tokens: Tokens, _encoder: EncoderInfo) -> Iterator[bytes]:
    """Write token ids, and beside each its part of the text: clients put the text together again from these (Dify)."""
    row = tokens.rows[0]
    yield b'{"tokens":%b,"token_strings":[' % orjson.dumps([token.id for token in row])
    strings = _cut_at_tokens(text, row)
    yield from list_json(strings, map(len, strings))
    yield b'],"meta":{"api_version":{"version":"1"}}}'


def _cut_at_tokens(text: str, row: Sequence[Token]) -> list[str]:
    """Return a string for each token, which joined are the text.

    What stands between two tokens goes to the second, the rest to the last. Of several tokens of one character the
    first has it.
    """
    strings: list[str] = []
    end = 0
    for token in row:
        begin, end = end, max(end, token.stop or 0)
        strings.append(text[begin:end])
    if strings:
        strings[-1] += text[end:]
    return strings


def render_error(error: RequestError) -> bytes:
    """Return Cohere's error body, and beside it what ours can say more."""
    return orjson.dumps({"message": error.message, "code": error.code, "param": error.param})


COHERE: Final = Dialect(
    name="cohere",
    routes=(
        Route("/v2/embed", at_once(lambda fields: parse_embed(fields, "2"))),
        Route("/v1/embed", at_once(lambda fields: parse_embed(fields, "1"))),
        Route("/v2/rerank", at_once(parse_rerank_v2)),
        Route("/v1/tokenize", at_once(parse_tokenize)),
    ),
    render_error=render_error,
    errors_below=("/v2/",),
)
