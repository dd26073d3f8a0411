"""Does a model's code read texts otherwise than the Rust core of its tokenizer does? Called by ``parts``.

``TextTokenizer`` runs that core and nothing else. A tokenizer's class, most of all one that comes with a model, may
change texts or ids in Python around it, or the core itself when it is first called (SeamlessM4T's does: this must come
before the core is copied). So may a first module that comes with a model.
"""

from __future__ import annotations

from typing import Any, Final

from sentence_transformers.base.modules import Transformer
from sentence_transformers.base.modules.module import Module
from transformers import PreTrainedTokenizerFast

from emb_model_provider.errors import unsupported
from shard.fidelity import PROBES

#: A length that no probe reaches.
_UNCUT_TOKENS: Final = 8192


def check_reading(transformer: Module, tokenizer: PreTrainedTokenizerFast, length: int) -> None:
    """Raise ``LoadError`` where a probe has other ids by the model's code than by the core.

    A first module of the model's own cuts by itself: probes of more than ``length`` tokens tell nothing of it.
    """
    has_own_module = not isinstance(transformer, Transformer)
    for probe in map(str.strip, PROBES):  # older modules take blanks off the ends
        expected = _ids_of_module(transformer, probe) if has_own_module else _ids_of_class(tokenizer, probe)
        core = tokenizer.backend_tokenizer
        core.no_truncation()
        core.no_padding()
        found = core.encode(probe).ids
        if found != expected and not (has_own_module and len(found) > length):
            raise unsupported(
                f"its {type(transformer if has_own_module else tokenizer).__name__} reads texts by code of its own in "
                "Python, and not as its tokenizer.json says, which is all that is read here"
            )


def _ids_of_class(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    ids: list[list[int]] = tokenizer([text], truncation="longest_first", max_length=_UNCUT_TOKENS)["input_ids"]
    return list(ids[0])


def _ids_of_module(transformer: Module, text: str) -> list[int]:
    module: Any = transformer
    read = getattr(module, "preprocess", None) or getattr(module, "tokenize", None)
    if read is None:
        raise unsupported(f"its first module, {type(module).__name__}, has neither preprocess nor tokenize")
    ids: list[int] = read([text])["input_ids"][0].tolist()
    return ids
