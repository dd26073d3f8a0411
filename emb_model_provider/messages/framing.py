"""Every message's frame kind; a message as one frame, and back."""

from __future__ import annotations

from typing import Final

from emb_model_provider.codec import check_counts, decode, encode
from emb_model_provider.errors import ProtocolError
from emb_model_provider.frames import Frame, pack_frame
from emb_model_provider.messages.configs import RouterConfig, ShardConfig
from emb_model_provider.messages.link import Cancel, Detokenize, Encode, Encoded, Failed, Hello, Texts, Tokenize, Tokens
from emb_model_provider.messages.status import (
    Acquitted,
    Heartbeat,
    LoadFailed,
    LoadProgress,
    Progress,
    Quarantined,
    Ready,
    RestartShard,
    RouterReady,
    ShardTable,
)

Message = (
    Hello
    | Encode
    | Encoded
    | Failed
    | Cancel
    | Tokenize
    | Tokens
    | Detokenize
    | Texts
    | ShardConfig
    | RouterConfig
    | LoadProgress
    | Ready
    | LoadFailed
    | ShardTable
    | RouterReady
    | RestartShard
    | Progress
    | Heartbeat
    | Quarantined
    | Acquitted
)

_CLASSES: Final[dict[int, type[Message]]] = {
    1: Hello, 2: Encode, 4: Encoded, 5: Failed, 6: Cancel,
    7: Tokenize, 8: Tokens, 9: Detokenize, 10: Texts,
    32: ShardConfig, 33: RouterConfig, 34: LoadProgress, 35: Ready, 36: LoadFailed,
    37: ShardTable, 38: RouterReady, 39: RestartShard,
    40: Progress, 41: Heartbeat, 42: Quarantined, 43: Acquitted,
}  # fmt: skip
_KINDS: Final[dict[type[Message], int]] = {cls: kind for kind, cls in _CLASSES.items()}


def pack(message: Message, request_id: int = 0) -> bytes:
    """Return ``message`` as one frame; raise ``ProtocolError`` where its reader would have to break with its sender."""
    payload = encode(message)
    frame = pack_frame(_KINDS[type(message)], request_id, payload)
    check_counts(message, payload)
    return frame


def unpack(frame: Frame) -> Message:
    """Return the message in ``frame``; raise ``ProtocolError`` for an unknown kind or a wrong payload."""
    cls = _CLASSES.get(frame.kind)
    if cls is None:
        raise ProtocolError(f"unknown frame kind {frame.kind}")
    return decode(cls, frame.payload)
