"""Why no tokenizer can be made of a model's files, of which transformers and sentence-transformers say little.

transformers tries four kinds of processors, forgets what each failed of, and names none of the files. Used by
``checked_transformer``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from transformers import AutoTokenizer

from emb_model_provider.errors import unsupported
from shard.model_files.json_files import read_object

_CONFIGURATION: Final = "tokenizer_config.json"
_LENGTH: Final = "model_max_length"
#: Those that are JSON, whichever of them a tokenizer has.
_FILES: Final = (_CONFIGURATION, "tokenizer.json", "special_tokens_map.json", "added_tokens.json", "vocab.json")
#: What transformers says when every kind has failed.
_NONE: Final = "Unrecognized processing class"


@contextmanager
def naming_failures(name: str, options: Mapping[str, Any]) -> Iterator[None]:
    """Raise ``LoadError`` for a file that is cut off or has no number for a length, and else what transformers forgot.

    ``options`` are those that the tokenizer of the model ``name`` is made with. Files are read once something has
    failed: a vocabulary may be a large one.
    """
    folder = Path(name, options.get("subfolder") or "")
    try:
        yield
    except TypeError:
        length = read_object(folder / _CONFIGURATION).get(_LENGTH)
        if length is None or isinstance(length, (int, float)):
            raise
        raise unsupported(
            f"its {_CONFIGURATION} has {_LENGTH} {length!r}, which is no number: correct it in a copy of the model"
        ) from None
    except ValueError as error:
        for file in _FILES:
            read_object(folder / file)
        if str(error).startswith(_NONE):
            _ask_again(name, options)
        raise


def _ask_again(name: str, options: Mapping[str, Any]) -> None:
    """Raise what a tokenizer fails of; a package that is missing for it is told of as any other."""
    try:
        AutoTokenizer.from_pretrained(name, **options)
    except ImportError:
        raise
    except Exception as error:
        raise unsupported(
            f"transformers makes no tokenizer of its files ({' '.join(str(error).split())}): one of them may be cut "
            "off, or written by a newer version"
        ) from error
