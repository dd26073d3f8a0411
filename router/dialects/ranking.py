"""Scores of pairs of texts, from whatever a model can make of them. Pure; used by the dialects that rank.

A reranker scores pairs itself. Of an embedding model both texts' vectors are compared: by their cosine, or token by
token (MaxSim, as ColBERT has it: for each token of the query the best product with one of the document, summed).
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from emb_model_provider.errors import InvalidRequestError
from emb_model_provider.messages.status import EncoderInfo
from emb_model_provider.modelmap import Task
from router.dialects.pairs import Pairs
from router.dialects.seam import Answered
from router.dialects.vectors import ReadInput, all_errors, all_rows, chunks, error_object, read_inputs, refusal_object
from router.prompts import with_role
from router.requests import EncodeRequest, Queries

RANKS: Final[tuple[Task, ...]] = ("rerank", "multi_vector", "embed")
#: What one place takes in an answer, beside its document.
RESULT_BYTES: Final = 64
#: More products of token vectors than this at once would keep the loop waiting for more than a millisecond or two.
_PRODUCTS_A_STEP: Final = 8_000_000


def plan_pairs(request: EncodeRequest, encoder: EncoderInfo) -> EncodeRequest:
    """Return what to ask this model for, so that ``scores`` can be had from its answer."""
    if "scores" in encoder.outputs:
        if len(encoder.labels) > 1:
            raise InvalidRequestError(
                f"This model tells {len(encoder.labels)} classes apart and gives no single score: use /classify or "
                "/predict.",
                param="model",
            )
        return request
    late = encoder.task == "multi_vector" and "multi_vector" in encoder.outputs
    if not late and "dense" not in encoder.outputs:
        raise InvalidRequestError("This model makes nothing that texts can be ranked by.", param="model")
    firsts = tuple(dict.fromkeys(request.texts))
    names = ("the query",) if len(firsts) == 1 else (f"first text {place}" for place in range(len(firsts)))
    planned = request.replace(
        texts=firsts + request.seconds,
        labels=(*names, *(request.label(index) for index in range(len(request.seconds)))),
        seconds=(),
        sent=request.sent or request.count,
        outputs=("multi_vector",) if late else ("dense",),
        normalize=None if late else True,
    )
    if request.prompt is not None or request.prompt_name is not None:
        return planned
    query, document = (with_role(planned, role, encoder) for role in ("query", "document"))
    reads_apart = late or bool(encoder.routes)
    if not reads_apart or query.prompt_name is None or document.prompt_name is None:
        # A prompt for queries does not suit documents, and of two texts to compare neither need be a query.
        return planned.replace(prompt="")
    # MaxSim, or a model with routes, is of a query and a document, which such a model reads differently.
    return document.replace(queries=Queries(len(firsts), query.prompt_name))


def scores(
    answered: Answered, pairs: Pairs, *, raw: bool = False, sigmoid: bool = False
) -> Generator[bytes, None, NDArray[np.float32]]:
    """Return the score of each pair, NaN for one that has an error, with pauses.

    ``raw`` gives a reranker's logits as they are; ``sigmoid`` brings them between 0 and 1 whatever its own activation.
    """
    result, encoder = answered.result, answered.encoder
    if "scores" in encoder.outputs:
        rows = all_rows(result)[:, 0]
        made = rows if raw else _activate(rows, "sigmoid" if sigmoid else encoder.activation)
    else:
        of_first, firsts = pairs.first_places(), len(pairs.distinct)
        if result.parts[0].token_vectors is not None:
            matrices = [matrix for chunk in chunks(result) for matrix in chunk.token_vectors()]
            made = yield from _late(matrices, of_first, firsts)
        else:
            vectors = all_rows(result)
            seconds = vectors[firsts:]
            # One query is not copied once for each document.
            queries = np.broadcast_to(vectors[0], seconds.shape) if firsts == 1 else vectors[of_first]
            made = np.einsum("ij,ij->i", queries, seconds)
    errors = pair_errors(answered, pairs)
    if not errors:
        return made
    scored = np.full(pairs.count, np.nan, dtype=np.float32)
    scored[pairs.indexes()] = made
    scored[[index for index, _ in errors]] = np.nan
    return scored


def pair_errors(answered: Answered, pairs: Pairs) -> list[tuple[int, dict[str, object]]]:
    """Return the errors of pairs by their index, in order; that of a shared text once for each of its pairs."""
    found: dict[int, dict[str, object]] = {}
    for index, hole in pairs.holes.items():
        found[index] = refusal_object(hole)
    if errors := all_errors(answered.result):
        indexes = pairs.indexes()
        for place, error in errors:
            for pair in _pairs_of(place, answered, pairs):
                found.setdefault(indexes[pair], error_object(error))
    return sorted(found.items(), key=lambda one: one[0])


def _pairs_of(row: int, answered: Answered, pairs: Pairs) -> list[int]:
    """Return which pairs need this row of the answer."""
    if "scores" in answered.encoder.outputs:
        return [row]
    firsts = len(pairs.distinct)
    if row >= firsts:
        return [row - firsts]
    return [pair for pair, place in enumerate(pairs.first_places()) if place == row]


def pair_details(answered: Answered, pairs: Pairs) -> list[dict[str, object]]:
    """Return what was read of each pair: where the model reads each text by itself, of the two together."""
    rows = read_inputs(answered.result)
    if "scores" not in answered.encoder.outputs:
        firsts = len(pairs.distinct)
        both = zip(pairs.first_places(), rows[firsts:], strict=True)
        rows = [rows[place].with_second(second) for place, second in both]
    if pairs.holes:
        read = dict(zip(pairs.indexes(), rows, strict=True))
        rows = [read.get(index, ReadInput(0, 0, truncated=False)) for index in range(pairs.count)]
    return [row._asdict() for row in rows]


def _late(
    matrices: list[NDArray[np.float32]], of_first: list[int], firsts: int
) -> Generator[bytes, None, NDArray[np.float32]]:
    made = np.zeros(len(of_first), dtype=np.float32)
    products = 0
    for pair, first in enumerate(of_first):
        query, document = matrices[first], matrices[firsts + pair]
        if len(query) and len(document):
            made[pair] = (query @ document.T).max(axis=1).sum()
        products += query.size * len(document)
        if products > _PRODUCTS_A_STEP:
            products = 0
            yield b""
    return made


def _activate(logits: NDArray[np.float32], activation: str) -> NDArray[np.float32]:
    if activation == "sigmoid":
        return _sigmoid(logits)
    return logits  # a softmax over one label would say 1 to everything


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # exp of a large number is infinite, and the result then 0, which is right
        return np.asarray(1 / (1 + np.exp(-logits)), dtype=np.float32)


def probabilities(
    logits: NDArray[np.float32], encoder: EncoderInfo, *, raw: bool, always: bool = False
) -> NDArray[np.float32]:
    """Return a classifier's scores (inputs x labels) as its own library gives them, or the logits.

    ``always`` makes probabilities of them even where the model's own library does not: over the labels together, for
    several of them.
    """
    if raw:
        return logits
    activation = encoder.activation
    if always and activation == "identity":
        activation = "softmax" if logits.shape[1] > 1 else "sigmoid"
    if activation == "softmax" and logits.shape[1] > 1:
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(exponents / exponents.sum(axis=1, keepdims=True), dtype=np.float32)
    return _sigmoid(logits) if activation != "identity" else logits


def label_of(encoder: EncoderInfo, index: int) -> str:
    """Return a class's name, or what transformers calls one that has none."""
    return encoder.labels[index] if index < len(encoder.labels) else f"LABEL_{index}"


def best(scored: NDArray[np.float32], top_n: int | None) -> list[tuple[int, float]]:
    """Return index and score, the best first, equal ones as they were given; those without a score not at all."""
    order = np.argsort(-scored, kind="stable")[:top_n]  # NaN comes last
    order = order[~np.isnan(scored[order])]
    return list(zip(order.tolist(), scored[order].tolist(), strict=True))
