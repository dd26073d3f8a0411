"""A short name for everything that decides a model's vectors: two shards of one fingerprint give the same ones.

Called by ``loader``. An index built under one fingerprint and searched under another is how search goes subtly wrong.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

from shard.hubs.snapshot import COMPANIONS
from shard.model_files.json_files import read_object
from shard.model_files.weights import weight_files

_CHARS: Final = 16
#: Where tokenizers keep what they know; some of it counts beside a ``tokenizer.json``, some only without.
_TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "spm.model",
    "tokenizer.model",
    "sentencepiece.model",
    "sentencepiece.bpe.model",
)
#: Heads, positions, activations and the like, of a transformer and of what follows it.
_CONFIGURATIONS: Final = ("config.json", "sentence_bert_config.json")
#: What hubs and libraries write into these of themselves; the precision is a fact of its own.
_SAYS_NOTHING: Final = (
    "_name_or_path",
    "_commit_hash",
    "transformers_version",
    "transformers.js_config",
    "torch_dtype",
    "dtype",
)


def start_hashing(directory: Path, folders: Sequence[Path], code: Sequence[Path] = ()) -> Future[str]:
    """Hash weights, tokenizers and configurations in ``folders``, and ``code`` of the model's own: hex SHA-256.

    All of them are within ``directory``. It is done in a thread.
    """
    names = (*_TOKENIZER_FILES, *COMPANIONS, *_CONFIGURATIONS)
    others = dict.fromkeys(path for folder in folders for name in names if (path := folder / name).exists())
    pool = ThreadPoolExecutor(1, thread_name_prefix="fingerprint")
    future = pool.submit(hash_files, [*weight_files(folders), *others, *code], directory)
    pool.shutdown(wait=False)
    return future


def hash_files(files: Iterable[Path], root: Path) -> str:
    """Return the hex SHA-256 of names below ``root`` and contents."""
    total = hashlib.sha256()
    for path in files:
        digest = _digest_configuration(path) if path.name in _CONFIGURATIONS else _digest(path)
        total.update(str(path.relative_to(root)).encode() + b"\0" + digest)
    return total.hexdigest()


def hash_code(repositories: Mapping[str, Path]) -> str:
    """Return the hex SHA-256 of each Python file in the directories of these repositories."""
    total = hashlib.sha256()
    for name, directory in sorted(repositories.items()):
        for path in sorted(directory.rglob("*.py")):
            total.update(f"{name}--{path.relative_to(directory)}".encode() + b"\0" + _digest(path))
    return total.hexdigest()


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _digest_configuration(path: Path) -> bytes:
    """Return a digest of what a configuration says, however it is written down."""
    decisive = {key: value for key, value in read_object(path).items() if key not in _SAYS_NOTHING}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).digest()


def name_fingerprint(weights: str, facts: Mapping[str, object]) -> str:
    """Return 16 hex digits for these weights used in this way; ``facts`` are JSON values."""
    said = json.dumps({**facts, "weights": weights}, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(said.encode()).hexdigest()[:_CHARS]
