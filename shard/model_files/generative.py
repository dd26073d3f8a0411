"""Rerankers that are language models asked for a yes or no: what their files say. For ``layouts`` and ``kinds``.

Two forms are known. sentence-transformers' ``CrossEncoder`` has two modules, a ``Transformer`` for text generation and
a ``LogitScore`` that names the tokens of both answers; the model's chat template writes query and document into a
prompt. A plain repository of the Qwen3-Reranker family has neither: its prompt stands in its model card alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from emb_model_provider.errors import LoadError, unsupported
from emb_model_provider.modelmap import ModelSpec
from shard.model_files.json_files import Document, as_object, has_architecture, read_json, read_object
from shard.model_files.prompt_families import own_name

#: Read as a number by neither sentence-transformers nor us; the tokenizer knows their ids.
DEFAULT_ANSWERS: Final = ("yes", "no")
#: How much the model card of Qwen3-Reranker reads of a pair; the model would take more, ever more slowly.
QWEN3_MAX_TOKENS: Final = 8192
_MODULES: Final = ("Transformer", "LogitScore")
#: What the template is told beside the messages; sizes are ours to decide.
_OUR_OPTIONS: Final = frozenset({"padding", "truncation", "max_length", "return_tensors", "restore_suffix"})


@dataclass(frozen=True, slots=True)
class GenerativeFiles:
    """``true_id`` is ``None`` where the answers are the words of ``DEFAULT_ANSWERS``; ``false_id`` may be absent.

    ``template_options`` are what the chat template is told beside the messages; ``message_format`` is ``None`` where
    the template itself shows it. ``uses_template`` is off where pairs are read by the tokenizer alone.
    ``is_qwen3``: the prompt is the model card's.
    """

    true_id: int | None = None
    false_id: int | None = None
    template_options: tuple[tuple[str, object], ...] = ()
    message_format: str | None = None
    uses_template: bool = True
    is_qwen3: bool = False


def is_language_model(config: Document) -> bool:
    """Tell whether a configuration is that of a language model, which has no classification head."""
    return has_architecture(config, "ForCausalLM")


def is_generative_reranker(spec: ModelSpec, config: Document, kind: object) -> bool:
    """Tell whether a language model is to rank, by its files or its own name.

    ``kind`` is ``model_type`` in ``config_sentence_transformers.json``; ``None`` for a directory without modules.
    """
    is_named = kind is None and "rerank" in own_name(spec.name).lower()
    return is_language_model(config) and (kind == "CrossEncoder" or is_named)


def read_generative_modules(directory: Path, modules: Sequence[tuple[str, str]]) -> GenerativeFiles:
    """Read ``modules``, each a class's name and its folder; raise ``LoadError`` for what is not those two."""
    names = [name for name, _ in modules]
    if tuple(names) != _MODULES:
        raise _no_reranker(
            f"it is a reranker of a language model and {', '.join(names[1:]) or 'nothing else'}; those with LogitScore "
            "are served"
        )
    said = read_object(directory / modules[0][1] / "sentence_bert_config.json")
    modalities = as_object(said.get("modality_config"))
    options = as_object(as_object(said.get("processing_kwargs")).get("chat_template"))
    answers = as_object(read_json(directory / modules[1][1] / "config.json"))
    true_id, false_id = answers.get("true_token_id"), answers.get("false_token_id")
    if type(true_id) is not int or (false_id is not None and type(false_id) is not int):
        raise _no_reranker("its LogitScore names no token for a relevant document")
    named = as_object(modalities.get("message")).get("format")
    return GenerativeFiles(
        true_id=true_id,
        false_id=false_id if isinstance(false_id, int) else None,
        template_options=tuple((name, value) for name, value in options.items() if name not in _OUR_OPTIONS),
        message_format=named if named in ("flat", "structured") else None,
        uses_template="message" in modalities,
    )


def read_plain_generative(config: Document) -> GenerativeFiles:
    """Read a language model without modules: of the Qwen3-Reranker family, or one whose chat template takes pairs.

    Whether a template does is seen when the tokenizer is there.
    """
    return GenerativeFiles(is_qwen3=config.get("model_type") == "qwen3")


def _no_reranker(reason: str) -> LoadError:
    return unsupported(f"{reason}. Serve a cross-encoder such as BAAI/bge-reranker-v2-m3, or Qwen/Qwen3-Reranker-0.6B")
