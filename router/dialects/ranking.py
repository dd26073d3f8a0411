"""Scores of pairs of texts, from whatever a model can make of them. Pure; used by the dialects that rank.

A reranker scores pairs itself. Of an embedding model both texts' vectors are compared: by their cosine, or token by
token (MaxSim, as ColBERT has it: for each token of the query the best product with one of the document, summed).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from emb_model_provider.errors import InvalidRequestError
from emb_model_provider.messages import EncoderInfo, Task
from router.dialects.options import Options
from router.dialects.seam import Answered
from router.dialects.vectors import all_errors, all_rows, chunks, error_object
from router.requests import EncodeRequest

RANKS: Final[tuple[Task, ...]] = ("rerank", "multi_vector", "embed")
#: More products of token vectors than this at once would keep the loop waiting for more than a millisecond or two.
_PRODUCTS_A_STEP: Final = 8_000_000


@dataclass(frozen=True, slots=True)
class Ranked:
    """One document's place: its index in the request and its score."""

    index: int
    score: float


def pairs_request(options: Options, model: str, firsts: Sequence[str], seconds: tuple[str, ...]) -> EncodeRequest:
    """Return the request to score ``firsts[i]`` with ``seconds[i]``; one first goes with every second."""
    texts = tuple(firsts) * len(seconds) if len(firsts) == 1 else tuple(firsts)
    return options.request(model, texts=texts, seconds=seconds, outputs=("scores",))


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
    return dataclasses.replace(
        request,
        texts=tuple(dict.fromkeys(request.texts)) + request.seconds,
        seconds=(),
        outputs=("multi_vector",) if late else ("dense",),
        normalize=None if late else True,
        # Both sides go through one request, and a prompt for queries does not suit documents: none, unless named.
        prompt="" if request.prompt_name is None and request.prompt is None else request.prompt,
    )


def scores(
    answered: Answered, firsts: Sequence[str], count: int, *, raw: bool = False, sigmoid: bool = False
) -> Generator[bytes, None, NDArray[np.float32]]:
    """Return the score of each of ``count`` pairs, NaN for one that has an error, with pauses.

    ``raw`` gives a reranker's logits as they are; ``sigmoid`` brings them between 0 and 1 whatever its own activation.
    """
    result, encoder = answered.result, answered.encoder
    failed = [index for index, _ in all_errors(result)]
    if "scores" in encoder.outputs:
        rows = all_rows(result)[:, 0]
        made = rows if raw else _activate(rows, "sigmoid" if sigmoid else encoder.activation)
        return _without(made, failed)
    places = {text: place for place, text in enumerate(dict.fromkeys(firsts))}
    of_first = [places[text] for text in firsts] if len(firsts) > 1 else [0] * count
    if result.parts[0].token_vectors is not None:
        matrices = [matrix for chunk in chunks(result) for matrix in chunk.token_vectors()]
        made = yield from _late(matrices, of_first, len(places))
    else:
        vectors = all_rows(result)
        made = np.einsum("ij,ij->i", vectors[of_first], vectors[len(places) :])
    lost = {index for index in failed if index < len(places)}
    bad = [pair for pair in range(count) if of_first[pair] in lost or len(places) + pair in set(failed)]
    return _without(made, bad)


def pair_errors(answered: Answered, firsts: Sequence[str], count: int) -> list[dict[str, object]]:
    """Return the errors of pairs, each with its pair's index; that of a shared text once for each pair."""
    errors = all_errors(answered.result)
    if not errors or "scores" in answered.encoder.outputs:
        return [{"index": index, **error_object(error)} for index, error in errors]
    distinct = list(dict.fromkeys(firsts))
    named: list[dict[str, object]] = []
    for place, error in errors:
        if place >= len(distinct):
            named.append({"index": place - len(distinct), **error_object(error)})
            continue
        shared = [pair for pair in range(count) if firsts[pair if len(firsts) > 1 else 0] == distinct[place]]
        named += [{"index": pair, **error_object(error)} for pair in shared]
    return named


def _without(made: NDArray[np.float32], failed: Sequence[int]) -> NDArray[np.float32]:
    if not failed:
        return made
    made = made.copy()
    made[list(failed)] = np.nan
    return made


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


def best(scored: NDArray[np.float32], top_n: int | None) -> list[Ranked]:
    """Return the best first, equal ones as they were given; those without a score not at all."""
    order = np.argsort(-scored, kind="stable")[:top_n]  # NaN comes last
    return [Ranked(int(index), float(scored[index])) for index in order if not np.isnan(scored[index])]
