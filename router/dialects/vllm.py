"""vLLM's own routes beside OpenAI's, to and from our types; pure. Its ``/rerank`` is in ``jina``.

Formats: ``vllm/entrypoints/pooling`` and ``vllm/entrypoints/serve/tokenize`` of https://github.com/vllm-project/vllm.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Final

import numpy as np
import orjson

from emb_model_provider.errors import InvalidRequestError
from emb_model_provider.messages.link import Detokenize, Texts, Tokenize, Tokens
from emb_model_provider.messages.status import EncoderInfo
from router.dialects.fields import Fields
from router.dialects.inputs import checked_ids
from router.dialects.jina import read_raw
from router.dialects.openai import render_error
from router.dialects.options import read_options, read_texts
from router.dialects.pairs import Listed, Pairs, read_pairs
from router.dialects.ranking import RANKS, label_of, pair_details, pair_errors, plan_pairs, probabilities, scores
from router.dialects.seam import Answered, DetokenizeCall, Dialect, EncodeCall, Route, TokenizeCall, at_once
from router.dialects.vectors import all_rows, details_json, errors_json, to_json

_FIRST: Final = ("text_1", "queries", "data_1")
_SECOND: Final = ("text_2", "documents", "items", "data_2")


def parse_score(fields: Fields) -> EncodeCall:
    """Read the body of ``/score``: one text and several, or as many of each."""
    options = read_options(fields)
    pairs = read_pairs(_listed(fields, *_FIRST), _listed(fields, *_SECOND), partial=options.partial)
    request = pairs.request(options, fields.string("model") or "")
    build = partial(build_score, pairs, raw=read_raw(fields), details=options.details)
    return EncodeCall(request, build, tasks=RANKS, role=options.role, plan=plan_pairs)


def _listed(fields: Fields, *names: str) -> Listed:
    name = fields.first_of(*names)
    value = fields.values.get(name)
    return Listed(name, value if isinstance(value, list) else list(fields.texts(name, 1)))


def build_score(pairs: Pairs, answered: Answered, *, raw: bool, details: bool) -> Iterator[bytes]:
    """Write one score for each pair, in the order given."""
    scored = yield from scores(answered, pairs, raw=raw)
    data: list[dict[str, object]] = [
        {"index": index, "object": "score", "score": None if np.isnan(one) else float(one)}
        for index, one in enumerate(scored)
    ]
    for index, error in pair_errors(answered, pairs):
        data[index]["error"] = error
    read = pair_details(answered, pairs) if details else None
    yield to_json(_body(answered, data, read))


def parse_classify(fields: Fields) -> EncodeCall:
    """Read the body of ``/classify``."""
    options = read_options(fields)
    texts, holes = read_texts(fields, "input", options)
    request = options.request(fields.string("model") or "", texts=texts, outputs=("scores",), holes=holes)
    build = partial(build_classify, raw=read_raw(fields), details=options.details)
    return EncodeCall(request, build, tasks=("classify", "rerank"), role=options.role, holes=holes)


def build_classify(answered: Answered, *, raw: bool, details: bool) -> Iterator[bytes]:
    """Write each input's most likely label and the numbers of all."""
    rows = probabilities(all_rows(answered.result), answered.encoder, raw=raw)
    data: list[dict[str, object]] = [
        {
            "index": index,
            "label": label_of(answered.encoder, int(row.argmax())),
            "probs": row,
            "num_classes": len(row),
        }
        for index, row in enumerate(rows)
    ]
    for error in errors_json(answered.result):
        index = error["index"]
        assert isinstance(index, int)
        data[index] |= {"label": None, "probs": [], "error": error}
    yield to_json(_body(answered, data, details_json(answered.result) if details else None))


def _body(answered: Answered, data: object, details: object) -> dict[str, object]:
    result = answered.result
    usage: dict[str, object] = {"prompt_tokens": result.prompt_tokens, "total_tokens": result.prompt_tokens}
    if details is not None:
        usage["details"] = details
    return {
        "id": answered.request_id,
        "object": "list",
        "created": int(time.time()),
        "model": result.model_id,
        "data": data,
        "usage": usage,
        "system_fingerprint": result.fingerprint,
    }


def parse_tokenize(fields: Fields) -> TokenizeCall:
    """Read the body of ``/tokenize``: one text in ``prompt``."""
    if fields.has("messages"):
        raise InvalidRequestError("'messages' is for models that chat: send the text in 'prompt'.", param="messages")
    adds = fields.flag("add_special_tokens")
    message = Tokenize((fields.text("prompt"),), add_special_tokens=adds is not False)
    build = partial(build_tokenize, shows_text=bool(fields.flag("return_token_strs")))
    return TokenizeCall(fields.string("model") or "", message, build)


def build_tokenize(tokens: Tokens, encoder: EncoderInfo, *, shows_text: bool) -> Iterator[bytes]:
    """Write token ids, and their texts where wanted."""
    row = tokens.rows[0]
    yield orjson.dumps(
        {
            "count": len(row),
            "max_model_len": encoder.max_tokens,
            "tokens": [token.id for token in row],
            "token_strs": [token.text for token in row] if shows_text else None,
        }
    )


def parse_detokenize(fields: Fields) -> DetokenizeCall:
    """Read the body of ``/detokenize``."""
    ids = checked_ids("tokens", fields.values.get("tokens"), "tokens")
    return DetokenizeCall(fields.string("model") or "", Detokenize((ids,), skip_special_tokens=False), _prompt)


def _prompt(texts: Texts) -> bytes:
    return orjson.dumps({"prompt": texts.texts[0]})


VLLM: Final = Dialect(
    name="vllm",
    routes=(
        Route("/score", at_once(parse_score)),
        Route("/v1/score", at_once(parse_score)),
        Route("/classify", at_once(parse_classify)),
        Route("/tokenize", at_once(parse_tokenize)),
        Route("/detokenize", at_once(parse_detokenize)),
    ),
    render_error=render_error,
)
