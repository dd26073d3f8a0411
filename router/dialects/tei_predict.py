"""text-embeddings-inference's ``/predict``, and ``/``, which does whatever the model is for; pure, used by ``tei``.

Hugging Face's ``InferenceClient`` posts to the address it was given, with nothing behind it, and so does Elasticsearch,
whose rankings have ``documents`` in them and read TEI's answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Final, Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from emb_model_provider.errors import InvalidRequestError, RequestError
from emb_model_provider.messages.link import Output
from emb_model_provider.messages.status import EncoderInfo
from emb_model_provider.modelmap import Task
from emb_model_provider.value import Value
from router.dialects.fields import Fields, check_count
from router.dialects.jina import read_raw
from router.dialects.options import MAX_INPUTS, read_options
from router.dialects.ranking import label_of, probabilities
from router.dialects.seam import Answered, Build, EncodeCall, Steps
from router.dialects.vectors import all_errors, all_rows
from router.requests import EncodeRequest

_EXPECTED: Final = "a string, a pair of strings, or a list of lists of one or two strings"
_EXPECTED_IN_BATCH: Final = "a list of one or two strings"
_FUNCTIONS: Final[dict[str, Literal["identity", "sigmoid", "softmax"]]] = {
    "sigmoid": "sigmoid",
    "softmax": "softmax",
    "none": "identity",
}
#: What ``/`` asks of a model by what it is for, in the order in which such models are meant by a body without a name.
_MADE_BY: Final[dict[Task, Output]] = {
    "embed": "dense", "classify": "scores", "rerank": "scores", "sparse": "sparse", "multi_vector": "multi_vector",
}  # fmt: skip


class Prediction(Value, frozen=True):
    """How classes are answered: raw or not, the best few, as a list of lists even for one input."""

    raw: bool = False
    top_k: int | None = None
    nested: bool = True
    function: Literal["identity", "sigmoid", "softmax"] | None = None


def parse_predict(fields: Fields) -> EncodeCall:
    """Read the body of ``/predict``: one input, or a list of lists of one or two texts each."""
    options = read_options(fields)
    value = fields.values.get("inputs")
    is_batch = isinstance(value, list) and any(isinstance(one, list) for one in value)
    whole: list[object] = value if isinstance(value, list) and is_batch else [value]
    check_count("inputs", whole, MAX_INPUTS)
    holes: dict[int, RequestError] = {}
    read: list[tuple[str, str]] = []
    for index, one in enumerate(whole):
        try:
            read.append(_sequence(one, f"inputs[{index}]" if is_batch else "inputs", is_batch=is_batch))
        except InvalidRequestError as error:
            if not options.partial or len(whole) == 1:
                raise
            holes[index] = error
    if not read:
        raise holes[0]
    firsts, seconds = zip(*read, strict=True)
    request = options.request(
        fields.string("model") or "",
        texts=firsts,
        seconds=seconds if any(seconds) else (),
        outputs=("scores",),
        holes=holes,
    )
    build = partial(build_predict, Prediction(raw=read_raw(fields), nested=is_batch))
    return EncodeCall(request, build, tasks=("classify", "rerank"), role=options.role, holes=holes)


def _sequence(value: object, where: str, *, is_batch: bool) -> tuple[str, str]:
    """Return one input's texts; that of a single one is followed by an empty one."""
    texts = [value] if isinstance(value, str) and not is_batch else value
    if not isinstance(texts, list) or not 1 <= len(texts) <= 2 or not all(isinstance(one, str) for one in texts):
        raise InvalidRequestError(f"'{where}' must be {_EXPECTED_IN_BATCH if is_batch else _EXPECTED}.", param="inputs")
    if not all(texts):
        raise InvalidRequestError(f"'{where}' has an empty string: give it some text.", param="inputs")
    return texts[0], texts[1] if len(texts) == 2 else ""


def build_predict(prediction: Prediction, answered: Answered) -> Iterator[bytes]:
    """Write each input's labels with their scores, the best first."""
    logits, encoder = all_rows(answered.result), answered.encoder
    if prediction.function is not None:
        encoder = encoder.replace(activation=prediction.function)
        scored = probabilities(logits, encoder, raw=False)
    else:
        scored = probabilities(logits, encoder, raw=prediction.raw, always=True)
    rows: list[object] = [_labelled(row, encoder)[: prediction.top_k] for row in scored]
    for index, _ in all_errors(answered.result):
        rows[index] = None
    yield orjson.dumps(rows if prediction.nested else rows[0])


def _labelled(row: NDArray[np.float32], encoder: EncoderInfo) -> list[dict[str, object]]:
    order = np.argsort(-row, kind="stable")
    return [{"score": float(row[index]), "label": label_of(encoder, int(index))} for index in order]


def parse_root(
    fields: Fields,
    embed: Callable[[Fields], Steps],
    rerank: Callable[[Fields], EncodeCall],
    similarity: Callable[[Fields], EncodeCall],
    writers: Mapping[Output, Build],
) -> Steps:
    """Read a body posted to ``/``: what it is shows in its shape, else in what the model is for.

    ``writers`` write what models make that have no scores.
    """
    parameters = fields.object("parameters")
    if parameters.values:  # where Hugging Face's clients put options
        fields = Fields(parameters.values | fields.values)
    if fields.has("documents") and not fields.has("texts"):
        returned = fields.values.get("return_documents")
        fields = Fields(fields.values | {"texts": fields.values["documents"], "return_text": returned})
    if fields.has("texts") or fields.has("query"):
        return rerank(fields)
    value = fields.values.get("inputs")
    if isinstance(value, dict):
        return similarity(fields)
    prediction = Prediction(
        raw=read_raw(fields),
        top_k=parameters.whole("top_k", 1),
        nested=isinstance(value, list) or "parameters" in fields.values,
        function=parameters.choice("function_to_apply", _FUNCTIONS),
    )
    if isinstance(value, list) and any(isinstance(one, list) and one and isinstance(one[0], str) for one in value):
        return parse_predict(fields).replace(build=partial(build_predict, prediction))
    call = yield from embed(fields)
    assert isinstance(call, EncodeCall)
    return call.replace(
        tasks=tuple(_MADE_BY),
        plan=_for_its_task,
        build=partial(_build_root, prediction, writers),
    )


def _for_its_task(request: EncodeRequest, encoder: EncoderInfo) -> EncodeRequest:
    made = _MADE_BY[encoder.task]
    return request.replace(outputs=(made,), normalize=request.normalize if made == "dense" else None)


def _build_root(prediction: Prediction, writers: Mapping[Output, Build], answered: Answered) -> Iterator[bytes]:
    made = _MADE_BY[answered.encoder.task]
    return build_predict(prediction, answered) if made == "scores" else writers[made](answered)
