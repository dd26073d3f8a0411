"""The prompts of well-known model families, for models that do not ship theirs. Pure; for ``layouts`` and the encoder.

Many models are trained with a text before every query, and say so in their model card alone. A family is known by the
name of its repository; the texts are those of the model cards. Prompts of the operator and of the model itself win.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from emb_model_provider.errors import unsupported

#: What any family calls a prompt for either side of a search, in the order in which one is preferred.
_ALIASES: Final[dict[str, tuple[str, ...]]] = {
    "query": ("query", "search_query", "retrieval.query", "s2p_query", "web_search_query"),
    "document": ("document", "passage", "search_document", "retrieval.passage", "corpus"),
}
_SEARCH_EN: Final = "Represent this sentence for searching relevant passages: "
#: Qwen's for embeddings and for rerankers alike, and that of several others.
WEB_SEARCH: Final = "Given a web search query, retrieve relevant passages that answer the query"


@dataclass(frozen=True, slots=True)
class Family:
    """Repositories whose last name matches ``pattern``, and the prompts that they were trained with."""

    pattern: re.Pattern[str]
    prompts: tuple[tuple[str, str], ...]


def _family(pattern: str, query: str = "", document: str = "", **more: str) -> Family:
    return Family(re.compile(pattern), (("query", query), ("document", document), *more.items()))


#: The first that matches counts. Empty texts are knowledge too: these models want none.
FAMILIES: Final = (
    _family(r"bge-large-zh-noinstruct"),
    _family(r"bge-(small|base|large)-zh", "为这个句子生成表示以用于检索相关文章：", ""),
    _family(r"bge-(small|base|large)-en", _SEARCH_EN),
    _family(r"bge-multilingual-gemma2", f"<instruct>{WEB_SEARCH}.\n<query>"),
    _family(r"bge-m3"),
    _family(r"(multilingual-e5-.*-instruct|e5-mistral-7b-instruct)", f"Instruct: {WEB_SEARCH}\nQuery: "),
    _family(r"(multilingual-)?e5-(small|base|large)(-v2)?(-unsupervised)?$", "query: ", "passage: "),
    _family(r"gte[-_]qwen[\d.]+-.*instruct", f"Instruct: {WEB_SEARCH}\nQuery: "),
    _family(r"qwen3-embedding-", f"Instruct: {WEB_SEARCH}\nQuery:"),
    _family(
        r"nomic-embed-text-v",
        "search_query: ",
        "search_document: ",
        clustering="clustering: ",
        classification="classification: ",
    ),
    _family(
        r"jina-embeddings-v3",
        "Represent the query for retrieving evidence documents: ",
        "Represent the document for retrieval: ",
    ),
    _family(r"snowflake-arctic-embed-.*v2\.0", "query: "),
    _family(r"snowflake-arctic-embed-", _SEARCH_EN),
    _family(r"(mxbai-embed-|uae-large-)", _SEARCH_EN),
    _family(r"stella_en_.*_v5", f"Instruct: {WEB_SEARCH}.\nQuery: "),
    _family(r"embeddinggemma-", "task: search result | query: ", "title: none | text: "),
    _family(r"(piccolo|stella)-(base|large)-zh$", "查询: ", "结果: "),
    _family(r"(nlp_)?gte[-_]"),
    _family(r"nlp_corom_"),
    _family(r"(stella-|m3e-|text2vec-|bce-embedding-|dmeta-embedding|acge_|conan-embedding|tao-8k)"),
    _family(r"(all-|paraphrase-|multi-qa-)?(minilm|mpnet|multilingual-minilm|multilingual-mpnet)"),
    _family(r"jina-embeddings-v2-"),
)


def complete_prompts(
    operator: Mapping[str, str], own: Mapping[str, str], names: tuple[str, ...]
) -> tuple[tuple[str, str], ...]:
    """Return all prompts of a model, by name: the operator's before the model's own before those of its family.

    ``names`` are what the model may be known by: repository names, or paths.
    """
    # sentence-transformers writes two empty prompts into every model that it saves: that says nothing.
    said = {} if set(own) <= set(_ALIASES) and not any(own.values()) else dict(own)
    known = {**said, **operator}
    from_family = {
        name: text for name, text in _find_family(names) if not any(alias in known for alias in _names_of(name))
    }
    return tuple({**own, **from_family, **operator}.items())


def known_default(name: object, prompts: Mapping[str, object]) -> str | None:
    """Return the name of the default prompt, if there is one; raise ``LoadError`` where ``prompts`` lacks it."""
    if name is None:
        return None
    if not isinstance(name, str) or name not in prompts:
        known = ", ".join(prompts) or "none"
        raise unsupported(f"its default prompt {name!r} is not among its prompts ({known}); set default_prompt_name")
    return name


def find_prompt(prompts: Mapping[str, str], name: str) -> str | None:
    """Return the prompt of that name; ``query`` and ``document`` are found by any name that a model gives them."""
    return next((prompts[alias] for alias in _names_of(name) if alias in prompts), None)


def role_of(name: str) -> str | None:
    """Return which side of a search, ``query`` or ``document``, a prompt of that name is for, where it says so."""
    return next((role for role, names in _ALIASES.items() if name in names), None)


def own_name(name: str) -> str:
    """Return a model's own name, without its owner or the directories that it lies in.

    A snapshot in a hub's cache is called by its revision; two directories above it stands ``models--OWNER--NAME``, or
    ``OWNER--NAME``.
    """
    *above, last = PurePosixPath(name).parts or ("",)
    match above:
        case [*_, repository, "snapshots"] if "--" in repository:
            return repository.rpartition("--")[2]
    return last


def _names_of(name: str) -> tuple[str, ...]:
    return _ALIASES.get(name, (name,))


def _find_family(names: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    for name in names:
        last = own_name(name).lower()
        for family in FAMILIES:
            if family.pattern.match(last):
                return family.prompts
    return ()
