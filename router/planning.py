"""Which model a request means, and whether it can do what is asked. Used by ``handlers``, before ``service``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from emb_model_provider.errors import InvalidRequestError, ModelNotFoundError, UnavailableError
from emb_model_provider.messages.link import Output
from emb_model_provider.messages.status import EncoderInfo, ShardStatus
from emb_model_provider.modelmap import Task
from router.prompts import with_role
from router.registry import Registry
from router.requests import EncodeRequest

_RETRY_S: Final = 5.0
#: What clients of Ollama put behind every name.
_NO_SUFFIX: Final = "latest"

_WHAT: Final[dict[Task, str]] = {
    "embed": "embeds texts",
    "sparse": "makes sparse vectors",
    "multi_vector": "makes a vector of each token",
    "rerank": "ranks texts",
    "classify": "classifies texts",
}
_WHERE: Final[dict[Output, str]] = {
    "dense": "/v1/embeddings, /v2/embed, /embed or /api/embed",
    "sparse": '/v1/embeddings with "outputs": ["sparse"], or /embed_sparse',
    "multi_vector": '/v1/embeddings with "outputs": ["multi_vector"], or /embed_all',
    "scores": "/v1/rerank, /v2/rerank, /score or /rerank where it ranks, /classify or /predict where it classifies",
}


def find(registry: Registry, model: str) -> tuple[ShardStatus, str | None]:
    """Return the model and the role or prompt that its name asks for (``bge:query``), if any.

    No served id holds a colon, but a model's full name may; what is served under the whole name is found first.
    """
    if registry.knows(model) or ":" not in model:
        return registry.find(model), None
    name, _, suffix = model.rpartition(":")
    if not registry.knows(name):
        return registry.find(model if suffix != _NO_SUFFIX else name), None
    return registry.find(name), None if suffix == _NO_SUFFIX else suffix


def only_model(registry: Registry, tasks: Sequence[Task], path: str) -> ShardStatus:
    """Return the one model that a request without a model's name can mean; raise an error that names the choice.

    What a model is for is known once it has loaded. While several could be meant nobody guesses: the answer would
    change when the next one has loaded.
    """
    # One that never loaded is nobody's choice; one that failed after it had is still what its clients mean.
    statuses = [status for status in registry.all() if status.info is not None or status.state != "failed"]
    loading = [status for status in statuses if status.info is None]
    for task in tasks:
        fit = [status for status in statuses if status.info and status.info.encoder.task == task]
        if len(fit) > 1:
            raise _ambiguous(fit, path)
        if fit and not loading:
            return fit[0]
        if fit:
            break
    if len(statuses) == 1 and loading:
        return statuses[0]
    if loading:
        raise UnavailableError(
            f"Which model is meant shows when all have loaded; on the way: {_names(loading)}. Name "
            f"it in the path, as in /models/{statuses[0].model_id}{path}, or try again.",
            retry_after_s=_RETRY_S,
        )
    wanted = " or ".join(_WHAT[task] for task in tasks)
    raise ModelNotFoundError(
        f"No model served here {wanted}. Models served here: {_names(registry.all()) or 'none'}.", param="model"
    )


def any_model(registry: Registry, path: str) -> ShardStatus:
    """Return the only model there is, for routes that every model can answer."""
    statuses = registry.all()
    if len(statuses) == 1:
        return statuses[0]
    if not statuses:
        raise ModelNotFoundError("No model is served here.", param="model")
    raise _ambiguous(statuses, path)


def fit(request: EncodeRequest, role: str | None, encoder: EncoderInfo) -> EncodeRequest:
    """Return the request as it is sent to this model; raise ``InvalidRequestError`` for what it cannot do."""
    for output in request.outputs:
        if output not in encoder.outputs:
            raise InvalidRequestError(
                f"The model {request.model!r} {_WHAT[encoder.task]} and has no {output.replace('_', ' ')} output; "
                f"it answers at {_WHERE[encoder.outputs[0]]}.",
                param="outputs" if output in ("sparse", "multi_vector") else "model",
            )
    if request.dimensions is not None and "dense" in request.outputs:
        _check_dimensions(request, request.dimensions, encoder)
    if request.seconds:
        # The rest of them would read it as a part of the query.
        return request if encoder.takes_instruction else request.replace(prompt=None, prompt_name=None)
    return with_role(request, role, encoder)


def _check_dimensions(request: EncodeRequest, dimensions: int, encoder: EncoderInfo) -> None:
    known = encoder.matryoshka
    if known and dimensions < encoder.dimension and dimensions not in known:
        raise InvalidRequestError(
            f"The model {request.model!r} is trained to be cut to {', '.join(map(str, sorted(known)))} dimensions; "
            f"'dimensions' must be one of these or {encoder.dimension}, not {dimensions}.",
            param="dimensions",
        )
    if request.normalize is False:
        raise InvalidRequestError(
            "'dimensions' brings vectors to length 1 again: leave out 'normalize' or send true.", param="normalize"
        )


def _ambiguous(statuses: Sequence[ShardStatus], path: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"Several models can be meant: {_names(statuses)}. Name one in the path, as in "
        f"/models/{statuses[0].model_id}{path}, or in the field 'model'.",
        param="model",
    )


def _names(statuses: Sequence[ShardStatus]) -> str:
    return ", ".join(status.model_id for status in statuses)
