"""Lets HuggingFace's client go on with a file whose connection breaks. Called by ``huggingface``.

It goes on after one that is closed or silent. One that is reset, as firewalls do it, counts as an error of another
kind for it, and the whole file would begin again. And it keeps what has come in pieces of 10 MiB: of a slow line that
breaks before each, or brings none before it is taken to hang, it would keep nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import httpx2
from huggingface_hub import constants, get_session

_PIECE_BYTES: Final = 256 * 1024


def go_on_after_resets() -> None:
    """Prepare the client that is used from now on; nothing changes where it is."""
    constants.DOWNLOAD_CHUNK_SIZE = _PIECE_BYTES
    hooks = get_session().event_hooks["response"]
    if _resumed not in hooks:
        hooks.append(_resumed)


def _resumed(response: httpx2.Response) -> None:
    if isinstance(response.stream, httpx2.SyncByteStream):
        response.stream = _Resumed(response.stream)


class _Resumed(httpx2.SyncByteStream):
    """The bytes of an answer, of which a reset ends as a connection that is closed too early."""

    def __init__(self, stream: httpx2.SyncByteStream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._stream
        except httpx2.ReadError as error:
            raise httpx2.RemoteProtocolError(str(error)) from error

    def close(self) -> None:
        self._stream.close()
