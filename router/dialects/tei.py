"""text-embeddings-inference's JSON, to and from our types; pure.

Formats: ``router/src/http`` of https://github.com/huggingface/text-embeddings-inference (1.9).
Where a body has no ``model``, the path names it (``/models/ID/embed``), or the only model of the kind is meant.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from functools import partial
from typing import Final

import orjson

from emb_model_provider.errors import InvalidRequestError, RequestError
from emb_model_provider.messages import Detokenize, EncoderInfo, ShardStatus, Texts, Token, Tokenize, Tokens
from router.dialects.fields import Fields, check_count, checked_texts, wrong
from router.dialects.inputs import checked_id_lists, checked_ids
from router.dialects.jina import read_raw
from router.dialects.options import MAX_INPUTS, MAX_TOKENIZED, Options, read_options, without_holes
from router.dialects.ranking import RANKS, best, pairs_request, plan_pairs, scores
from router.dialects.seam import (
    Answered,
    DescribeCall,
    DetokenizeCall,
    Dialect,
    EncodeCall,
    Route,
    Steps,
    TokenizeCall,
    at_once,
)
from router.dialects.tei_predict import parse_predict, parse_root
from router.dialects.vectors import PLAIN, chunks, rows_json, to_json, token_vectors_json
from router.dialects.version import our_version
from router.limits import RequestLimits

_ROWS_A_STEP: Final = 16
_ERROR_TYPES: Final = {
    401: "Unauthorized", 404: "NotFound", 429: "Overloaded", 503: "Unhealthy", 500: "Backend", 504: "Backend",
}  # fmt: skip


# ------------------------------------------------------------------------------------------------ vectors


def parse_embed(fields: Fields) -> Steps:
    """Read the body of ``/embed``."""
    options = read_options(fields)
    value = fields.values.get("inputs")
    if options.partial and isinstance(value, list) and any(isinstance(one, str) for one in value):
        texts, holes = without_holes(value, "inputs")
        request = options.request(fields.string("model") or "", texts=texts)
        return EncodeCall(request, build_embed, role=options.role, holes=holes)
    texts, token_ids = yield from _inputs(fields)
    request = options.request(fields.string("model") or "", texts=texts, token_ids=token_ids)
    return EncodeCall(request, build_embed, role=options.role)


def build_embed(answered: Answered) -> Iterator[bytes]:
    """Write a list of vectors."""
    yield b"["
    yield from rows_json(answered.result, PLAIN)
    yield b"]"


def parse_embed_sparse(fields: Fields) -> Steps:
    """Read the body of ``/embed_sparse``."""
    options = read_options(fields)
    texts, token_ids = yield from _inputs(fields)
    request = options.request(fields.string("model") or "", texts=texts, token_ids=token_ids, outputs=("sparse",))
    return EncodeCall(request, build_embed_sparse, tasks=("sparse", "embed"), role=options.role)


def build_embed_sparse(answered: Answered) -> Iterator[bytes]:
    """Write a list of index and value for each input."""
    before = b"["
    for chunk in chunks(answered.result):
        rows = [
            [{"index": index, "value": value} for index, value in zip(indices.tolist(), values.tolist(), strict=True)]
            for indices, values in chunk.sparse()
        ]
        yield before + orjson.dumps(rows)[1:-1]
        before = b","
    yield b"]"


def parse_embed_all(fields: Fields) -> Steps:
    """Read the body of ``/embed_all``."""
    options = read_options(fields)
    texts, token_ids = yield from _inputs(fields)
    request = options.request(fields.string("model") or "", texts=texts, token_ids=token_ids, outputs=("multi_vector",))
    return EncodeCall(request, build_embed_all, tasks=("multi_vector", "embed"), role=options.role)


def build_embed_all(answered: Answered) -> Iterator[bytes]:
    """Write each input's list of token vectors."""
    yield b"["
    yield from token_vectors_json(answered.result)
    yield b"]"


def _inputs(fields: Fields) -> Generator[None, None, tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]]:
    value = fields.values.get("inputs")
    if isinstance(value, list) and value:
        if type(value[0]) is int:
            return (), (checked_ids("inputs", value, "inputs"),)
        if isinstance(value[0], list):
            check_count("inputs", value, MAX_INPUTS)
            return (), (yield from checked_id_lists("inputs", value))
    return fields.texts("inputs", MAX_INPUTS), ()


# ------------------------------------------------------------------------------------------------- scores


def parse_rerank(fields: Fields) -> EncodeCall:
    """Read the body of ``/rerank``: a query and texts."""
    options = read_options(fields)
    query = fields.text("query")
    value = fields.values.get("texts")
    if not isinstance(value, list):
        raise wrong("texts", "a list of strings", value)
    texts = checked_texts("texts", value, MAX_INPUTS)
    build = partial(build_rerank, query, texts, raw=read_raw(fields), returns=bool(fields.flag("return_text")))
    request = pairs_request(options, fields.string("model") or "", (query,), texts)
    return EncodeCall(request, build, tasks=RANKS, role=options.role, plan=plan_pairs)


def build_rerank(
    query: str, texts: tuple[str, ...], answered: Answered, *, raw: bool, returns: bool
) -> Iterator[bytes]:
    """Write index and score, best first."""
    scored = yield from scores(answered, (query,), len(texts), raw=raw, sigmoid=True)
    yield to_json(
        [
            {"index": place.index, **({"text": texts[place.index]} if returns else {}), "score": place.score}
            for place in best(scored, None)
        ]
    )


def parse_similarity(fields: Fields) -> EncodeCall:
    """Read the body of ``/similarity``: one sentence and those to compare it with."""
    inputs = fields.object("inputs")
    source = inputs.string("source_sentence")
    if not source:
        raise InvalidRequestError("'inputs.source_sentence' is required: a string.", param="inputs")
    value = inputs.values.get("sentences")
    if not isinstance(value, list):
        raise wrong("inputs.sentences", "a list of strings", value, param="inputs")
    sentences = checked_texts("inputs.sentences", value, MAX_INPUTS)
    options = _parameters(fields)
    request = pairs_request(options, fields.string("model") or "", (source,), sentences)
    build = partial(build_similarity, source, len(sentences))
    return EncodeCall(request, build, tasks=("embed", "multi_vector"), role=options.role, plan=plan_pairs)


def build_similarity(source: str, count: int, answered: Answered) -> Iterator[bytes]:
    """Write one number for each sentence, in the order given."""
    yield to_json((yield from scores(answered, (source,), count, sigmoid=True)))


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


# -------------------------------------------------------------------------------------------------- about


def _info(status: ShardStatus) -> bytes:
    encoder = status.info.encoder if status.info else None
    return orjson.dumps(
        {
            "model_id": status.name,
            "model_sha": status.info.revision if status.info else None,
            "model_dtype": encoder.compute_dtype if encoder else None,
            "model_type": _model_type(encoder) if encoder else None,
            "served_model_name": status.model_id,
            "max_concurrent_requests": None,
            "max_input_length": encoder.max_tokens if encoder else None,
            "max_batch_tokens": encoder.slice_tokens if encoder else None,
            "max_batch_requests": None,
            "max_client_batch_size": RequestLimits().max_inputs,
            "auto_truncate": status.overlong != "error",
            "tokenization_workers": 1,
            "version": our_version(),
            "sha": None,
            "docker_label": None,
        }
    )


def _model_type(encoder: EncoderInfo) -> dict[str, object]:
    if encoder.task in ("rerank", "classify"):
        id2label = {str(index): label for index, label in enumerate(encoder.labels)}
        kind = "reranker" if encoder.task == "rerank" else "classifier"
        return {kind: {"id2label": id2label, "label2id": {label: int(index) for index, label in id2label.items()}}}
    pooling = {"sparse": "splade", "lasttoken": "last_token"}
    return {"embedding": {"pooling": pooling.get(encoder.task) or pooling.get(encoder.pooling, encoder.pooling)}}


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
        Route("/embed_all", parse_embed_all),
        Route("/embed_sparse", parse_embed_sparse),
        Route("/rerank", at_once(parse_rerank), takes=_is_ours),
        Route("/predict", at_once(parse_predict)),
        Route("/similarity", at_once(parse_similarity)),
        Route("/tokenize", at_once(parse_tokenize), takes=_is_ours),
        Route("/decode", parse_decode),
        Route("/info", at_once(lambda fields: DescribeCall(fields.string("model") or "", _info)), method="GET"),
        Route("/", lambda fields: parse_root(fields, parse_embed, parse_rerank, parse_similarity)),
    ),
    render_error=render_error,
    status_of=_status_of,
    headers=_headers,
)
