"""Names near one that does not exist: most such errors are a typing mistake or a size that was never published."""

from __future__ import annotations

import difflib
import re
from typing import Final

_FAMILIES: Final = {
    "iic/nlp_gte_sentence-embedding_chinese-": ("small", "base", "large"),
    "iic/nlp_gte_sentence-embedding_english-": ("small", "base", "large"),
    "iic/nlp_corom_sentence-embedding_chinese-": ("tiny", "base", "base-ecom", "base-medical"),
    "iic/nlp_corom_sentence-embedding_english-": ("base",),
    "BAAI/bge-": (
        "small-zh-v1.5", "base-zh-v1.5", "large-zh-v1.5", "small-en-v1.5", "base-en-v1.5", "large-en-v1.5", "m3",
    ),
    "sentence-transformers/": (
        "all-MiniLM-L6-v2", "all-MiniLM-L12-v2", "all-mpnet-base-v2", "paraphrase-multilingual-MiniLM-L12-v2",
        "paraphrase-multilingual-mpnet-base-v2", "multi-qa-MiniLM-L6-cos-v1", "LaBSE",
    ),
    "intfloat/": (
        "e5-small-v2", "e5-base-v2", "e5-large-v2", "multilingual-e5-small", "multilingual-e5-base",
        "multilingual-e5-large", "multilingual-e5-large-instruct",
    ),
    "Qwen/Qwen3-Embedding-": ("0.6B", "4B", "8B"),
    "jinaai/jina-embeddings-": ("v2-base-zh", "v2-base-en", "v2-small-en", "v3"),
    "Alibaba-NLP/gte-": ("multilingual-base", "base-en-v1.5", "large-en-v1.5", "Qwen2-1.5B-instruct"),
    "thenlper/gte-": ("small", "base", "large", "small-zh", "base-zh", "large-zh"),
    "moka-ai/m3e-": ("small", "base", "large"),
    "shibing624/text2vec-": ("base-chinese", "base-multilingual"),
    "maidalun1020/bce-embedding-base_v1": ("",),
    "nomic-ai/nomic-embed-text-": ("v1", "v1.5"),
}  # fmt: skip
KNOWN_NAMES: Final = tuple(family + member for family, members in _FAMILIES.items() for member in members)

#: The address of a model's page, or of its repository; in ModelScope's the name stands behind ``models``.
_PAGE: Final = re.compile(r"https?://[^/]+/(?:models/)?((?!datasets/|spaces/)[\w.-]+/[\w.-]+?)(?:\.git)?(?:[/?#].*)?")
_SHOWN: Final = 3
_NEAR: Final = 0.75


def suggest(name: str) -> str:
    """Return " Did you mean a, b or c?", or nothing where none is near; of a page's address, the name in it."""
    if page := _PAGE.fullmatch(name):
        return f" Did you mean {page[1]!r}?"
    asked = name.replace("damo/", "iic/", 1) if name.startswith("damo/") else name
    owner, _, model = asked.rpartition("/")
    # Examples of sentence-transformers leave out the owner, which that library adds of itself.
    same = [] if "/" in owner else [known for known in KNOWN_NAMES if _last(known) == model.lower()]
    near = same or difflib.get_close_matches(asked, KNOWN_NAMES, n=_SHOWN, cutoff=_NEAR)
    if not near:
        return ""
    *others, last = [repr(one) for one in near]
    return f" Did you mean {', '.join(others) + ' or ' if others else ''}{last}?"


def _last(name: str) -> str:
    return name.rpartition("/")[2].lower()
