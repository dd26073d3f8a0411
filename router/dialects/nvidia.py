"""NVIDIA NIM's ``/v1/ranking``, to and from our types; pure. Its ``/v1/embeddings`` is OpenAI's with our own fields.

Format: https://docs.nvidia.com/nim/nemo-retriever/text-reranking/latest/using-reranking.html. The clients of LangChain,
LlamaIndex, Haystack, LiteLLM and Weaviate were read for what they need of an answer: ``index`` and ``logit``, the best
first, and of an error whatever has the status. The last two know the paths of NVIDIA's own service alone, which are the
same route; ``top_k`` is LiteLLM's.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Final

from emb_model_provider.errors import InvalidRequestError
from router.dialects.fields import Fields
from router.dialects.jina import read_documents, render_error
from router.dialects.options import read_options
from router.dialects.pairs import Listed, Pairs, read_pairs
from router.dialects.ranking import RANKS, RESULT_BYTES, best, pair_details, pair_errors, plan_pairs, scores
from router.dialects.seam import Answered, Dialect, EncodeCall, Route, at_once
from router.dialects.vectors import list_json, to_json


def parse_ranking(fields: Fields) -> EncodeCall:
    """Read the body of ``/v1/ranking``: a query and passages, each in an object."""
    options = read_options(fields)
    query = fields.object("query").string("text")
    if not query:
        raise InvalidRequestError("'query.text' is required: a string.", param="query")
    passages = Listed("passages", _read_passages(fields))
    pairs = read_pairs(Listed("query.text", [query]), passages, partial=options.partial)
    request = pairs.request(options, fields.string("model") or "")
    top_k = fields.whole(fields.first_of("top_k", "top_n"), 0) or None
    build = partial(build_ranking, pairs, top_k=top_k, details=options.details)
    return EncodeCall(request, build, tasks=RANKS, role=options.role, plan=plan_pairs)


def _read_passages(fields: Fields) -> list[object]:
    passages = read_documents(fields, "passages", "objects with 'text'")
    given = fields.values["passages"]
    assert isinstance(given, list)
    for index, one in enumerate(given):
        if isinstance(one, dict) and one.get("image"):
            raise InvalidRequestError(f"'passages[{index}].image' is not supported: send 'text'.", param="passages")
    return passages


def build_ranking(pairs: Pairs, answered: Answered, *, top_k: int | None, details: bool) -> Iterator[bytes]:
    """Write the best passages' indexes and logits, of all without ``top_k``; of a model that embeds, their cosine."""
    scored = yield from scores(answered, pairs, raw=True)
    yield b'{"rankings":['
    rankings = [{"index": index, "logit": logit} for index, logit in best(scored, top_k)]
    yield from list_json(rankings, (RESULT_BYTES for _ in rankings))
    result = answered.result
    usage: dict[str, object] = {"prompt_tokens": result.prompt_tokens, "total_tokens": result.prompt_tokens}
    if details:
        usage["details"] = pair_details(answered, pairs)
    rest: dict[str, object] = {"model": result.model_id, "usage": usage}
    if errors := pair_errors(answered, pairs):
        rest["errors"] = [{"index": index, **error} for index, error in errors]
    if result.fingerprint:
        rest["system_fingerprint"] = result.fingerprint
    yield b"]," + to_json(rest)[1:]


NVIDIA: Final = Dialect(
    name="nvidia",
    routes=(
        Route("/v1/ranking", at_once(parse_ranking)),
        Route("/v1/retrieval/nvidia/reranking", at_once(parse_ranking)),  # Weaviate's, with the model in the body
        Route("/v1/retrieval/{model:.+}/reranking", at_once(parse_ranking)),  # LiteLLM's nvidia_nim/ID
    ),
    render_error=render_error,
)
