"""The keys that an entry of ``EMB_PROVIDER_MODEL_MAPPING`` may have, and what each of them takes.

``mapping`` reads entries by this table, ``reference`` prints it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Generic

from emb_model_provider.modelmap import (
    INT8_METHODS,
    OVERLONG_POLICIES,
    POOLINGS,
    PRECISIONS,
    TASKS,
    TOKEN_IDS,
    Int8Method,
    Overlong,
    Pooling,
    Precision,
    Source,
    Task,
    TokenIds,
)
from emb_model_provider.value_kinds import (
    Bilingual,
    Boolean,
    Choice,
    Integer,
    Kind,
    Number,
    T_co,
    Text,
)
from emb_model_provider.value_shapes import HUB, CpuSet, Device, FileName, Prompts


@dataclass(frozen=True, slots=True)
class EntryKey(Generic[T_co]):
    """One row of the table: a key that an entry may have. ``setting`` is where its default comes from."""

    name: str
    kind: Kind[T_co]
    help: Bilingual
    setting: str = ""


NAME: Final = EntryKey(
    "name",
    FileName(Bilingual("hub name or path", "模型仓库名称或路径")),
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
CODE_REVISION: Final = EntryKey(
    "code_revision",
    Text(Bilingual("branch, tag or commit", "分支、标签或提交")),
    Bilingual(
        "The revision of trusted code that its files name in another repository. Left out: main or master.",
        "模型文件指向另一个仓库的代码时，该代码的版本（须信任）。省略时为 main 或 master。",
    ),
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
    Bilingual(
        "The longest input in tokens, special tokens and prompt included. Left out: as the model says.",
        "输入的最大词元数，包括特殊词元和前缀。省略时由模型自身决定。",
    ),
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
