"""What ``sentence_bert_config.json`` says of the call of a tokenizer: its length, and options that are added to it.

Called by ``checked_transformer``, ``modules`` and ``parts``. sentence-transformers saves the options as
``processing_kwargs``, by modality. ``TextTokenizer`` is no such call: it follows the few options that are known here,
and a model with any other would have other vectors.
"""

from __future__ import annotations

import json
from typing import Any, Final

from sentence_transformers.base.modules import Transformer

from emb_model_provider.errors import LoadError, unsupported

_KNOWN: Final = {"max_length", "truncation", "padding"}
#: Of a language model: how many of its last tokens' answers it gives. The last one is all that is asked for.
_KNOWN_OF_ASKED: Final = {*_KNOWN, "logits_to_keep"}
#: What is too long is cut, and of a pair the longer text first.
_CUTS: Final = (True, "longest_first")
#: What one text has no padding by.
_PADS: Final = (True, False, "longest", "do_not_pad")


def check_length(length: Any) -> None:  # noqa: ANN401 - whatever a file says
    """Raise ``LoadError`` for a length of which sentence-transformers could make no number."""
    try:
        int(length or 0)
    except (TypeError, ValueError, OverflowError):
        raise unsupported(
            f"its sentence_bert_config.json has max_seq_length {length!r}, which is no number: correct it in a copy of "
            "the model"
        ) from None


def text_options(transformer: Transformer) -> dict[str, object]:
    """Return these options; those that are common to all modalities count more, and those of a chat template most."""
    said = transformer.processing_kwargs
    sizes = {name: value for name, value in said.get("chat_template", {}).items() if name in _KNOWN}
    return {**said.get("text", {}), **said.get("common", {}), **sizes}


def check_text_options(transformer: Transformer, *, takes_pairs: bool, is_asked: bool = False) -> None:
    """Raise ``LoadError`` for an option by which texts, or pairs, are read otherwise than here.

    ``is_asked``: of a language model that is asked about pairs, which may be written by its chat template.
    """
    options = text_options(transformer)
    template = transformer.processing_kwargs.get("chat_template", {})
    unknown = sorted(set(options) - (_KNOWN_OF_ASKED if is_asked else _KNOWN))
    if unknown or (template and not is_asked):
        raise unsupported(f"it sets tokenizer options that are not supported: {', '.join(unknown) or 'chat_template'}")
    if not template.get("restore_suffix", True):
        raise _other('"restore_suffix": false', "what its prompt ends with is kept")
    if options.get("truncation", True) not in (_CUTS if takes_pairs else (*_CUTS, "only_first")):
        cut = 'a text that is too long is cut, and of a pair the longer one first ("longest_first")'
        raise _other(f'"truncation": {json.dumps(options["truncation"])}', cut)
    if not isinstance(length := options.get("max_length"), int | None):
        raise unsupported(f'its sentence_bert_config.json has "max_length": {json.dumps(length)}, which is no number')
    # A mask tells padding from text; without one it is read as if it were text.
    is_masked = "attention_mask" in getattr(transformer.tokenizer, "model_input_names", ())
    if options.get("padding", True) not in ((*_PADS, "max_length") if is_masked else _PADS):
        raise _other(f'"padding": {json.dumps(options["padding"])}', "no text is read with padding")


def _other(said: str, done: str) -> LoadError:
    return unsupported(f"its sentence_bert_config.json has {said}, and here {done}")
