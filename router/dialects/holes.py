"""Puts inputs that were wrong already in the body back into an answer, as rows that have an error. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from emb_model_provider.errors import RequestError
from emb_model_provider.messages.link import Encoded, InputError, SparseRows, TokenVectors
from router.requests import EncodeResult


def with_holes(result: EncodeResult, holes: Mapping[int, RequestError]) -> EncodeResult:
    """Return the result with a row of zeros and an error at each index of ``holes``, which count in the request."""
    parts = list(_spread(result.parts, holes))
    truncated: list[int] = []
    offset = 0
    for part in parts:
        truncated.extend(offset + row for row in part.truncated)
        offset += len(part.tokens)
    return result.replace(parts=tuple(parts), truncated=tuple(truncated))


def _spread(parts: tuple[Encoded, ...], holes: Mapping[int, RequestError]) -> Iterator[Encoded]:
    index = 0
    for part in parts:
        begin = 0
        for row in range(len(part.tokens)):
            if index in holes:
                if row > begin:
                    yield _rows(part, begin, row)
                begin = row
            while index in holes:
                yield _hole(part, holes[index])
                index += 1
            index += 1
        yield part if begin == 0 else _rows(part, begin, len(part.tokens))
    while index in holes:
        yield _hole(parts[-1], holes[index])
        index += 1


def _hole(like: Encoded, error: RequestError) -> Encoded:
    sparse, tokens = like.sparse, like.token_vectors
    return Encoded(
        vectors=bytes(4 * like.dimension),
        dimension=like.dimension,
        tokens=(0,),
        sparse=SparseRows(bytes(8), b"", b"") if sparse else None,
        token_vectors=TokenVectors(b"", tokens.dimension, (0,)) if tokens else None,
        errors=(InputError(0, error.status, error.kind, error.code, error.message),),
    )


def _rows(part: Encoded, begin: int, end: int) -> Encoded:
    """Return rows ``begin`` up to ``end`` as a part of their own."""
    row_bytes = 4 * part.dimension
    return part.replace(
        vectors=part.vectors[begin * row_bytes : end * row_bytes],
        tokens=part.tokens[begin:end],
        truncated=tuple(row - begin for row in part.truncated if begin <= row < end),
        original_tokens=part.original_tokens[begin:end],
        sparse=_sparse_rows(part.sparse, begin, end) if part.sparse else None,
        token_vectors=_token_rows(part.token_vectors, begin, end) if part.token_vectors else None,
        errors=tuple(error.replace(index=error.index - begin) for error in part.errors if begin <= error.index < end),
    )


def _sparse_rows(rows: SparseRows, begin: int, end: int) -> SparseRows:
    offsets = memoryview(rows.offsets).cast("I")
    first, last = offsets[begin], offsets[end]
    moved = b"".join((offset - first).to_bytes(4, "little") for offset in offsets[begin : end + 1])
    return SparseRows(moved, rows.indices[4 * first : 4 * last], rows.values[4 * first : 4 * last])


def _token_rows(rows: TokenVectors, begin: int, end: int) -> TokenVectors:
    row_bytes = 4 * rows.dimension
    first, last = sum(rows.counts[:begin]), sum(rows.counts[:end])
    return TokenVectors(rows.vectors[first * row_bytes : last * row_bytes], rows.dimension, rows.counts[begin:end])
