"""Turns the JSON of ``EMB_PROVIDER_MODEL_MAPPING`` into model specs, with the place of every mistake.

``model_settings`` is the caller; what an entry leaves out comes from the spec it passes as ``defaults``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace
from typing import Final, TypeVar

from emb_model_provider import entry_table as table
from emb_model_provider.dotenv_file import MAPPING_NAME
from emb_model_provider.entry_table import ENTRY_KEYS, EntryKey
from emb_model_provider.errors import ConfigurationError
from emb_model_provider.modelmap import BatchLimits, ModelSpec, is_model_id
from emb_model_provider.positioned_json import Document, JsonMistakeError, Member, Node, Object, parse_json
from emb_model_provider.value_kinds import WrongValueError

T = TypeVar("T")
_SHOWN_CHARS: Final = 60
_KEY_NAMES: Final = tuple(key.name for key in ENTRY_KEYS)
ALIAS_RULE: Final = (
    "1 to 128 of A-Z a-z 0-9 . _ - /, beginning with a letter or digit, without '..' and no '/' at the end"
)


def parse_mapping(
    document: Document, defaults: ModelSpec, *, quantize: bool, place: Callable[[str], str] = str
) -> tuple[ModelSpec, ...]:
    """Return one spec per alias, in order; raise ``ConfigurationError`` with every mistake found.

    ``quantize`` makes an ``auto`` precision mean int8. ``place`` completes a name or path, such as one with ``~``.
    """
    try:
        root = parse_json(document.text)
    except JsonMistakeError as mistake:
        raise ConfigurationError(_syntax_sentence(document, mistake)) from None
    problems: list[str] = []
    if not isinstance(root.value, Object) or not root.value.members:
        problems.append(
            _sentence(document, root.at, 'must be an object with at least one alias: {"alias": {"name": …}}')
        )
        raise ConfigurationError(*problems)
    entries = [_Entry(document, member, problems) for member in root.value.members]
    specs = [entry.spec(defaults, quantize=quantize, place=place) for entry in entries]
    if problems:
        raise ConfigurationError(*problems)
    return tuple(specs)


class _Entry:
    """One alias and its object; mistakes are added to the list they share."""

    def __init__(self, document: Document, member: Member, problems: list[str]) -> None:
        self._document = document
        self._alias = member
        self._problems = problems
        self._nodes: dict[str, Node] = {}
        if not is_model_id(member.key):
            self._complain(member.at, f"the alias {_shown(member.key)} cannot be used: it must be {ALIAS_RULE}")
        if isinstance(member.node.value, Object):
            self._sort(member.node.value)
        else:
            self._complain(member.node.at, f'{_shown(member.key)} must be an object such as {{"name": "BAAI/bge-m3"}}')

    def _sort(self, entry: Object) -> None:
        for member in entry.members:
            if member.key in _KEY_NAMES:
                self._nodes[member.key] = member.node
                continue
            near = difflib.get_close_matches(member.key.lower(), _KEY_NAMES, n=1)
            advice = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(_KEY_NAMES)}."
            self._complain(member.at, f"{_shown(self._alias.key)} has an unknown key {_shown(member.key)}; {advice}")
        if table.NAME.name not in self._nodes:
            self._complain(
                self._alias.at, f"{_shown(self._alias.key)} has no {table.NAME.name!r}, the model it stands for"
            )

    def spec(self, defaults: ModelSpec, *, quantize: bool, place: Callable[[str], str]) -> ModelSpec:
        precision = self._take(table.PRECISION, defaults.precision)
        return replace(
            defaults,
            id=self._alias.key,
            name=place(self._take(table.NAME, "")),
            source=self._take(table.SOURCE, defaults.source),
            precision="int8" if quantize and precision == "auto" else precision,
            int8_method=self._take(table.INT8_METHOD, defaults.int8_method),
            prepack_weights=self._take(table.PREPACK_WEIGHTS, defaults.prepack_weights),
            device=self._take(table.DEVICE, defaults.device),
            cpus=self._take(table.CPUS, defaults.cpus),
            threads=self._take(table.THREADS, defaults.threads),
            revision=self._take(table.REVISION, defaults.revision),
            code_revision=self._take(table.CODE_REVISION, defaults.code_revision),
            pooling=self._take(table.POOLING, defaults.pooling),
            normalize=self._take(table.NORMALIZE, defaults.normalize),
            max_length=self._take(table.MAX_LENGTH, defaults.max_length),
            prompts=self._take(table.PROMPTS, defaults.prompts),
            default_prompt_name=self._take(table.DEFAULT_PROMPT_NAME, defaults.default_prompt_name),
            trust_remote_code=self._take(table.TRUST_REMOTE_CODE, defaults.trust_remote_code),
            overlong=self._take(table.OVERLONG, defaults.overlong),
            task=self._take(table.TASK, defaults.task),
            token_ids=self._take(table.TOKEN_ID_POLICY, defaults.token_ids),
            batch=self._batch(defaults.batch),
        )

    def _batch(self, defaults: BatchLimits) -> BatchLimits:
        limits = BatchLimits(
            max_batch_size=self._take(table.MAX_BATCH_SIZE, defaults.max_batch_size),
            min_batch_size=self._take(table.MIN_BATCH_SIZE, defaults.min_batch_size),
            max_wait_time_ms=self._take(table.MAX_WAIT_TIME_MS, defaults.max_wait_time_ms),
            dynamic=self._take(table.ENABLE_DYNAMIC_BATCHING, defaults.dynamic),
        )
        node = self._nodes.get(table.MIN_BATCH_SIZE.name) or self._nodes.get(table.MAX_BATCH_SIZE.name)
        if node is not None and limits.min_batch_size > limits.max_batch_size:
            bounds = f"min_batch_size is {limits.min_batch_size} and max_batch_size {limits.max_batch_size}"
            self._complain(node.at, f"in {_shown(self._alias.key)} {bounds}; the first must not exceed the second")
        return limits

    def _take(self, key: EntryKey[T], default: T) -> T:
        node = self._nodes.get(key.name)
        if node is None:
            return default
        try:
            return key.kind.check(node.value)
        except WrongValueError as error:
            written = _shown(self._document.text[node.at : node.end], quoted=False)
            self._complain(node.at, f"{_shown(self._alias.key)} has {key.name} = {written}; {error}")
            return default

    def _complain(self, at: int, text: str) -> None:
        self._problems.append(_sentence(self._document, at, text))


def _sentence(document: Document, at: int, text: str) -> str:
    stop = "" if text.endswith(("?", ".")) else "."
    return f"{MAPPING_NAME} ({document.where(at)}): {text}{stop}"


def _syntax_sentence(document: Document, mistake: JsonMistakeError) -> str:
    if document.text.strip() == "{" and not document.is_file:
        # docker --env-file and systemd's EnvironmentFile pass on the first line of JSON over many lines.
        return (
            f"{MAPPING_NAME} ({document.label}) is only '{{'. Whatever set it reads one line per variable:"
            " write the JSON on one line there, or let this program read the .env file itself."
        )
    excerpt = document.excerpt(mistake.at)
    near = f" Near: {excerpt}" if excerpt else ""
    return f"{MAPPING_NAME} ({document.where(mistake.at)}) is not valid JSON: {mistake.message}.{near}"


def _shown(text: str, *, quoted: bool = True) -> str:
    flat = " ".join(text.split())
    flat = flat if len(flat) <= _SHOWN_CHARS else flat[: _SHOWN_CHARS - 1] + "…"
    return repr(flat) if quoted else flat
