"""What a dialect gives to ``router.handlers``: routes, calls and errors. Pure values; no framework type passes here."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from emb_model_provider.errors import RequestError
from emb_model_provider.messages.link import Detokenize, Texts, Tokenize, Tokens
from emb_model_provider.messages.status import EncoderInfo, ShardStatus
from emb_model_provider.modelmap import Task
from emb_model_provider.value import Value
from router.dialects.fields import Fields
from router.limits import RequestLimits
from router.requests import EncodeRequest, EncodeResult


class Answered(Value, frozen=True):
    """What came of an ``EncodeCall``: what its answer is written from. ``characters`` were in the inputs."""

    result: EncodeResult
    encoder: EncoderInfo
    request_id: str
    characters: int
    took_s: float


Plan = Callable[[EncodeRequest, EncoderInfo], EncodeRequest]
#: Writes an answer in pieces that take about a millisecond each; an empty piece is a pause.
Build = Callable[[Answered], Iterator[bytes]]


def as_asked(request: EncodeRequest, encoder: EncoderInfo) -> EncodeRequest:
    """Return the request as it is: the plan of a call that is the same whatever the model."""
    del encoder
    return request


class EncodeCall(Value, frozen=True):
    """Run a model on inputs. A request with ``model`` ``""`` goes to the only model that has one of ``tasks``.

    ``tasks`` are in order of preference: a later one counts where no model has an earlier one. ``role`` is the word of
    ``input_type`` (see ``router.prompts``). ``plan`` makes the request fit the model once its facts are known.
    ``holes`` are inputs that were wrong already in the body of an ``on_error: "null"`` request; the request holds the
    others.
    """

    request: EncodeRequest
    build: Build
    tasks: tuple[Task, ...] = ("embed",)
    role: str | None = None
    plan: Plan = as_asked
    holes: Mapping[int, RequestError] = {}


class TokenizeCall(Value, frozen=True):
    """Ask a model's tokenizer for tokens."""

    model: str
    message: Tokenize
    build: Callable[[Tokens, EncoderInfo], Iterator[bytes]]


class DetokenizeCall(Value, frozen=True):
    """Ask a model's tokenizer for texts."""

    model: str
    message: Detokenize
    build: Callable[[Texts], bytes]


class DescribeCall(Value, frozen=True):
    """Ask what the router knows of one model, and what one request may hold; ``waits`` for the model to be ready."""

    model: str
    build: Callable[[ShardStatus, RequestLimits], bytes]
    waits: bool = False


class ListCall(Value, frozen=True):
    """Ask what the router knows of all models."""

    build: Callable[[list[ShardStatus]], bytes]


Call = EncodeCall | TokenizeCall | DetokenizeCall | DescribeCall | ListCall
Steps = Generator[None, None, Call]


@dataclass(frozen=True, slots=True)
class Route:
    """One path. ``parse`` pauses after each millisecond or so of a large body; a ``GET`` has only a model's name.

    Where dialects share a path, the first whose ``takes`` says yes gets the body.
    """

    path: str
    parse: Callable[[Fields], Steps]
    method: Literal["GET", "POST"] = "POST"
    takes: Callable[[Fields], bool] = lambda _fields: True


@dataclass(frozen=True, slots=True)
class Dialect:
    """Routes, and how this dialect's clients want to hear of errors and times.

    ``errors_below`` are the beginnings of paths that no other dialect has: what is not found there is its error too.
    """

    name: str
    routes: tuple[Route, ...]
    render_error: Callable[[RequestError], bytes]
    status_of: Callable[[RequestError], int] = lambda error: error.status
    headers: Callable[[Answered], dict[str, str]] | None = None
    errors_below: tuple[str, ...] = ()


def at_once(parse: Callable[[Fields], Call]) -> Callable[[Fields], Steps]:
    """Return a function that parses in one step, for bodies that are never long work."""

    def steps(fields: Fields) -> Steps:
        yield from ()
        return parse(fields)

    return steps
