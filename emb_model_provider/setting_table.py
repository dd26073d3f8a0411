"""The one table of settings: each ``EMB_PROVIDER_*`` name, its kind, default, meaning and an example.

``settings`` reads values by these rows and ``reference`` generates ``.env.example`` and both configuration pages
from them. A new setting is a row here and a field in ``settings``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final, Generic, Literal

from emb_model_provider.messages.configs import AccessLog, Intake, LogFormat
from emb_model_provider.modelmap import (
    INT8_METHODS,
    OVERLONG_POLICIES,
    POOLINGS,
    PRECISIONS,
    TASKS,
    TOKEN_IDS,
    BatchLimits,
    Int8Method,
    Overlong,
    Pooling,
    Precision,
    Source,
    Task,
    TokenIds,
)
from emb_model_provider.value_kinds import Bilingual, Boolean, Choice, Integer, Kind, Number, T_co, Text
from emb_model_provider.value_shapes import (
    HUB,
    AccessToken,
    ApiKeys,
    Device,
    Endpoint,
    FileName,
    Host,
    Origins,
    UrlPrefix,
)

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
SocketMode = Literal["0600", "0660", "0666"]

_BATCH: Final = BatchLimits()
_INTAKE: Final = Intake()
_NAME_SHAPE: Final = Bilingual("hub name or path", "模型仓库名称或路径")
_PATH_SHAPE: Final = Bilingual("path", "路径")
_JSON: Final = Bilingual("JSON", "JSON")
_MAPPING_SHAPE: Final = Bilingual("JSON object, may span lines", "JSON 对象，可跨多行")


class Section(Enum):
    """The groups of the table, in the order of the page."""

    MODEL = Bilingual("Models", "模型")
    COMPUTE = Bilingual("Device and precision", "设备与精度")
    BATCHING = Bilingual("Batching", "批处理")
    HUBS = Bilingual("Model hubs", "模型仓库")
    SERVER = Bilingual("Server", "服务")
    AROUND = Bilingual("Around the API", "API 周边")
    SUPERVISION = Bilingual("Keeping processes alive", "进程监护")
    LOGS = Bilingual("Logs", "日志")


@dataclass(frozen=True, slots=True)
class Setting(Generic[T_co]):
    """One row. ``unset`` describes a default that is no plain value; a ``secret`` is never shown in messages.

    With ``takes_empty`` a value that is present and empty is kept instead of meaning the default.
    """

    name: str
    section: Section
    kind: Kind[T_co]
    default: T_co
    help: Bilingual
    example: str
    unset: Bilingual | None = None
    secret: bool = False
    takes_empty: bool = False


def _optional(kind: Kind[T_co]) -> Kind[T_co | None]:
    """Return ``kind`` for a row whose default is "not set"; the type is all that changes."""
    return kind


_AS_MODEL: Final = Bilingual("as the model says", "由模型自身决定")
_NONE: Final = Bilingual("none", "无")
_CLIENT: Final = Bilingual("the hub client's own", "由客户端库决定")

MODEL_SOURCE: Final[Setting[Source]] = Setting(
    "EMB_PROVIDER_MODEL_SOURCE",
    Section.MODEL,
    HUB,
    "auto",
    Bilingual("Where models come from. See “How `auto` chooses the source”.", "模型的来源。见“`auto` 如何选择来源”。"),
    "modelscope",
)
MODEL_NAME: Final = Setting(
    "EMB_PROVIDER_MODEL_NAME",
    Section.MODEL,
    FileName(_NAME_SHAPE),
    "",
    Bilingual(
        "The one model to serve: its name on the hub, or a directory. Clients call it by this name; a directory by its"
        " last part. Ignored where a mapping is set.",
        "要提供服务的单个模型：仓库中的名称，或本地目录。客户端用该名称调用；若为目录，则用目录名调用。设置了模型映射时忽略此项。",
    ),
    "iic/nlp_gte_sentence-embedding_chinese-base",
    Bilingual("the embedded all-MiniLM-L6-v2", "内置的 all-MiniLM-L6-v2"),
)
MODEL_MAPPING: Final = Setting(
    "EMB_PROVIDER_MODEL_MAPPING",
    Section.MODEL,
    Text(_MAPPING_SHAPE, _JSON),
    "",
    Bilingual(
        "Several models at once: an object of aliases, each with the keys described under “Mapping entries”.",
        "同时提供多个模型：以别名为键的 JSON 对象，每一项可用的键见“映射条目”。",
    ),
    '{"chinese": {"name": "iic/nlp_gte_sentence-embedding_chinese-base"}}',
    _NONE,
)
MODEL_REVISION: Final = Setting(
    "EMB_PROVIDER_MODEL_REVISION",
    Section.MODEL,
    Text(Bilingual("branch, tag or commit", "分支、标签或提交")),
    "",
    Bilingual("The revision to download.", "要下载的版本。"),
    "v1.1.0",
    Bilingual("main or master, as the hub calls it", "main 或 master，视仓库而定"),
)
POOLING: Final[Setting[Pooling | None]] = Setting(
    "EMB_PROVIDER_POOLING",
    Section.MODEL,
    _optional(Choice(POOLINGS)),
    None,
    Bilingual(
        "How token vectors become one vector, for a model that does not say so itself. Only without a mapping.",
        "如何将各词元的向量合成一个向量，用于自身未作说明的模型。仅在未设置模型映射时有效。",
    ),
    "cls",
    _AS_MODEL,
)
NORMALIZE: Final = Setting(
    "EMB_PROVIDER_NORMALIZE",
    Section.MODEL,
    _optional(Boolean()),
    None,
    Bilingual(
        "Whether vectors are scaled to length 1. Only without a mapping.",
        "是否将向量归一化为单位长度。仅在未设置模型映射时有效。",
    ),
    "true",
    _AS_MODEL,
)
MAX_LENGTH: Final = Setting(
    "EMB_PROVIDER_MAX_LENGTH",
    Section.MODEL,
    _optional(Integer(1, 1_048_576)),
    None,
    Bilingual(
        "The longest input in tokens, special tokens and prompt included. Only without a mapping.",
        "输入的最大词元数，包括特殊词元和前缀。仅在未设置模型映射时有效。",
    ),
    "512",
    _AS_MODEL,
)
TASK: Final[Setting[Task | None]] = Setting(
    "EMB_PROVIDER_TASK",
    Section.MODEL,
    _optional(Choice(TASKS)),
    None,
    Bilingual(
        "What the model is for, where its files do not say it or say it wrongly. Only without a mapping.",
        "模型的用途，用于模型文件未说明或说明有误的情况。仅在未设置模型映射时有效。",
    ),
    "rerank",
    _AS_MODEL,
)
OVERLONG: Final[Setting[Overlong]] = Setting(
    "EMB_PROVIDER_OVERLONG",
    Section.MODEL,
    Choice(OVERLONG_POLICIES),
    "truncate",
    Bilingual(
        "What happens to a text longer than the model takes: `truncate` cuts it on the side that its tokenizer prefers,"
        " `end` and `start` there, and a header says so; `error` refuses it.",
        "文本超过模型最大长度时的处理方式：`truncate` 在分词器默认的一侧截断，`end`、`start` 在指定的一侧截断，"
        "均在响应头中注明；`error` 拒绝请求。",
    ),
    "error",
)
TOKEN_ID_POLICY: Final[Setting[TokenIds]] = Setting(
    "EMB_PROVIDER_TOKEN_IDS",
    Section.MODEL,
    Choice(TOKEN_IDS),
    "native",
    Bilingual(
        "Whose ids an input of token ids holds: `native`, the model's own; `cl100k`, those that LangChain sends unless"
        " told otherwise, decoded with tiktoken; `reject` refuses such inputs.",
        "词元 ID 形式的输入属于哪个词表：`native` 为模型自身词表；`cl100k` 为 LangChain 默认发送的 OpenAI 词表"
        "（需要 tiktoken）；`reject` 拒绝此类输入。",
    ),
    "cl100k",
)

DEVICE: Final = Setting(
    "EMB_PROVIDER_DEVICE",
    Section.COMPUTE,
    Device(),
    "auto",
    Bilingual(
        "Where models compute; `auto` takes a GPU where there is one.", "计算设备；`auto` 表示有 GPU 时使用 GPU。"
    ),
    "cuda:0",
)
MODEL_PRECISION: Final[Setting[Precision]] = Setting(
    "EMB_PROVIDER_MODEL_PRECISION",
    Section.COMPUTE,
    Choice(PRECISIONS),
    "auto",
    Bilingual("The number format of the weights. See “Precision”.", "权重的数值格式，见“精度”。"),
    "fp16",
)
ENABLE_QUANTIZATION: Final = Setting(
    "EMB_PROVIDER_ENABLE_QUANTIZATION",
    Section.COMPUTE,
    _optional(Boolean()),
    None,
    Bilingual(
        "`true` makes `auto` precision mean int8. See “Precision”.", "设为 `true` 时，精度 `auto` 即为 int8，见“精度”。"
    ),
    "true",
    Bilingual("not set", "未设置"),
)
INT8_METHOD: Final[Setting[Int8Method]] = Setting(
    "EMB_PROVIDER_INT8_METHOD",
    Section.COMPUTE,
    Choice(INT8_METHODS),
    "dynamic",
    Bilingual(
        "How int8 computes on a CPU: `dynamic` is faster than fp32, `weight-only` is nearer to it. See “Precision”.",
        "int8 在 CPU 上的计算方式：`dynamic` 比 fp32 快，`weight-only` 更接近 fp32。见“精度”。",
    ),
    "weight-only",
)
PREPACK_WEIGHTS: Final = Setting(
    "EMB_PROVIDER_PREPACK_WEIGHTS",
    Section.COMPUTE,
    _optional(Boolean()),
    None,
    Bilingual(
        "Whether a model on a CPU keeps a second copy of its matrices in the order the processor wants (not in int8"
        " and int4): short texts become faster, the copy is not shared between processes.",
        "模型在 CPU 上是否另存一份按处理器偏好排列的矩阵（int8、int4 除外）：短文本更快，但这份副本不在进程间共享。",
    ),
    "false",
    Bilingual("up to 64 MiB of them", "矩阵不超过 64 MiB 时"),
)

MAX_BATCH_SIZE: Final = Setting(
    "EMB_PROVIDER_MAX_BATCH_SIZE",
    Section.BATCHING,
    Integer(1, 4096),
    _BATCH.max_batch_size,
    Bilingual(
        "The most texts encoded together; time and tokens bound a batch, too.",
        "一批最多合并编码的文本数；时间与词元数同样限制一批。",
    ),
    "64",
)
ENABLE_DYNAMIC_BATCHING: Final = Setting(
    "EMB_PROVIDER_ENABLE_DYNAMIC_BATCHING",
    Section.BATCHING,
    Boolean(),
    _BATCH.dynamic,
    Bilingual("Whether texts of different requests share a batch.", "是否把不同请求的文本合并为一批。"),
    "false",
)
MAX_WAIT_TIME_MS: Final = Setting(
    "EMB_PROVIDER_MAX_WAIT_TIME_MS",
    Section.BATCHING,
    Number(0, 10_000),
    _BATCH.max_wait_time_ms,
    Bilingual(
        "How long a batch below its minimal size waits for more texts, in milliseconds."
        " With a minimum of 1 an idle device never waits.",
        "未达到最小批大小时等待更多文本的最长时间（毫秒）。最小批大小为 1 时，空闲的设备从不等待。",
    ),
    "50",
)
MIN_BATCH_SIZE: Final = Setting(
    "EMB_PROVIDER_MIN_BATCH_SIZE",
    Section.BATCHING,
    Integer(1, 4096),
    _BATCH.min_batch_size,
    Bilingual(
        "How many texts a batch waits for; at most the maximal batch size. Ignored without dynamic batching.",
        "一批开始编码前希望凑齐的文本数，不得大于最大批大小。关闭动态批处理时忽略此项。",
    ),
    "4",
)

HUGGINGFACE_ENDPOINT: Final = Setting(
    "EMB_PROVIDER_HUGGINGFACE_ENDPOINT",
    Section.HUBS,
    Endpoint(),
    "",
    Bilingual("A HuggingFace mirror.", "HuggingFace 镜像地址。"),
    "https://huggingface.example.com",
    _CLIENT,
)
MODELSCOPE_ENDPOINT: Final = Setting(
    "EMB_PROVIDER_MODELSCOPE_ENDPOINT",
    Section.HUBS,
    Endpoint(),
    "",
    Bilingual("A ModelScope mirror, with its scheme.", "ModelScope 镜像地址，须包含 http:// 或 https://。"),
    "https://modelscope.example.com",
    _CLIENT,
)
HUGGINGFACE_TOKEN: Final = Setting(
    "EMB_PROVIDER_HUGGINGFACE_TOKEN",
    Section.HUBS,
    AccessToken(),
    "",
    Bilingual("The access token for private models on HuggingFace.", "HuggingFace 私有模型的访问令牌。"),
    "hf_...",
    _NONE,
    secret=True,
)
MODELSCOPE_TOKEN: Final = Setting(
    "EMB_PROVIDER_MODELSCOPE_TOKEN",
    Section.HUBS,
    AccessToken(),
    "",
    Bilingual("The access token for private models on ModelScope.", "ModelScope 私有模型的访问令牌。"),
    "ms-...",
    _NONE,
    secret=True,
)
HUGGINGFACE_CACHE_DIR: Final = Setting(
    "EMB_PROVIDER_HUGGINGFACE_CACHE_DIR",
    Section.HUBS,
    FileName(_PATH_SHAPE),
    "",
    Bilingual(
        "Where HuggingFace models are kept. The same directory as `HF_HUB_CACHE`, the one that holds `models--…`.",
        "HuggingFace 模型的缓存目录，等同于 `HF_HUB_CACHE`，即直接存放 `models--…` 的目录。",
    ),
    "/data/huggingface/hub",
    _CLIENT,
)
MODELSCOPE_CACHE_DIR: Final = Setting(
    "EMB_PROVIDER_MODELSCOPE_CACHE_DIR",
    Section.HUBS,
    FileName(_PATH_SHAPE),
    "",
    Bilingual(
        "Where ModelScope models are kept. The same directory as `MODELSCOPE_CACHE`, the one that holds `models/`.",
        "ModelScope 模型的缓存目录，等同于 `MODELSCOPE_CACHE`，即 `models/` 的上级目录。",
    ),
    "/data/modelscope",
    _CLIENT,
)
HUGGINGFACE_TRUST_REMOTE_CODE: Final = Setting(
    "EMB_PROVIDER_HUGGINGFACE_TRUST_REMOTE_CODE",
    Section.HUBS,
    Boolean(),
    False,  # noqa: FBT003 (the default column of a table)
    Bilingual(
        "Whether Python code inside HuggingFace models may run. It runs with all rights of this server.",
        "是否允许运行 HuggingFace 模型自带的 Python 代码。这些代码拥有本服务的全部权限。",
    ),
    "true",
)
MODELSCOPE_TRUST_REMOTE_CODE: Final = Setting(
    "EMB_PROVIDER_MODELSCOPE_TRUST_REMOTE_CODE",
    Section.HUBS,
    Boolean(),
    False,  # noqa: FBT003 (the default column of a table)
    Bilingual(
        "The same for ModelScope. The GTE and CoROM models need no code of their own.",
        "同上，用于 ModelScope。GTE 与 CoROM 模型不需要自带代码。",
    ),
    "true",
)
OFFLINE: Final = Setting(
    "EMB_PROVIDER_OFFLINE",
    Section.HUBS,
    Boolean(),
    False,  # noqa: FBT003 (the default column of a table)
    Bilingual(
        "Serve from the caches only and send no request to any hub.", "仅使用本地缓存，不向任何模型仓库发送请求。"
    ),
    "true",
)

HOST: Final = Setting(
    "EMB_PROVIDER_HOST",
    Section.SERVER,
    Host(),
    "127.0.0.1",
    Bilingual(
        "The address to listen on; `0.0.0.0` for every IPv4 address, `::` for every IPv6 and IPv4 address, which "
        "call for API keys.",
        "监听地址；`0.0.0.0` 表示所有 IPv4 地址，`::` 表示所有 IPv6 和 IPv4 地址，此时应设置 API 密钥。",
    ),
    "0.0.0.0",  # noqa: S104 (an example in the documentation, not a default)
)
PORT: Final = Setting(
    "EMB_PROVIDER_PORT",
    Section.SERVER,
    Integer(0, 65535),
    9000,
    Bilingual(
        "The port to listen on; 0 takes any free one and prints it.", "监听端口；0 表示任选一个空闲端口并打印出来。"
    ),
    "8080",
)
API_KEYS: Final = Setting(
    "EMB_PROVIDER_API_KEYS",
    Section.SERVER,
    ApiKeys(),
    (),
    Bilingual(
        "Clients must send one of these as `Authorization: Bearer …`. Without any, everyone may ask.",
        "客户端须以 `Authorization: Bearer …` 发送其中之一。未设置时任何人都可访问。",
    ),
    "key-for-search,key-for-batch",
    _NONE,
    secret=True,
)
API_KEYS_FILE: Final = Setting(
    "EMB_PROVIDER_API_KEYS_FILE",
    Section.SERVER,
    FileName(_PATH_SHAPE),
    "",
    Bilingual(
        "A file with more keys, one a line; empty lines and those that begin with `#` are left out. Nobody but you"
        " should be able to read it (`chmod 600`).",
        "存放更多密钥的文件，每行一个；空行和以 `#` 开头的行会被忽略。应只有你本人可读（`chmod 600`）。",
    ),
    "/etc/emb-provider/keys",
    _NONE,
)
READY_WAIT_S: Final = Setting(
    "EMB_PROVIDER_READY_WAIT_S",
    Section.SERVER,
    Number(0, 3600),
    30.0,
    Bilingual(
        "How long a request waits for a model that is still loading before it is answered with 503, in seconds.",
        "模型仍在加载时，请求返回 503 之前最多等待的秒数。",
    ),
    "60",
)
REQUEST_TIMEOUT_S: Final = Setting(
    "EMB_PROVIDER_REQUEST_TIMEOUT_S",
    Section.SERVER,
    Number(0, 86400),
    # The official clients' own: after it nobody listens any more.
    600.0,
    Bilingual(
        "How long a request may take before it is answered with 504 and taken back from its model, in seconds; "
        "0: for ever.",
        "单个请求的最长处理时间（秒），超过则返回 504 并从模型撤回；0 表示不限。",
    ),
    "60",
)
MAX_REQUEST_MB: Final = Setting(
    "EMB_PROVIDER_MAX_REQUEST_MB",
    Section.SERVER,
    Integer(1, 1024),
    64,
    Bilingual(
        "The largest request body in MiB; larger ones are answered with 413.",
        "请求体的大小上限（MiB），超过则返回 413。",
    ),
    "16",
)
MAX_INPUTS: Final = Setting(
    "EMB_PROVIDER_MAX_INPUTS",
    Section.SERVER,
    Integer(0, 1_000_000),
    _INTAKE.max_inputs,
    Bilingual(
        "The most inputs in one request; more are answered with 400. 0: no limit.",
        "单个请求的输入条数上限，超过则返回 400；0 表示不限。",
    ),
    "256",
)
MAX_INPUT_CHARS: Final = Setting(
    "EMB_PROVIDER_MAX_INPUT_CHARS",
    Section.SERVER,
    Integer(0, 1_000_000_000),
    _INTAKE.max_input_chars,
    Bilingual(
        "The most characters of one input, counted before anything is tokenised; longer ones are answered with 400."
        " 0: no limit.",
        "单条输入的字符数上限（在分词之前计算），超过则返回 400；0 表示不限。",
    ),
    "100000",
)
MAX_REQUEST_TOKENS: Final = Setting(
    "EMB_PROVIDER_MAX_REQUEST_TOKENS",
    Section.SERVER,
    Integer(0, 1_000_000_000),
    _INTAKE.max_request_tokens,
    Bilingual(
        "The most tokens of all inputs of one request, estimated before anything is tokenised; more are answered with"
        " 400. 0: no limit.",
        "单个请求全部输入的词元总数上限（分词前估算），超过则返回 400；0 表示不限。",
    ),
    "300000",
)
MAX_QUEUE_S: Final = Setting(
    "EMB_PROVIDER_MAX_QUEUE_S",
    Section.SERVER,
    Number(0, 3600),
    _INTAKE.max_queue_s,
    Bilingual(
        "How many seconds of work one model may have before it, at its measured rate; beyond that, requests are"
        " answered with 429 and `Retry-After`. One client alone gets two thirds of it. 0: no limit.",
        "每个模型最多积压多少秒的工作量（按实测速度计算），超过则返回 429 和 `Retry-After`。"
        "单个客户端最多占用其中三分之二。0 表示不限。",
    ),
    "10",
)
MAX_QUEUE_MB: Final = Setting(
    "EMB_PROVIDER_MAX_QUEUE_MB",
    Section.SERVER,
    Integer(0, 1_048_576),
    _INTAKE.max_queue_bytes // (1024 * 1024),
    Bilingual(
        "How many MiB of request bodies may be in the server at once, and as much again of answers that nobody has read"
        " yet; beyond that, requests are answered with 429. 0: no limit.",
        "服务器中同时存在的请求体总大小上限（MiB），客户端尚未读取的回答另有同样的上限；超过则返回 429；0 表示不限。",
    ),
    "128",
)
MAX_CONNECTIONS: Final = Setting(
    "EMB_PROVIDER_MAX_CONNECTIONS",
    Section.SERVER,
    Integer(1, 1_000_000),
    _INTAKE.max_connections,
    Bilingual(
        "The most open client connections; further ones are answered with 503 and closed. Never more than the process's"
        " limit of open files allows.",
        "客户端连接数上限，超过的连接会收到 503 并被关闭。不会超过进程可打开文件数所允许的数量。",
    ),
    "1000",
)
QUARANTINE_S: Final = Setting(
    "EMB_PROVIDER_QUARANTINE_S",
    Section.SERVER,
    Number(0, 86400),
    _INTAKE.quarantine_s,
    Bilingual(
        "For how many seconds an input is refused with 422 that has killed its model's process twice; 0: never.",
        "某条输入两次导致模型进程崩溃后，在多少秒内以 422 拒绝它；0 表示不拒绝。",
    ),
    "3600",
)
SHUTDOWN_GRACE_S: Final = Setting(
    "EMB_PROVIDER_SHUTDOWN_GRACE_S",
    Section.SERVER,
    Number(0, 3600),
    30.0,
    Bilingual(
        "How long requests in flight may take to finish at shutdown, in seconds.",
        "停止服务时，等待在途请求完成的最长秒数。",
    ),
    "60",
)
RUN_DIR: Final = Setting(
    "EMB_PROVIDER_RUN_DIR",
    Section.SERVER,
    FileName(_PATH_SHAPE),
    "",
    Bilingual(
        "The directory for this server's private sockets: of this user, not writable by others, held by one server at "
        "a time. `emb-provider status` looks there.",
        "存放本服务私有套接字的目录：须属于当前用户、他人不可写，同一时间仅供一个服务使用。"
        "`emb-provider status` 会在此查找服务。",
    ),
    "/run/emb-provider",
    Bilingual(
        "a fresh one in `XDG_RUNTIME_DIR` or the temporary directory",
        "每次启动在 `XDG_RUNTIME_DIR` 或临时目录中新建",
    ),
)
RECYCLE_RSS_MB: Final = Setting(
    "EMB_PROVIDER_RECYCLE_RSS_MB",
    Section.SERVER,
    Integer(0, 16 * 1024 * 1024),
    0,
    Bilingual(
        "A model's process that holds more memory than this (MiB, resident) is replaced by a fresh one, which takes "
        "over once it is ready; 0: never.",
        "模型进程的常驻内存超过此值（MiB）时，以新进程替换；新进程就绪后才接手。0 表示不替换。",
    ),
    "8192",
)
RECYCLE_AGE_S: Final = Setting(
    "EMB_PROVIDER_RECYCLE_AGE_S",
    Section.SERVER,
    Number(0, 31_536_000),
    0.0,
    Bilingual(
        "A model's process that is older than this is replaced in the same way, in seconds; 0: never.",
        "模型进程的运行时间超过此值（秒）时，以同样方式替换；0 表示不替换。",
    ),
    "86400",
)

STARTUP_TIMEOUT_S: Final = Setting(
    "EMB_PROVIDER_STARTUP_TIMEOUT_S",
    Section.SUPERVISION,
    Number(0, 86_400),
    900.0,
    Bilingual(
        "How long a model may load without any progress before its process is ended and started again, in seconds; a"
        " download that moves is progress. 0: for ever.",
        "模型加载过程中允许毫无进展的最长秒数，超过则结束并重启其进程；仍在推进的下载算作有进展。0 表示不限。",
    ),
    "300",
)
BATCH_TIMEOUT_S: Final = Setting(
    "EMB_PROVIDER_BATCH_TIMEOUT_S",
    Section.SUPERVISION,
    Number(0, 86_400),
    120.0,
    Bilingual(
        "How long one batch may take before the model's process counts as stuck and is replaced, in seconds. Where the"
        " start finds that the model's longest text takes more than a quarter of that, the limit is four times what"
        " that text takes. 0: for ever.",
        "一个批次的最长处理秒数，超过则认为模型进程卡死并将其替换。若启动时测得最长文本的耗时超过此值的四分之一，"
        "则上限改为该耗时的四倍。0 表示不限。",
    ),
    "600",
)
SILENCE_TIMEOUT_S: Final = Setting(
    "EMB_PROVIDER_SILENCE_TIMEOUT_S",
    Section.SUPERVISION,
    Number(0, 86_400),
    30.0,
    Bilingual(
        "How long a process that serves may give no sign of life before it is replaced, in seconds; one that is still "
        "starting, how long it may be stopped by a signal. A starting process of which no thread runs, as where a disk "
        "or a lock holds it, has ten times as long, 150 s at least. 0: for ever.",
        "正在服务的进程毫无响应、或正在启动的进程被信号停住的最长秒数，超过则将其替换。启动中的进程若没有任何线程在运行"
        "（例如被磁盘或锁阻塞），时限为此值的十倍，至少 150 秒。0 表示不限。",
    ),
    "60",
)
RESTART_DELAY_S: Final = Setting(
    "EMB_PROVIDER_RESTART_DELAY_S",
    Section.SUPERVISION,
    Number(0.01, 3600),
    0.5,
    Bilingual(
        "How long it takes at most until a model's process that died is started again, in seconds; this doubles with"
        " each further death. It must not exceed the setting below.",
        "模型进程意外退出后，首次重启前的最长等待秒数；此后每次退出都会加倍。不得大于下一项的值。",
    ),
    "1",
)
RESTART_MAX_DELAY_S: Final = Setting(
    "EMB_PROVIDER_RESTART_MAX_DELAY_S",
    Section.SUPERVISION,
    Number(0.01, 86_400),
    30.0,
    Bilingual("Where this delay stops doubling, in seconds.", "上述等待秒数的上限。"),
    "60",
)
RESTART_STABLE_S: Final = Setting(
    "EMB_PROVIDER_RESTART_STABLE_S",
    Section.SUPERVISION,
    Number(0, 86_400),
    60.0,
    Bilingual(
        "After serving for so long, in seconds, earlier deaths no longer count.",
        "连续正常服务达到此秒数后，不再计入先前的退出。",
    ),
    "300",
)
RESTART_LIMIT: Final = Setting(
    "EMB_PROVIDER_RESTART_LIMIT",
    Section.SUPERVISION,
    Integer(0, 10_000),
    5,
    Bilingual(
        "After more deaths than this within the period below, or as many failed starts in a row, a model counts as"
        " failed and is tried only now and then. 0: no limit.",
        "在下述时段内退出次数超过此值，或连续启动失败超过此值，则视为模型故障，此后仅偶尔重试。0 表示不限。",
    ),
    "10",
)
RESTART_PERIOD_S: Final = Setting(
    "EMB_PROVIDER_RESTART_PERIOD_S",
    Section.SUPERVISION,
    Number(1, 86_400),
    120.0,
    Bilingual("The period in which deaths are counted, in seconds.", "统计退出次数的时段（秒）。"),
    "600",
)
RESTART_PROBE_S: Final = Setting(
    "EMB_PROVIDER_RESTART_PROBE_S",
    Section.SUPERVISION,
    Number(0.01, 86_400),
    60.0,
    Bilingual(
        "How long a failed model is left alone before it is tried once, in seconds; up to ten times as long between"
        " later tries.",
        "故障模型首次重试前的等待秒数；之后的重试间隔最长为其十倍。",
    ),
    "300",
)

METRICS_NEED_KEY: Final = Setting(
    "EMB_PROVIDER_METRICS_NEED_KEY",
    Section.AROUND,
    Boolean(),
    True,  # noqa: FBT003 - a default
    Bilingual(
        "Whether `/metrics` asks for an API key, where there are any.",
        "设置了 API 密钥时，访问 `/metrics` 是否也需要密钥。",
    ),
    "false",
)
ACCESS_LOG: Final[Setting[AccessLog]] = Setting(
    "EMB_PROVIDER_ACCESS_LOG",
    Section.AROUND,
    Choice(("off", "combined", "json", "logfmt")),
    "off",
    Bilingual(
        "A line for each answered request, beside the other logs: client, status, time, request id, model, tokens;"
        " never a text.",
        "为每个已响应的请求写一行访问日志，与其他日志一同输出：客户端、状态码、耗时、请求 ID、模型、词元数；"
        "绝不含文本。",
    ),
    "combined",
)
CORS_ORIGINS: Final = Setting(
    "EMB_PROVIDER_CORS_ORIGINS",
    Section.AROUND,
    Origins(),
    (),
    Bilingual(
        "Origins whose web pages may call this server from a browser; `*` is any.",
        "允许从浏览器中调用本服务的网页来源（Origin）；`*` 表示任意来源。",
    ),
    "https://app.example.com,http://localhost:3000",
    _NONE,
)
URL_PREFIX: Final = Setting(
    "EMB_PROVIDER_URL_PREFIX",
    Section.AROUND,
    UrlPrefix(),
    "",
    Bilingual(
        "A path that stands before every route, for a proxy that does not take it off.",
        "置于所有路由之前的路径前缀，用于不会去掉该前缀的反向代理。",
    ),
    "/embeddings",
    _NONE,
)
TLS_CERT_FILE: Final = Setting(
    "EMB_PROVIDER_TLS_CERT_FILE",
    Section.AROUND,
    FileName(_PATH_SHAPE),
    "",
    Bilingual(
        "A PEM file with the certificate and those of its issuers: the port then speaks HTTPS (TLS 1.2 or newer)."
        " Read again at a reload.",
        "PEM 格式的证书文件（含证书链）：设置后端口使用 HTTPS（TLS 1.2 及以上）。重新加载配置时会再次读取。",
    ),
    "/etc/emb-provider/fullchain.pem",
    _NONE,
)
TLS_KEY_FILE: Final = Setting(
    "EMB_PROVIDER_TLS_KEY_FILE",
    Section.AROUND,
    FileName(_PATH_SHAPE),
    "",
    Bilingual("The PEM file of its private key.", "对应私钥的 PEM 文件。"),
    "/etc/emb-provider/key.pem",
    Bilingual("in the certificate's file", "与证书在同一文件中"),
)
UNIX_SOCKET: Final = Setting(
    "EMB_PROVIDER_UNIX_SOCKET",
    Section.AROUND,
    FileName(_PATH_SHAPE),
    "",
    Bilingual(
        "A Unix socket to listen on beside the port: `curl --unix-socket PATH http://localhost/v1/models`.",
        "除端口外同时监听的 Unix 套接字：`curl --unix-socket 路径 http://localhost/v1/models`。",
    ),
    "/run/emb-provider/api.sock",
    _NONE,
)
UNIX_SOCKET_MODE: Final[Setting[SocketMode]] = Setting(
    "EMB_PROVIDER_UNIX_SOCKET_MODE",
    Section.AROUND,
    Choice(("0600", "0660", "0666")),
    "0600",
    Bilingual(
        "Who may connect to it: this user, its group too, or everybody.",
        "谁可以连接该套接字：仅当前用户、同组用户，或所有用户。",
    ),
    "0660",
)
ROUTERS: Final = Setting(
    "EMB_PROVIDER_ROUTERS",
    Section.AROUND,
    Integer(1, 64),
    1,
    Bilingual(
        "How many processes speak HTTP, on the same port. One answers thousands of requests per second; more are for"
        " machines where that is the limit.",
        "处理 HTTP 的进程数，共用同一端口。单个进程每秒可响应数千请求；仅当它成为瓶颈时才需要更多。",
    ),
    "4",
)

LOG_LEVEL: Final[Setting[LogLevel]] = Setting(
    "EMB_PROVIDER_LOG_LEVEL",
    Section.LOGS,
    Choice(("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")),
    "INFO",
    Bilingual("The least severe events to write.", "记录的最低日志级别。"),
    "DEBUG",
)
LOG_FILE: Final = Setting(
    "EMB_PROVIDER_LOG_FILE",
    Section.LOGS,
    FileName(_PATH_SHAPE),
    "logs/emb_model_provider.log",
    Bilingual(
        "The rotated log file beside the terminal. Set but empty: no file.",
        "除终端之外写入的日志文件（自动轮转）。设为空值表示不写文件。",
    ),
    "/var/log/emb_model_provider.log",
    takes_empty=True,
)
LOG_FORMAT: Final[Setting[LogFormat]] = Setting(
    "EMB_PROVIDER_LOG_FORMAT",
    Section.LOGS,
    Choice(("plain", "json")),
    "plain",
    Bilingual(
        "One event per line, for people or for machines.", "每行一个事件：`plain` 便于阅读，`json` 便于程序处理。"
    ),
    "json",
)

#: Every row, in the order of the page: what the module defines is what there is.
SETTINGS: Final[tuple[Setting[object], ...]] = tuple(
    row for row in list(globals().values()) if isinstance(row, Setting)
)
NAMES: Final = frozenset(row.name for row in SETTINGS)
