"""The fields that every dialect may carry: prompts, cutting, priority, partial answers. Pure; used by the dialects.

One reader for all of them, so that a client of one server may send what it knows from another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from emb_model_provider.errors import InvalidRequestError, RequestError
from emb_model_provider.messages.link import Output, Priority
from emb_model_provider.modelmap import Overlong
from emb_model_provider.value import Value
from router.dialects.fields import Fields, as_whole, check_count, empty_text, no_words, unsupported, wrong
from router.requests import EncodeRequest

#: More than any server takes; its operator's own limit (EMB_PROVIDER_MAX_INPUTS) is ``service``'s to check.
MAX_INPUTS: Final = 1_000_000
#: Texts in one request to a tokenizer; beside it there are limits on the length of each and on all their tokens.
MAX_TOKENIZED: Final = 2048
#: A day: whoever waits longer waits for ever.
_MAX_TIMEOUT_MS: Final = 86_400_000
_MAX_TOKENS: Final = 2**31 - 1

#: Where a text is cut: TEI and vLLM name the side that goes, we and Cohere the end of the text.
_SIDES: Final[dict[str, Overlong]] = {"left": "start", "right": "end"}
_TRUNCATE: Final[dict[str, Overlong]] = {
    "none": "error", "error": "error", "end": "end", "start": "start", "truncate": "truncate",
}  # fmt: skip
_PRIORITIES: Final[dict[str, Priority]] = {"auto": "auto", "interactive": "interactive", "bulk": "bulk"}
_ON_ERROR: Final = {"fail": False, "null": True}
_OUTPUTS: Final[dict[str, Output]] = {
    "dense": "dense", "sparse": "sparse", "multi_vector": "multi_vector", "colbert": "multi_vector",
}  # fmt: skip
_NAMES: Final = frozenset({
    "dimensions", "output_dimension", "input_type", "task", "prompt", "prompt_name", "normalize", "normalized",
    "truncate", "truncation", "truncation_direction", "truncation_side", "truncate_prompt_tokens", "max_tokens",
    "priority", "timeout_ms", "on_error", "usage_details", "late_chunking", "embd_normalize",
})  # fmt: skip
_NO_HOLES: Final[Mapping[int, RequestError]] = {}


class Options(Value, frozen=True):
    """What was read. ``details`` asks for a report of each input's tokens."""

    role: str | None = None
    prompt_name: str | None = None
    prompt: str | None = None
    dimensions: int | None = None
    normalize: bool | None = None
    overlong: Overlong | None = None
    max_tokens: int | None = None
    priority: Priority = "auto"
    timeout_s: float | None = None
    partial: bool = False
    details: bool = False

    def request(
        self,
        model: str,
        *,
        texts: tuple[str, ...] = (),
        token_ids: tuple[tuple[int, ...], ...] = (),
        seconds: tuple[str, ...] = (),
        outputs: tuple[Output, ...] = ("dense",),
        holes: Mapping[int, RequestError] = _NO_HOLES,
    ) -> EncodeRequest:
        """Return a request with these options for these inputs, which stand between those of ``holes``."""
        sent = len(holes) + len(texts)  # token ids are right or wrong together
        return EncodeRequest(
            labels=tuple(f"input {index}" for index in range(sent) if index not in holes) if holes else (),
            sent=sent if holes else 0,
            model=model,
            texts=texts,
            token_ids=token_ids,
            seconds=seconds,
            outputs=outputs,
            dimensions=self.dimensions,
            prompt_name=self.prompt_name,
            prompt=self.prompt,
            normalize=self.normalize,
            overlong=self.overlong,
            max_tokens=self.max_tokens,
            priority=self.priority,
            partial=self.partial,
            timeout_s=self.timeout_s,
        )


_DEFAULTS: Final = Options()


def read_options(fields: Fields, *, reads_prompt: bool = True) -> Options:
    """Return the options in a body. ``reads_prompt`` is off where ``prompt`` is a name for an input."""
    if _NAMES.isdisjoint(fields.values):
        return _DEFAULTS
    if fields.flag("late_chunking"):
        raise InvalidRequestError(
            "'late_chunking' is not supported: each input is encoded by itself. Leave it out or send false.",
            param="late_chunking",
        )
    return Options(
        role=fields.string(fields.first_of("input_type", "task")),
        prompt_name=fields.string("prompt_name"),
        prompt=fields.string("prompt") if reads_prompt else None,
        dimensions=fields.whole(fields.first_of("dimensions", "output_dimension"), 1),
        normalize=fields.flag(fields.first_of("normalize", "normalized")),
        overlong=read_overlong(fields),
        max_tokens=_max_tokens(fields),
        priority=_priority(fields),
        timeout_s=_timeout_s(fields),
        partial=bool(fields.choice("on_error", _ON_ERROR)),
        details=bool(fields.flag("usage_details")),
    )


def has_prompt(fields: Fields, name: str) -> bool:
    """Tell whether ``prompt`` is one, and not the input ``name`` once more.

    That is what clients send who write one body for both of Ollama's routes and for OpenAI's (cognee up to 0.5.1).
    """
    return fields.values.get("prompt") != fields.values.get(name)


def read_overlong(fields: Fields) -> Overlong | None:
    """Return what to do with a text that is too long; ``None`` as the model is set up."""
    named = fields.choice(fields.first_of("truncation_direction", "truncation_side"), _SIDES)
    name = fields.first_of("truncate", "truncation")  # Voyage's name
    value = fields.values.get(name)
    if isinstance(value, bool):
        return (named or "truncate") if value else "error"
    if value is not None and not isinstance(value, str):
        raise wrong(name, "true, false or one of NONE, START, END", value)
    chosen = fields.choice(name, _TRUNCATE)
    if fields.has("truncate_prompt_tokens") and chosen is None:
        return named or "truncate"
    return chosen or named


def _max_tokens(fields: Fields) -> int | None:
    cut = fields.whole("truncate_prompt_tokens", -1, _MAX_TOKENS)
    limit = fields.whole("max_tokens", 1, _MAX_TOKENS)
    return cut if cut is not None and cut > 0 else limit


def _priority(fields: Fields) -> Priority:
    value = as_whole(fields.values.get("priority"))
    if type(value) is int:  # as vLLM has it: lower comes first
        return "auto" if value == 0 else "interactive" if value < 0 else "bulk"
    return fields.choice("priority", _PRIORITIES) or "auto"


def _timeout_s(fields: Fields) -> float | None:
    timeout_ms = fields.whole("timeout_ms", 1, _MAX_TIMEOUT_MS)
    return None if timeout_ms is None else timeout_ms / 1000


def read_outputs(fields: Fields) -> tuple[Output, ...]:
    """Return what is wanted of an embedding model: dense vectors unless ``outputs`` says otherwise."""
    value = fields.values.get("outputs")
    if value is None:
        return ("dense",)
    named = [value] if isinstance(value, str) else value
    if not isinstance(named, list):
        raise wrong("outputs", f"a list of {list(_OUTPUTS)}", value)
    if not named:
        raise no_words("outputs", _OUTPUTS)
    found: dict[Output, None] = {}
    for one in named:
        if not isinstance(one, str) or one.lower() not in _OUTPUTS:
            raise unsupported("outputs", one, _OUTPUTS)
        found[_OUTPUTS[one.lower()]] = None
    return tuple(found)


def without_holes(texts: list[object], name: str) -> tuple[tuple[str, ...], dict[int, RequestError]]:
    """Return the good texts of an ``on_error: "null"`` request and, by index, what is wrong with the others."""
    holes = find_holes(texts, name)
    if len(holes) == len(texts):
        raise holes[0]
    return tuple(str(one) for index, one in enumerate(texts) if index not in holes), holes


def find_holes(texts: list[object], name: str) -> dict[int, RequestError]:
    """Return by index what is wrong with those that are no texts."""
    holes: dict[int, RequestError] = {}
    for index, one in enumerate(texts):
        if not isinstance(one, str):
            holes[index] = wrong(f"{name}[{index}]", "a string", one, param=name)
        elif not one:
            holes[index] = empty_text(name, f"[{index}]")
    return holes


def read_texts(fields: Fields, name: str, options: Options) -> tuple[tuple[str, ...], dict[int, RequestError]]:
    """Return one string or a list of them; of an ``on_error: "null"`` request the good ones, and the others' errors."""
    value = fields.values.get(name)
    if options.partial and isinstance(value, list) and value:
        check_count(name, value, MAX_INPUTS)
        return without_holes(value, name)
    return fields.texts(name, MAX_INPUTS), {}
