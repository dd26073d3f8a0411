"""Tells a directory whose weights are in a format of other programs from half a model.

Called by ``weights`` and ``layouts`` where they have found no weights, or no model at all.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Final

from emb_model_provider.errors import unsupported

#: By how their files end: llama.cpp's, ONNX, OpenVINO's, TensorFlow's, and Flax's.
_FOREIGN: Final = (".gguf", ".onnx", "openvino_model.xml", ".h5", ".msgpack")
_OURS: Final = ("*.safetensors", "pytorch_model*.bin")
_SHOWN: Final = 3


def refuse_foreign(directory: Path) -> None:
    """Raise UNSUPPORTED_MODEL where there are such weights and none of torch's: no download will complete these.

    They stand beside the other files or, as exports of one model do, in a folder of their own.
    """
    files = chain(directory.glob("*"), directory.glob("*/*"))
    found = sorted(str(path.relative_to(directory)) for path in files if path.name.endswith(_FOREIGN))
    if found and not any(chain.from_iterable(map(directory.glob, _OURS))):
        raise unsupported(
            f"{directory} holds {', '.join(found[:_SHOWN])} and no weights that torch reads: take the directory or "
            "repository of the original, with model.safetensors or pytorch_model.bin"
        )
