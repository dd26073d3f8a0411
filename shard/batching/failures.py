"""What the asker hears of a request or an input that has failed. Used by ``engine`` and ``intake``."""

from __future__ import annotations

from emb_model_provider.errors import DeadlineError, EncodeError, RequestError
from emb_model_provider.logs import EventLog
from emb_model_provider.messages.link import Encode, Failed, InputError
from shard.memory import advice_of_shortage, ran_out

log = EventLog("shard.batching.failures")


def as_failed(error: RequestError) -> Failed:
    """Return an error as it crosses the link."""
    return Failed(error.status, error.kind, error.code, error.message, error.param)


def as_input_error(error: Failed, index: int) -> InputError:
    """Return an error as that of one input; ``index`` counts within the message."""
    return InputError(index, error.status, error.kind, error.code, error.message)


def log_failure(request: Encode, index: int, cause: Exception) -> None:
    """Write down why the model failed on an input."""
    what = f"{type(cause).__name__}: {cause}"
    log.error(
        "encode_failed",
        request_id=request.request_id or None,
        input=request.label(index),
        error=what,
        advice=advice_of_shortage(cause) if ran_out(cause) else None,
    )


def failed_input(request: Encode, index: int, cause: Exception) -> Failed:
    """Return what its asker hears."""
    label = request.label(index)
    if ran_out(cause):
        message = (
            f"{label.capitalize()} needs more memory than there is, even alone; every other input is fine. "
            "Shorten it, or ask for fewer of its tokens."
        )
        return Failed(413, "invalid_request_error", "input_too_large", message, "input")
    message = f"The model failed on {label}; every other input is fine. Change or leave out that input."
    return Failed(EncodeError.status, EncodeError.kind, EncodeError.code, message, "input")


def too_late() -> Failed:
    """Return what the asker hears whose deadline has passed."""
    return as_failed(DeadlineError("No answer in time, so this was not encoded. Ask again when there is less to do."))
