"""Turns the JSON of ``EMB_PROVIDER_MODEL_MAPPING`` into model specs, with the place of every mistake.

Owns the table of entry keys, which ``reference`` prints. ``settings`` is the caller; what an entry leaves out comes
from the spec it passes as ``defaults``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Generic, TypeVar

from emb_model_provider.dotenv_file import MAPPING_NAME
from emb_model_provider.errors import ConfigurationError
from emb_model_provider.modelmap import (
    INT8_METHODS,
    OVERLONG_POLICIES,
    POOLINGS,
    PRECISIONS,
    TASKS,
    TOKEN_IDS,
    BatchLimits,
    Int8Method,
    ModelSpec,
    Overlong,
    Pooling,
    Precision,
    Source,
    Task,
    TokenIds,
    is_model_id,
)
from emb_model_provider.positioned_json import Document, JsonMistakeError, Member, Node, Object, parse_json
from emb_model_provider.value_kinds import (
    Bilingual,
    Boolean,
    Choice,
    Integer,
    Kind,
    Number,
    T_co,
    Text,
    WrongValueError,
)
from emb_model_provider.value_shapes import HUB, CpuSet, Device, Prompts

T = TypeVar("T")
_SHOWN_CHARS: Final = 60
ALIAS_RULE: Final = (
    "1 to 128 of A-Z a-z 0-9 . _ - /, beginning with a letter or digit, without '..' and no '/' at the end"
)


@dataclass(frozen=True, slots=True)
class EntryKey(Generic[T_co]):
    """One row of the table: a key that an entry may have. ``setting`` is where its default comes from."""

    name: str
    kind: Kind[T_co]
    help: Bilingual
    setting: str = ""


NAME: Final = EntryKey(
    "name",
    Text(Bilingual("hub name or path", "模型仓库名称或路径")),
    Bilingual("The model's name on the hub, or a directory. Required.", "仓库中的模型名称，或本地目录。必填。"),
)
SOURCE: Final[EntryKey[Source]] = EntryKey(
    "source", HUB, Bilingual("Where it comes from.", "模型来源。"), "EMB_PROVIDER_MODEL_SOURCE"
)
PRECISION: Final[EntryKey[Precision]] = EntryKey(
    "precision",
    Choice(PRECISIONS),
    Bilingual("The number format of its weights.", "权重的数值格式。"),
    "EMB_PROVIDER_MODEL_PRECISION",
)
INT8_METHOD: Final[EntryKey[Int8Method]] = EntryKey(
    "int8_method",
    Choice(INT8_METHODS),
    Bilingual("How int8 computes on a CPU.", "int8 在 CPU 上的计算方式。"),
    "EMB_PROVIDER_INT8_METHOD",
)
PREPACK_WEIGHTS: Final = EntryKey(
    "prepack_weights",
    Boolean(),
    Bilingual("Whether its matrices are kept once more for speed.", "是否为提速另存一份矩阵。"),
    "EMB_PROVIDER_PREPACK_WEIGHTS",
)
DEVICE: Final = EntryKey("device", Device(), Bilingual("Where it computes.", "计算设备。"), "EMB_PROVIDER_DEVICE")
CPUS: Final = EntryKey(
    "cpus",
    CpuSet(),
    Bilingual(
        "The CPU cores it runs on. Left out: models share the cores.", "运行所用的 CPU 核。省略时各模型分享全部核。"
    ),
)
THREADS: Final = EntryKey(
    "threads",
    Integer(1, 1024),
    Bilingual("How many compute threads. Left out: one per core.", "计算线程数。省略时每核一个。"),
)
REVISION: Final = EntryKey(
    "revision",
    Text(Bilingual("branch, tag or commit", "分支、标签或提交")),
    Bilingual("The revision to download.", "要下载的版本。"),
    "EMB_PROVIDER_MODEL_REVISION",
)
POOLING: Final[EntryKey[Pooling]] = EntryKey(
    "pooling",
    Choice(POOLINGS),
    Bilingual(
        "How token vectors become one. Left out: as the model says.", "各词元向量的合并方式。省略时由模型自身决定。"
    ),
)
TASK: Final[EntryKey[Task]] = EntryKey(
    "task",
    Choice(TASKS),
    Bilingual("What the model is for. Left out: as its files say.", "模型的用途。省略时由模型文件决定。"),
)
NORMALIZE: Final = EntryKey(
    "normalize",
    Boolean(),
    Bilingual(
        "Whether vectors are scaled to length 1. Left out: as the model says.",
        "是否归一化为单位长度。省略时由模型自身决定。",
    ),
)
MAX_LENGTH: Final = EntryKey(
    "max_length",
    Integer(1, 1_048_576),
    Bilingual("The longest input in tokens. Left out: as the model says.", "输入的最大词元数。省略时由模型自身决定。"),
)
PROMPTS: Final = EntryKey(
    "prompts", Prompts(), Bilingual("Texts put before an input, by name.", "按名称给出的前缀文本，加在输入之前。")
)
DEFAULT_PROMPT_NAME: Final = EntryKey(
    "default_prompt_name",
    Text(Bilingual("name of a prompt", "前缀名称")),
    Bilingual("Which prompt is put before every input.", "默认加在每条输入之前的前缀。"),
)
TRUST_REMOTE_CODE: Final = EntryKey(
    "trust_remote_code",
    Boolean(),
    Bilingual(
        "Whether Python code inside the model may run. Left out: the setting of its hub.",
        "是否允许运行模型自带的 Python 代码。省略时取其仓库的全局设置。",
    ),
)
OVERLONG: Final[EntryKey[Overlong]] = EntryKey(
    "overlong",
    Choice(OVERLONG_POLICIES),
    Bilingual("What happens to a text that is too long.", "文本过长时的处理方式。"),
    "EMB_PROVIDER_OVERLONG",
)
TOKEN_ID_POLICY: Final[EntryKey[TokenIds]] = EntryKey(
    "token_ids",
    Choice(TOKEN_IDS),
    Bilingual("Whose token ids clients send.", "客户端发送的词元 ID 属于哪个词表。"),
    "EMB_PROVIDER_TOKEN_IDS",
)
MAX_BATCH_SIZE: Final = EntryKey(
    "max_batch_size",
    Integer(1, 4096),
    Bilingual("The most texts encoded together.", "一批最多合并编码的文本数。"),
    "EMB_PROVIDER_MAX_BATCH_SIZE",
)
MIN_BATCH_SIZE: Final = EntryKey(
    "min_batch_size",
    Integer(1, 4096),
    Bilingual("How many texts a batch waits for.", "一批开始编码前希望凑齐的文本数。"),
    "EMB_PROVIDER_MIN_BATCH_SIZE",
)
MAX_WAIT_TIME_MS: Final = EntryKey(
    "max_wait_time_ms",
    Number(0, 10_000),
    Bilingual("How long it waits for them, in milliseconds.", "为此等待的最长毫秒数。"),
    "EMB_PROVIDER_MAX_WAIT_TIME_MS",
)
ENABLE_DYNAMIC_BATCHING: Final = EntryKey(
    "enable_dynamic_batching",
    Boolean(),
    Bilingual("Whether texts of different requests share a batch.", "是否把不同请求的文本合并为一批。"),
    "EMB_PROVIDER_ENABLE_DYNAMIC_BATCHING",
)

#: Every key, in the order of the page: what the module defines is what there is.
ENTRY_KEYS: Final[tuple[EntryKey[object], ...]] = tuple(
    row for row in list(globals().values()) if isinstance(row, EntryKey)
)
_KEY_NAMES: Final = tuple(key.name for key in ENTRY_KEYS)


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
        if NAME.name not in self._nodes:
            self._complain(self._alias.at, f"{_shown(self._alias.key)} has no {NAME.name!r}, the model it stands for")

    def spec(self, defaults: ModelSpec, *, quantize: bool, place: Callable[[str], str]) -> ModelSpec:
        precision = self._take(PRECISION, defaults.precision)
        return replace(
            defaults,
            id=self._alias.key,
            name=place(self._take(NAME, "")),
            source=self._take(SOURCE, defaults.source),
            precision="int8" if quantize and precision == "auto" else precision,
            int8_method=self._take(INT8_METHOD, defaults.int8_method),
            prepack_weights=self._take(PREPACK_WEIGHTS, defaults.prepack_weights),
            device=self._take(DEVICE, defaults.device),
            cpus=self._take(CPUS, defaults.cpus),
            threads=self._take(THREADS, defaults.threads),
            revision=self._take(REVISION, defaults.revision),
            pooling=self._take(POOLING, defaults.pooling),
            normalize=self._take(NORMALIZE, defaults.normalize),
            max_length=self._take(MAX_LENGTH, defaults.max_length),
            prompts=self._take(PROMPTS, defaults.prompts),
            default_prompt_name=self._take(DEFAULT_PROMPT_NAME, defaults.default_prompt_name),
            trust_remote_code=self._take(TRUST_REMOTE_CODE, defaults.trust_remote_code),
            overlong=self._take(OVERLONG, defaults.overlong),
            task=self._take(TASK, defaults.task),
            token_ids=self._take(TOKEN_ID_POLICY, defaults.token_ids),
            batch=self._batch(defaults.batch),
        )

    def _batch(self, defaults: BatchLimits) -> BatchLimits:
        limits = BatchLimits(
            max_batch_size=self._take(MAX_BATCH_SIZE, defaults.max_batch_size),
            min_batch_size=self._take(MIN_BATCH_SIZE, defaults.min_batch_size),
            max_wait_time_ms=self._take(MAX_WAIT_TIME_MS, defaults.max_wait_time_ms),
            dynamic=self._take(ENABLE_DYNAMIC_BATCHING, defaults.dynamic),
        )
        node = self._nodes.get(MIN_BATCH_SIZE.name) or self._nodes.get(MAX_BATCH_SIZE.name)
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
