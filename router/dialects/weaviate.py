"""What Weaviate asks of the containers it calls transformers-inference and reranker-transformers; pure.

Formats: ``usecases/modulecomponents/clients/transformers`` and ``modules/reranker-transformers/clients`` of
https://github.com/weaviate/weaviate. Both wait at their start until ``/.well-known/ready`` says so, and send no key.
``pooling_strategy`` is always sent and not heard: a model's files say how it pools. ``/rerank`` is known by its
``property``, which is always there and empty; an object that lacks the property to rank by has an empty document.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Final

import orjson

from emb_model_provider.errors import UnavailableError
from emb_model_provider.messages.status import ShardStatus
from router.dialects.fields import Fields
from router.dialects.jina import read_documents, strings
from router.dialects.ollama import render_error
from router.dialects.options import read_options, read_texts
from router.dialects.pairs import Listed, Pairs, read_pairs
from router.dialects.ranking import RANKS, RESULT_BYTES, plan_pairs, scores
from router.dialects.seam import Answered, Call, DescribeCall, Dialect, EncodeCall, ListCall, Route, at_once
from router.dialects.vectors import PLAIN, list_json, rows_json

_READY: Final = b'{"status":"ready"}'


def parse_vectors(fields: Fields) -> EncodeCall:
    """Read the body of ``/vectors``: one ``text``, or ``texts``."""
    config = fields.object("config")
    options = read_options(Fields(fields.values | config.values))
    text = None if fields.has("texts") else fields.text("text")
    texts, holes = read_texts(fields, "texts", options) if text is None else ((text,), {})
    request = options.request(fields.string("model") or "", texts=texts, holes=holes)
    role = config.string("task_type") or options.role
    return EncodeCall(request, partial(build_vectors, text), role=role, holes=holes)


def build_vectors(text: str | None, answered: Answered) -> Iterator[bytes]:
    """Write the vector of one text, or those of several; the container says ``dim``, Weaviate reads ``dims``."""
    yield b'{"vectors":[' if text is None else b'{"text":%b,"vector":' % orjson.dumps(text)
    yield from rows_json(answered.result, PLAIN)
    size = answered.result.parts[0].dimension
    yield (b"]" if text is None else b"") + b',"dim":%d,"dims":%d}' % (size, size)


def parse_rerank(fields: Fields) -> EncodeCall:
    """Read the body of ``/rerank``: a query and documents, of which an empty one is as good as blank."""
    options = read_options(fields)
    documents = read_documents(fields)
    filled = [" " if one == "" else one for one in documents]
    pairs = read_pairs(Listed("query", [fields.text("query")]), Listed("documents", filled), partial=options.partial)
    request = pairs.request(options, fields.string("model") or "")
    build = partial(build_rerank, pairs, strings(documents))
    return EncodeCall(request, build, tasks=RANKS, role=options.role, plan=plan_pairs)


def build_rerank(pairs: Pairs, documents: tuple[str, ...], answered: Answered) -> Iterator[bytes]:
    """Write each document with its score, in the order given: Weaviate goes by the place."""
    scored = yield from scores(answered, pairs)
    yield b'{"scores":['
    pairs_made = zip(documents, scored.tolist(), strict=True)
    made = [{"document": document, "score": score} for document, score in pairs_made]  # NaN is written as null
    yield from list_json(made, (RESULT_BYTES + len(document) for document in documents))
    yield b"]}"


def parse_ready(fields: Fields) -> Call:
    """Ask whether the model in the path is ready, or all are."""
    model = fields.string("model")
    return DescribeCall(model, lambda _status, _limits: _READY, waits=True) if model else ListCall(_all_ready)


def _all_ready(statuses: list[ShardStatus]) -> bytes:
    late = ", ".join(status.model_id for status in statuses if status.state != "ready")
    if late or not statuses:
        raise UnavailableError(f"Not ready: {late or 'there is no model'}.", retry_after_s=1.0)
    return _READY


def _meta(statuses: list[ShardStatus]) -> bytes:
    return orjson.dumps({"models": {status.model_id: status.name for status in statuses}})


WEAVIATE: Final = Dialect(
    name="weaviate",
    routes=(
        Route("/vectors", at_once(parse_vectors)),
        Route("/rerank", at_once(parse_rerank), takes=lambda fields: fields.has("property")),
        Route("/.well-known/ready", at_once(parse_ready), method="GET"),
        Route("/meta", at_once(lambda _fields: ListCall(_meta)), method="GET"),
    ),
    render_error=render_error,
)
