"""Length-prefixed frames on a stream, without I/O: the outermost layer of every socket between our processes.

A frame is a 16-byte big-endian header and a payload::

    magic "EP" | version u8 | kind u8 | payload length u32 | request id u64 | payload

The length is checked before anything is allocated, a frame of length zero is a whole frame, and a decoder that
has met one wrong byte refuses everything after it: there is no way to find the next frame in a broken stream.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from emb_model_provider.errors import ProtocolError

MAGIC: Final = b"EP"
VERSION: Final = 1
HEADER: Final = struct.Struct("!2sBBIQ")
#: 2,048 vectors of 4,096 float32 numbers are 32 MiB; nothing we send comes near twice that.
MAX_PAYLOAD_BYTES: Final = 64 * 1024 * 1024
_AT_ONCE: Final = 8


class Frame(NamedTuple):
    """One frame: what it is, which request it belongs to (0: none) and its bytes."""

    kind: int
    request_id: int
    payload: bytes


def pack_frame(kind: int, request_id: int, payload: bytes) -> bytes:
    """Return header and payload as one ``bytes``; raise ``ProtocolError`` for a payload no peer would take."""
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise ProtocolError(f"a frame of {len(payload)} bytes is over the limit of {MAX_PAYLOAD_BYTES}")
    return HEADER.pack(MAGIC, VERSION, kind, len(payload), request_id) + payload


class Outbox:
    """Frames that leave together: what is added before ``flush`` runs goes out in one write, in the order added.

    A write to a socket costs more than packing the frame, and wakes the peer; but a peer that waits until all of a
    crowd's frames are made has nothing to do meanwhile, so every ``_AT_ONCE`` leave by themselves. ``call_soon`` runs a
    function after those that are due already (an event loop's), ``write`` takes the bytes.
    """

    __slots__ = ("_call_soon", "_frames", "_write")

    def __init__(self, call_soon: Callable[[Callable[[], None]], object], write: Callable[[bytes], None]) -> None:
        self._call_soon = call_soon
        self._write = write
        self._frames: list[bytes] = []

    def add(self, frame: bytes) -> None:
        """Queue a frame and see to it that it leaves soon."""
        self._frames.append(frame)
        if len(self._frames) == 1:
            self._call_soon(self.flush)
        elif len(self._frames) == _AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Write what is queued, if anything is."""
        if self._frames:
            frames, self._frames = self._frames, []
            self._write(frames[0] if len(frames) == 1 else b"".join(frames))


class FrameDecoder:
    """Turns received bytes into frames, whatever the pieces they arrive in."""

    __slots__ = ("_broken", "_buffer", "_max_payload_bytes")

    def __init__(self, max_payload_bytes: int = MAX_PAYLOAD_BYTES) -> None:
        self._buffer = bytearray()
        self._max_payload_bytes = max_payload_bytes
        self._broken = False

    def feed(self, data: bytes | bytearray | memoryview) -> list[Frame]:
        """Take the next bytes and return the frames they complete, in order.

        Raises ``ProtocolError`` for bytes that are not our protocol, and for every call after that.
        """
        if self._broken:
            raise ProtocolError("the stream was already broken")
        self._buffer += data
        frames: list[Frame] = []
        start = 0
        try:
            while len(self._buffer) - start >= HEADER.size:
                kind, request_id, length = self._header(start)
                end = start + HEADER.size + length
                if len(self._buffer) < end:
                    break
                with memoryview(self._buffer) as view:
                    frames.append(Frame(kind, request_id, bytes(view[start + HEADER.size : end])))
                start = end
        except ProtocolError:
            self._broken = True
            self._buffer.clear()
            raise
        del self._buffer[:start]
        return frames

    def _header(self, start: int) -> tuple[int, int, int]:
        magic, version, kind, length, request_id = HEADER.unpack_from(self._buffer, start)
        if magic != MAGIC:
            raise ProtocolError(f"not a frame: it starts with {magic!r} instead of {MAGIC!r}")
        if version != VERSION:
            raise ProtocolError(f"the peer speaks version {version} of the protocol, this process {VERSION}")
        if length > self._max_payload_bytes:
            raise ProtocolError(f"a frame claims {length} bytes; the limit is {self._max_payload_bytes}")
        return kind, request_id, length
