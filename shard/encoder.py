"""What the rest of the shard knows of a model: values, the ``Encoder`` seam, and the cut to fewer dimensions.

Called by ``engine``, ``main`` and every implementation below ``encoders/``. Knows numpy and nothing of torch,
so that the scheduler and the engine are testable in milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from emb_model_provider.messages import EncoderInfo

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Tokenized:
    """One input ready for the device.

    ``ids`` carry the model's special tokens and are cut to its length; ``original_tokens`` counts them before the
    cut. ``prompt_tokens`` leading ids belong to the prompt, which some models leave out of their pooling.
    ``type_ids`` is ``None`` where all are 0.
    """

    ids: tuple[int, ...]
    original_tokens: int
    prompt_tokens: int = 0
    type_ids: tuple[int, ...] | None = None

    @property
    def truncated(self) -> bool:
        """Whether the model sees less than it was given."""
        return self.original_tokens > len(self.ids)


class FatalDeviceError(Exception):
    """The device is in a state in which no further answer of this process can be trusted."""


class Encoder(Protocol):
    """A model that turns texts into vectors.

    ``tokenize``, ``accept_ids`` and ``resolve_prompt`` run in another thread than the rest; ``encode`` runs in as many
    threads at a time as ``lane.count_lanes`` says.
    """

    @property
    def info(self) -> EncoderInfo:
        """What the model is, as loaded."""
        ...

    def tokenize(self, texts: Sequence[str], *, prompt: str | None) -> list[Tokenized]:
        """Tokenise ``prompt + text`` as the model does; raise ``InvalidRequestError`` for what is no text."""
        ...

    def accept_ids(self, ids: Sequence[int]) -> Tokenized:
        """Take ids of the model's own vocabulary, with or without its special tokens around them.

        Raises ``InvalidRequestError`` that names an id out of range and the size of the vocabulary.
        """
        ...

    def resolve_prompt(self, prompt_name: str | None) -> str | None:
        """Return the prompt of that name, or the model's default one (``None``: none) when no name is given.

        Raises ``InvalidRequestError`` that lists the known names.
        """
        ...

    def use_threads(self, count: int) -> None:
        """Let the calling thread encode on so many cores from now on."""
        ...

    def encode(self, batch: Sequence[Tokenized]) -> Vectors:
        """Return final vectors, shape (len(batch), dimension), C-contiguous; none depends on its neighbours.

        Raises ``FatalDeviceError``, and anything else that a model may raise on a text.
        """
        ...

    def encode_exactly(self, batch: Sequence[Tokenized]) -> Vectors:
        """Do the same in fp32 and on the plainest path, however slowly."""
        ...


def cut(vectors: Vectors, dimensions: int) -> Vectors:
    """Keep the first ``dimensions`` of each row and bring each row to length 1 again; zero rows stay zero."""
    if not 0 < dimensions <= vectors.shape[-1]:
        raise ValueError(f"cannot cut {vectors.shape[-1]} dimensions to {dimensions}")
    kept = vectors[..., :dimensions].astype(np.float32)
    norms = np.linalg.norm(kept, axis=-1, keepdims=True)
    return np.ascontiguousarray(kept / np.where(norms > 0, norms, 1))
