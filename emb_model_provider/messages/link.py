"""What a router and a shard say to each other: texts one way, vectors, scores and tokens the other."""

from __future__ import annotations

from typing import Literal

from emb_model_provider.codec import Many, Wire
from emb_model_provider.modelmap import Overlong

#: What a model can make of an input. ``scores`` are a classification head's raw logits, one number per label.
Output = Literal["dense", "sparse", "multi_vector", "scores"]
#: Which queue a request joins: by its size, or as the client says.
Priority = Literal["auto", "interactive", "bulk"]


class Hello(Wire, frozen=True):
    """Shard to router, first on every link: who is answering here."""

    model_id: str
    generation: int


class Encode(Wire, frozen=True):
    """Router to shard: run the model on these. Exactly one of ``texts`` and ``token_ids`` is not empty.

    ``seconds`` is empty, or holds the second text of each pair (a reranker's documents, ``texts`` being the query
    again and again; empty for a text that stands alone among pairs). ``outputs`` names what is wanted, from one pass.
    ``dimensions`` cuts dense vectors and normalises them again; ``normalize`` ``None`` is as the model does.
    ``prompt`` is a text put before each input and wins over ``prompt_name``; both ``None`` is the model's default.
    ``max_tokens`` cuts or refuses earlier than the model would.
    ``first_index`` is where this slice begins in the client's request, so that errors name the client's index;
    ``labels`` is what they call each input where that is not ``input 0`` and so on. ``request_id`` is for logs.
    ``timeout_ms`` is how long the client still waits, counted from arrival; 0 is for ever. ``partial`` answers good
    inputs and names the bad ones instead of failing all. ``alone``: this one input may kill the process, so it works
    at nothing else meanwhile. ``traceparent`` is W3C Trace Context, or empty.
    """

    texts: Many[str]
    token_ids: Many[Many[int]] = ()
    dimensions: int | None = None
    prompt_name: str | None = None
    overlong: Overlong = "truncate"
    first_index: int = 0
    timeout_ms: int = 0
    seconds: Many[str] = ()
    outputs: Many[Output] = ("dense",)
    prompt: str | None = None
    normalize: bool | None = None
    max_tokens: int | None = None
    priority: Priority = "auto"
    partial: bool = False
    alone: bool = False
    traceparent: str = ""
    labels: Many[str] = ()
    request_id: str = ""

    @property
    def count(self) -> int:
        return len(self.texts) or len(self.token_ids)

    def label(self, index: int) -> str:
        """Return what errors call the input at ``index`` of this message."""
        return self.labels[index] if self.labels else f"input {self.first_index + index}"


class InputError(Wire, frozen=True):
    """Why one input of a ``partial`` request has no result; ``index`` counts within the message."""

    index: int
    status: int
    kind: str
    code: str | None
    message: str


class SparseRows(Wire, frozen=True):
    """Sparse vectors: row ``i`` is ``indices`` and ``values`` from ``offsets[i]`` up to ``offsets[i + 1]``.

    Little-endian: ``offsets`` (rows + 1) and ``indices`` uint32, ``values`` float32. Indices are ids of the vocabulary,
    ascending in each row.
    """

    offsets: bytes
    indices: bytes
    values: bytes


class TokenVectors(Wire, frozen=True):
    """One vector per token: little-endian float32, ``counts[i]`` rows of ``dimension`` numbers for input ``i``."""

    vectors: bytes
    dimension: int
    counts: Many[int]


class Timing(Wire, frozen=True):
    """Where a request's time in the shard went, in milliseconds; ``encode_ms`` is that of the batches it was in."""

    tokenize_ms: float = 0.0
    queue_ms: float = 0.0
    encode_ms: float = 0.0


class Encoded(Wire, frozen=True):
    """Shard to router: the results of one request.

    ``vectors`` holds ``len(tokens) x dimension`` little-endian float32 numbers, row by row in the order asked: dense
    vectors, or the raw logits of each label where ``scores`` were asked for; empty with ``dimension`` 0 where neither
    was. ``tokens`` are the tokens the model read of each input, ``original_tokens`` those before the cut (empty: the
    same), ``truncated`` the indexes of inputs that were cut. Rows of inputs in ``errors`` are zeros.
    """

    vectors: bytes
    dimension: int
    tokens: Many[int]
    truncated: Many[int] = ()
    original_tokens: Many[int] = ()
    sparse: SparseRows | None = None
    token_vectors: TokenVectors | None = None
    errors: Many[InputError] = ()
    timing: Timing = Timing()

    @property
    def count(self) -> int:
        return len(self.tokens)


class Failed(Wire, frozen=True):
    """Shard to router: one request has no vectors. ``message`` names the guilty input where one is known."""

    status: int
    kind: str
    code: str | None
    message: str
    param: str | None = None


class Cancel(Wire, frozen=True):
    """Router to shard: nobody waits for these any more; what has not started is never encoded."""

    request_ids: Many[int]


class Tokenize(Wire, frozen=True):
    """Router to shard: which tokens are these texts? Answered with ``Tokens`` or ``Failed``.

    ``alone`` is as that of ``Encode``.
    """

    texts: Many[str]
    add_special_tokens: bool = True
    prompt_name: str | None = None
    prompt: str | None = None
    request_id: str = ""
    alone: bool = False

    @property
    def count(self) -> int:
        return len(self.texts)


class Token(Wire, frozen=True):
    """One token; ``start`` and ``stop`` are character offsets in the text, ``None`` for what is not from it."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class Tokens(Wire, frozen=True):
    """Shard to router: the tokens of each text, before any cut."""

    rows: Many[Many[Token]]

    @property
    def count(self) -> int:
        return len(self.rows)


class Detokenize(Wire, frozen=True):
    """Router to shard: which texts are these token ids? Answered with ``Texts`` or ``Failed``.

    ``alone`` is as that of ``Encode``.
    """

    token_ids: Many[Many[int]]
    skip_special_tokens: bool = True
    request_id: str = ""
    alone: bool = False

    @property
    def count(self) -> int:
        return len(self.token_ids)


class Texts(Wire, frozen=True):
    """Shard to router: one text per list of ids."""

    texts: Many[str]

    @property
    def count(self) -> int:
        return len(self.texts)
