"""Jina's ``/v1/rerank``, which vLLM and Cohere's first version share; pure.

The three differ in what they add to the answer, and read by name: one answer serves all of them. The client of infinity
reads it too, where ``object`` is ``rerank``, and Voyage's, for which the results stand in ``data`` as well. Those of
Xinference and SiliconFlow look for their count of tokens in ``meta``; @ai-sdk/togetherai wants ``completion_tokens`` in
``usage``. ``instruction`` is SiliconFlow's; LiteLLM sends it as a client of vLLM's. Jina's ``/v1/embeddings`` is
OpenAI's with more fields, see ``openai``. Formats: https://api.jina.ai/openapi.json,
https://docs.cohere.com/v1/reference/rerank and vLLM's ``entrypoints/pooling/scoring/protocol.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Final

import orjson

from emb_model_provider.errors import InvalidRequestError, RequestError
from emb_model_provider.messages.status import EncoderInfo
from emb_model_provider.value import Value
from router.dialects.fields import Fields, wrong
from router.dialects.inputs import text_in
from router.dialects.options import read_options
from router.dialects.pairs import Listed, Pairs, read_pairs
from router.dialects.ranking import RANKS, RESULT_BYTES, best, pair_details, pair_errors, plan_pairs, scores
from router.dialects.seam import Answered, Dialect, EncodeCall, Route, at_once
from router.dialects.vectors import list_json, to_json
from router.requests import EncodeRequest

#: A hundred documents are what Cohere counts as one search.
_DOCUMENTS_A_SEARCH: Final = 100


class Ranking(Value, frozen=True):
    """What is ranked and how it is answered. ``documents`` are those to be sent back, empty where none are."""

    pairs: Pairs
    top_n: int | None
    raw: bool
    documents: tuple[str, ...] = ()
    details: bool = False
    object: str = "list"
    is_for_voyage: bool = False


def parse_rerank(fields: Fields, *, returns_documents: bool = True) -> EncodeCall:
    """Read a query and its documents; ``returns_documents`` is what the dialect does unless told."""
    options = read_options(fields)
    query, documents = fields.text("query"), read_documents(fields)
    pairs = read_pairs(Listed("query", [query]), Listed("documents", documents), partial=options.partial)
    asked = _wants_documents(fields)
    is_for_voyage = fields.has("truncation")  # its client always sends it, and reads ``data``
    ranking = Ranking(
        pairs=pairs,
        top_n=fields.whole(fields.first_of("top_n", "top_k"), 0) or None,  # 0 is vLLM's word for all
        raw=read_raw(fields),
        documents=strings(documents) if (returns_documents and not is_for_voyage if asked is None else asked) else (),
        details=options.details,
        object="rerank" if fields.has("raw_scores") else "list",  # infinity's client always sends it and checks this
        is_for_voyage=is_for_voyage,
    )
    request = pairs.request(options, fields.string("model") or "")
    plan = partial(_plan_instructed, fields.string("instruction"))
    return EncodeCall(request, partial(build_rerank, ranking), tasks=RANKS, role=options.role, plan=plan)


def _plan_instructed(instruction: str | None, request: EncodeRequest, encoder: EncoderInfo) -> EncodeRequest:
    """Return what to ask the model: ``instruction`` is for rerankers, which leave it out unless they take one."""
    planned = plan_pairs(request, encoder)
    if instruction is None or not planned.seconds or planned.prompt is not None or planned.prompt_name is not None:
        return planned
    return planned.replace(prompt=instruction)


def _wants_documents(fields: Fields) -> bool | None:
    name = fields.first_of("return_documents", "return_text")
    if isinstance(fields.values.get(name), str):  # RAGFlow sends the word, which Xinference takes
        return fields.choice(name, {"true": True, "false": False})
    return fields.flag(name)


def read_raw(fields: Fields) -> bool:
    """Tell whether scores are wanted as the model makes them, before its activation."""
    if (use := fields.flag(fields.first_of("use_activation", "activation"))) is not None:
        return not use
    return bool(fields.flag("raw_scores"))


def read_documents(fields: Fields, name: str = "documents", items: str = "strings") -> list[object]:
    """Return the documents under ``name``: strings, or objects with a ``text``; ``items`` is what errors ask for."""
    value = fields.values.get(name)
    if value is None:
        raise InvalidRequestError(f"'{name}' is required: a list of {items}.", param=name)
    if not isinstance(value, list):
        raise wrong(name, f"a list of {items}", value)
    return [text_in(one) for one in value]


def strings(documents: list[object]) -> tuple[str, ...]:
    """Return the documents to be sent back; one that is no string has no score and is never asked for."""
    return tuple(one if isinstance(one, str) else "" for one in documents)


def results_json(ranking: Ranking, answered: Answered) -> Iterator[bytes]:
    """Yield the results with commas between them: best first, equal ones as they were given."""
    scored = yield from scores(answered, ranking.pairs, raw=ranking.raw)
    yield b""
    results: list[dict[str, object]] = []
    sizes: list[int] = []
    text = ""
    for index, score in best(scored, ranking.top_n):
        result: dict[str, object] = {"index": index, "relevance_score": score}
        if ranking.documents:
            result["document"] = {"text": (text := ranking.documents[index])}
        results.append(result)
        sizes.append(RESULT_BYTES + len(text))
    yield from list_json(results, sizes)


def build_rerank(ranking: Ranking, answered: Answered) -> Iterator[bytes]:
    """Write what clients of Jina, vLLM and Cohere's first version read."""
    result = answered.result
    head = {"id": answered.request_id, "object": ranking.object, "model": result.model_id}
    yield to_json(head)[:-1] + b',"results":['
    pieces: list[bytes] = []
    for piece in results_json(ranking, answered):
        pieces.append(piece)
        yield piece
    if ranking.is_for_voyage:
        yield b'],"data":['
        yield from pieces
    count = result.prompt_tokens
    usage: dict[str, object] = {"prompt_tokens": count, "completion_tokens": 0, "total_tokens": count}
    if ranking.details:
        usage["details"] = pair_details(answered, ranking.pairs)
    tokens = {"input_tokens": count, "output_tokens": 0}
    yield b"]," + to_json({"usage": usage, **ranking_facts(ranking, answered, "1", tokens=tokens)})[1:]


def ranking_facts(ranking: Ranking, answered: Answered, version: str, **of_meta: object) -> dict[str, object]:
    """Return what stands behind the results in the answers of all of them."""
    units = {"search_units": searches(ranking.pairs.count)}
    facts: dict[str, object] = {"meta": {"api_version": {"version": version}, "billed_units": units, **of_meta}}
    if errors := pair_errors(answered, ranking.pairs):
        facts["errors"] = [{"index": index, **error} for index, error in errors]
    if answered.result.fingerprint:
        facts["system_fingerprint"] = answered.result.fingerprint
    return facts


def searches(documents: int) -> int:
    """Return how many of Cohere's units this many documents are."""
    return -(-documents // _DOCUMENTS_A_SEARCH)


def render_error(error: RequestError) -> bytes:
    """Return an error that clients of all three read: vLLM's object, Cohere's ``message``, Jina's ``detail``."""
    inner = {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}
    return orjson.dumps({"error": inner, "message": error.message, "detail": error.message})


JINA: Final = Dialect(
    name="jina",
    routes=(
        Route("/v1/rerank", at_once(parse_rerank)),
        Route("/rerank", at_once(parse_rerank), takes=lambda fields: not fields.has("texts")),
    ),
    render_error=render_error,
)
