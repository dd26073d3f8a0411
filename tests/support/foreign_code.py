"""A small model whose configuration, model and tokenizer are classes of another repository.

``turn(directory)`` makes one of a plain BERT model; of its vectors every second number is that of the plain model with
the other sign. What it returns is that other repository, with a few files that nobody is to fetch.
"""

from __future__ import annotations

import json
from pathlib import Path

CODE = "acme/turning-code"

_CONFIGURATION = """
from transformers import BertConfig

class TurningConfig(BertConfig):
    model_type = "turning"
"""
_MODELING = """
import torch
from transformers import BertModel

from .configuration_turning import TurningConfig
from .signs import signs_of

class TurningModel(BertModel):
    config_class = TurningConfig

    def forward(self, *arguments, **options):
        output = super().forward(*arguments, **options)
        states = output.last_hidden_state
        output.last_hidden_state = states * signs_of(states.shape[-1])
        return output
"""
_SIGNS = """
import torch

def signs_of(size):
    return 1 - 2 * (torch.arange(size) % 2)
"""
_TOKENIZATION = """
from transformers import BertTokenizerFast

class TurningTokenizerFast(BertTokenizerFast): ...
"""


def turn(directory: Path, repository: str = CODE) -> dict[str, bytes]:
    """Have the classes of the model in ``directory`` come from ``repository``; return that repository's files."""
    _add(
        directory / "config.json",
        model_type="turning",
        architectures=["TurningModel"],
        auto_map={
            "AutoConfig": f"{repository}--configuration_turning.TurningConfig",
            "AutoModel": f"{repository}--modeling_turning.TurningModel",
        },
    )
    _add(
        directory / "tokenizer_config.json",
        tokenizer_class="TurningTokenizer",
        auto_map={"AutoTokenizer": [None, f"{repository}--tokenization_turning.TurningTokenizerFast"]},
    )
    files = {
        "configuration_turning.py": _CONFIGURATION,
        "modeling_turning.py": _MODELING,
        "signs.py": _SIGNS,
        "tokenization_turning.py": _TOKENIZATION,
        "config.json": "{}",
        "README.md": "what nobody needs",
    }
    return {name: text.encode() for name, text in files.items()} | {"model.safetensors": b"\0" * 100_000}


def _add(path: Path, **more: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | more), "utf-8")
