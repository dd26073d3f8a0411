"""text-embeddings-inference's JSON, to and from our types; pure.

Formats: ``router/src/http`` of https://github.com/huggingface/text-embeddings-inference (1.9).
Where a body has no ``model``, the path names it (``/models/ID/embed``), or the only model of the kind is meant.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping
from functools import partial
from typing import Final

import orjson

from emb_model_provider.errors import InvalidRequestError, RequestError
from emb_model_provider.messages.link import Detokenize, Output, Texts, Token, Tokenize, Tokens
from emb_model_provider.messages.status import EncoderInfo
from emb_model_provider.modelmap import Task
from router.dialects.fields import Fields, as_whole, check_count, wrong
from router.dialects.inputs import checked_id_lists, checked_ids
from router.dialects.jina import read_raw, strings
from router.dialects.options import MAX_INPUTS, MAX_TOKENIZED, Options, read_options, read_texts
from router.dialects.pairs import Listed, Pairs, read_pairs
from router.dialects.ranking import RANKS, RESULT_BYTES, best, plan_pairs, scores
from router.dialects.seam import (
    Answered,
    Build,
    DescribeCall,
    DetokenizeCall,
    Dialect,
    EncodeCall,
    Route,
    Steps,
    TokenizeCall,
    at_once,
)
from router.dialects.tei_info import render_info
from router.dialects.tei_predict import parse_predict, parse_root
from router.dialects.vectors import PLAIN, chunks, list_json, rows_json, to_json, token_vectors_json

_ROWS_A_STEP: Final = 16
_ERROR_TYPES: Final = {
    401: "Unauthorized", 404: "NotFound", 429: "Overloaded", 503: "Unhealthy", 500: "Backend", 504: "Backend",
}  # fmt: skip


# ------------------------------------------------------------------------------------------------ vectors


def parse_embed(fields: Fields) -> Steps:
    """Read the body of ``/embed``."""
    return (yield from _encode_call(fields, "dense", build_embed, ("embed",)))


def build_embed(answered: Answered) -> Iterator[bytes]:
    """Write a list of vectors."""
    yield b"["
    yield from rows_json(answered.result, PLAIN)
    yield b"]"


def parse_embed_sparse(fields: Fields) -> Steps:
    """Read the body of ``/embed_sparse``."""
    return (yield from _encode_call(fields, "sparse", build_embed_sparse, ("sparse", "embed")))


def build_embed_sparse(answered: Answered) -> Iterator[bytes]:
    """Write a list of index and value for each input."""
    before = b"["
    for chunk in chunks(answered.result):
        rows: list[object] = [
            [{"index": index, "value": value} for index, value in zip(indices.tolist(), values.tolist(), strict=True)]
            for indices, values in chunk.sparse()
        ]
        for row in chunk.errors():
            rows[row] = None
        yield before + orjson.dumps(rows)[1:-1]
        before = b","
    yield b"]"


def parse_embed_all(fields: Fields) -> Steps:
    """Read the body of ``/embed_all``."""
    return (yield from _encode_call(fields, "multi_vector", build_embed_all, ("multi_vector", "embed")))


def build_embed_all(answered: Answered) -> Iterator[bytes]:
    """Write each input's list of token vectors."""
    yield b"["
    yield from token_vectors_json(answered.result)
    yield b"]"


def _encode_call(fields: Fields, output: Output, build: Build, tasks: tuple[Task, ...]) -> Steps:
    options = read_options(fields)
    texts, token_ids, holes = yield from _inputs(fields, options)
    request = options.request(
        fields.string("model") or "", texts=texts, token_ids=token_ids, outputs=(output,), holes=holes
    )
    return EncodeCall(request, build, tasks=tasks, role=options.role, holes=holes)


def _inputs(
    fields: Fields, options: Options
) -> Generator[None, None, tuple[tuple[str, ...], tuple[tuple[int, ...], ...], Mapping[int, RequestError]]]:
    value = fields.values.get("inputs")
    if isinstance(value, list) and value and not (options.partial and any(isinstance(one, str) for one in value)):
        if type(as_whole(value[0])) is int:
            return (), (checked_ids("inputs", value, "inputs"),), {}
        if isinstance(value[0], list):
            check_count("inputs", value, MAX_INPUTS)
            return (), (yield from checked_id_lists("inputs", value)), {}
    texts, holes = read_texts(fields, "inputs", options)
    return texts, (), holes


_WRITERS: Final[dict[Output, Build]] = {
    "dense": build_embed,
    "sparse": build_embed_sparse,
    "multi_vector": build_embed_all,
}


# ------------------------------------------------------------------------------------------------- scores


def parse_rerank(fields: Fields) -> EncodeCall:
    """Read the body of ``/rerank``: a query and texts."""
    options = read_options(fields)
    texts = _list_of("texts", fields.values.get("texts"), "texts")
    pairs = read_pairs(Listed("query", [fields.text("query")]), texts, partial=options.partial)
    returned = strings(texts.values) if fields.flag("return_text") else ()
    build = partial(build_rerank, pairs, returned, raw=read_raw(fields))
    request = pairs.request(options, fields.string("model") or "")
    return EncodeCall(request, build, tasks=RANKS, role=options.role, plan=plan_pairs)


def build_rerank(pairs: Pairs, texts: tuple[str, ...], answered: Answered, *, raw: bool) -> Iterator[bytes]:
    """Write index and score, best first; ``texts`` are those to be sent back."""
    scored = yield from scores(answered, pairs, raw=raw, sigmoid=True)
    yield b""
    ranks = best(scored, None)
    results = [{"index": at, **({"text": texts[at]} if texts else {}), "score": score} for at, score in ranks]
    yield b"["
    yield from list_json(results, (RESULT_BYTES + (len(texts[at]) if texts else 0) for at, _ in ranks))
    yield b"]"


def parse_similarity(fields: Fields) -> EncodeCall:
    """Read the body of ``/similarity``: one sentence and those to compare it with."""
    inputs = fields.object("inputs")
    source = inputs.string("source_sentence")
    if not source:
        raise InvalidRequestError("'inputs.source_sentence' is required: a string.", param="inputs")
    sentences = _list_of("inputs.sentences", inputs.values.get("sentences"), "inputs")
    options = _parameters(fields)
    pairs = read_pairs(Listed("inputs.source_sentence", [source]), sentences, partial=options.partial)
    request = pairs.request(options, fields.string("model") or "")
    build = partial(build_similarity, pairs)
    return EncodeCall(request, build, tasks=("embed", "multi_vector"), role=options.role, plan=plan_pairs)


def _list_of(name: str, value: object, param: str) -> Listed:
    if not isinstance(value, list):
        raise wrong(name, "a list of strings", value, param=param)
    return Listed(name, value)


def build_similarity(pairs: Pairs, answered: Answered) -> Iterator[bytes]:
    """Write one number for each sentence, in the order given."""
    yield to_json((yield from scores(answered, pairs, sigmoid=True)))


def _parameters(fields: Fields) -> Options:
    """Return the options at the top and in ``parameters``, where Hugging Face's clients put them."""
    return read_options(Fields(fields.values | fields.object("parameters").values))


# ------------------------------------------------------------------------------------------------- tokens


def parse_tokenize(fields: Fields) -> TokenizeCall:
    """Read the body of ``/tokenize``."""
    adds = fields.flag("add_special_tokens")
    message = Tokenize(
        fields.texts("inputs", MAX_TOKENIZED),
        add_special_tokens=adds is not False,
        prompt_name=fields.string("prompt_name"),
        prompt=fields.string("prompt"),
    )
    return TokenizeCall(fields.string("model") or "", message, build_tokenize)


def build_tokenize(tokens: Tokens, _encoder: EncoderInfo) -> Iterator[bytes]:
    """Write each text's tokens."""
    before = b"["
    for begin in range(0, len(tokens.rows), _ROWS_A_STEP):
        rows = [[_token(token) for token in row] for row in tokens.rows[begin : begin + _ROWS_A_STEP]]
        yield before + orjson.dumps(rows)[1:-1]
        before = b","
    yield b"]"


def _token(token: Token) -> dict[str, object]:
    return {
        "id": token.id,
        "text": token.text,
        "special": token.special,
        "start": token.start,
        "stop": token.stop,
    }


def parse_decode(fields: Fields) -> Steps:
    """Read the body of ``/decode``."""
    value = fields.values.get("ids")
    if isinstance(value, list) and value and isinstance(value[0], list):
        check_count("ids", value, MAX_TOKENIZED)
        ids = yield from checked_id_lists("ids", value)
    else:
        ids = (checked_ids("ids", value, "ids"),)
    skips = fields.flag("skip_special_tokens")
    return DetokenizeCall(fields.string("model") or "", Detokenize(ids, skip_special_tokens=skips is not False), _texts)


def _texts(texts: Texts) -> bytes:
    return orjson.dumps(texts.texts)


# ------------------------------------------------------------------------------------------------- errors


def _status_of(error: RequestError) -> int:
    """Return the status TEI has for it: 422 for what a client did wrong, 424 for what the model could not do."""
    if isinstance(error, InvalidRequestError) or (error.status == 400 and error.kind == "invalid_request_error"):
        return 422
    return 424 if error.code == "encode_failed" else error.status


def render_error(error: RequestError) -> bytes:
    """Return TEI's error body."""
    return orjson.dumps({"error": error.message, "error_type": _ERROR_TYPES.get(error.status, "Validation")})


def _headers(answered: Answered) -> dict[str, str]:
    """Return TEI's times, in whole milliseconds; those of several slices are the longest of each."""
    timings = [part.timing for part in answered.result.parts]
    total_ms = str(math.ceil(answered.took_s * 1000))
    return {
        "x-compute-type": "gpu+optimized" if answered.encoder.device.startswith("cuda") else "cpu",
        "x-compute-time": total_ms,
        "x-compute-characters": str(answered.characters),
        "x-compute-tokens": str(answered.result.prompt_tokens),
        "x-total-time": total_ms,
        "x-tokenization-time": str(round(max(timing.tokenize_ms for timing in timings))),
        "x-queue-time": str(round(max(timing.queue_ms for timing in timings))),
        "x-inference-time": str(round(max(timing.encode_ms for timing in timings))),
    }


def _is_ours(fields: Fields) -> bool:
    """Tell TEI's body from that of another dialect on the same path: its lists are ``inputs`` and ``texts``."""
    return fields.has("inputs") or fields.has("texts")


TEI: Final = Dialect(
    name="tei",
    routes=(
        Route("/embed", parse_embed),
        Route("/pipeline/feature-extraction/{model:.+}", parse_embed),  # Hugging Face's own; langchain4j asks there
        Route("/embed_all", parse_embed_all),
        Route("/embed_sparse", parse_embed_sparse),
        Route("/rerank", at_once(parse_rerank), takes=_is_ours),
        Route("/predict", at_once(parse_predict)),
        Route("/similarity", at_once(parse_similarity)),
        Route("/tokenize", at_once(parse_tokenize), takes=_is_ours),
        Route("/decode", parse_decode),
        Route("/info", at_once(lambda fields: DescribeCall(fields.string("model") or "", render_info)), method="GET"),
        Route("/", lambda fields: parse_root(fields, parse_embed, parse_rerank, parse_similarity, _WRITERS)),
    ),
    render_error=render_error,
    status_of=_status_of,
    headers=_headers,
)
