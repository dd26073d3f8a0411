"""What a client asks for and what it gets, whatever dialect it speaks: the values between dialects and ``service``."""

from __future__ import annotations

from typing import Final, NamedTuple

from emb_model_provider.messages.link import Encoded, Output, Priority
from emb_model_provider.modelmap import Overlong
from emb_model_provider.value import Value


class Queries(NamedTuple):
    """The first ``texts`` of a request are read with the model's prompt ``prompt_name``, the others with the request's.

    Where texts that are compared are read differently, they go to the model as one request all the same.
    """

    texts: int = 0
    prompt_name: str | None = None


_NO_QUERIES: Final = Queries()


class EncodeRequest(Value, frozen=True):
    """One request to one model. Exactly one of ``texts`` and ``token_ids`` is not empty.

    The fields that ``Encode`` has too mean the same there. ``overlong`` ``None`` is as the model is set up.
    ``timeout_s`` is what the client allows, beside the server's own limit; ``client`` tells clients apart for a fair
    share (never shown or logged). ``sent`` is how many inputs the client counts where that is not ``count``: some were
    wrong, or a query stands beside them.
    """

    model: str
    texts: tuple[str, ...] = ()
    token_ids: tuple[tuple[int, ...], ...] = ()
    dimensions: int | None = None
    prompt_name: str | None = None
    seconds: tuple[str, ...] = ()
    outputs: tuple[Output, ...] = ("dense",)
    prompt: str | None = None
    normalize: bool | None = None
    overlong: Overlong | None = None
    max_tokens: int | None = None
    priority: Priority = "auto"
    partial: bool = False
    timeout_s: float | None = None
    client: str = ""
    traceparent: str = ""
    labels: tuple[str, ...] = ()
    sent: int = 0
    queries: Queries = _NO_QUERIES

    @property
    def count(self) -> int:
        return len(self.texts) or len(self.token_ids)

    def prompt_name_of(self, index: int) -> str | None:
        """Return the name of the prompt before the input at ``index``."""
        return self.queries.prompt_name if index < self.queries.texts else self.prompt_name

    def label(self, index: int) -> str:
        """Return what errors call the input at ``index``."""
        return self.labels[index] if self.labels else f"input {index}"


class EncodeResult(Value, frozen=True):
    """The answer, in the order asked.

    ``parts`` are the shard's answers one after the other; ``prompt_tokens`` what the model really read;
    ``truncated`` the indexes of inputs that were cut; ``fingerprint`` names what made the vectors.
    """

    model_id: str
    parts: tuple[Encoded, ...]
    prompt_tokens: int
    truncated: tuple[int, ...]
    fingerprint: str = ""
