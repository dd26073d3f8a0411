"""Makes tiny models with other outputs than one vector per text: BGE-M3, SPLADE and ColBERT layouts.

As in ``tiny_models``: random weights from a seed, into ``directory``, which is returned.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from tests.support import tiny_models
from tests.support.tiny_models import SHAPE


def make_bge_m3(directory: Path, *, colbert_dimension: int = 32, modules: bool = False, seed: int = 21) -> Path:
    """``BAAI/bge-m3``: an XLM-RoBERTa and two linear layers; ``modules`` adds sentence-transformers' files."""
    tiny_models.make_xlm_roberta(directory, seed=seed)
    random = np.random.RandomState(seed)

    def linear(outputs: int) -> dict[str, torch.Tensor]:
        weight = random.standard_normal((outputs, SHAPE.hidden)).astype(np.float32) * 0.3
        return {"weight": torch.from_numpy(weight), "bias": torch.from_numpy(np.full(outputs, 0.05, np.float32))}

    torch.save(linear(1), directory / "sparse_linear.pt")
    torch.save(linear(colbert_dimension), directory / "colbert_linear.pt")
    if modules:
        kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
        write_modules(directory, {path: f"sentence_transformers.models.{kind}" for path, kind in kinds.items()})
        pooling = {"word_embedding_dimension": SHAPE.hidden, "pooling_mode_cls_token": True}
        write(directory / "1_Pooling" / "config.json", pooling | {"pooling_mode_mean_tokens": False})
        write(directory / "sentence_bert_config.json", {"max_seq_length": 128, "do_lower_case": False})
    return directory


def make_masked_language_model(directory: Path, *, seed: int = 22) -> Path:
    """A plain ``BertForMaskedLM`` with its own output matrix tied to its embeddings, as they all are."""
    from transformers import BertConfig, BertForMaskedLM

    tiny_models.make_plain(directory, seed=seed)
    config = json.loads((directory / "config.json").read_text("utf-8"))
    torch.manual_seed(seed)
    model = BertForMaskedLM(BertConfig(**config | {"initializer_range": 0.3}))
    torch.nn.init.normal_(model.cls.predictions.bias, std=0.5)
    (directory / "model.safetensors").unlink()
    model.save_pretrained(directory)
    return directory


def make_splade(
    directory: Path,
    *,
    pooling: str = "max",
    activation: str = "relu",
    legacy: bool = False,
    max_active: int | None = None,
    prompts: dict[str, str] | None = None,
    seed: int = 22,
) -> Path:
    """A sentence-transformers ``SparseEncoder``; ``legacy`` names its modules as versions 5.0 to 5.3 did."""
    make_masked_language_model(directory, seed=seed)
    home = "sentence_transformers.sparse_encoder.models"
    first = f"{home}.MLMTransformer" if legacy else "sentence_transformers.base.modules.transformer.Transformer"
    second = "models.SpladePooling" if legacy else "modules.splade_pooling.SpladePooling"
    write_modules(directory, {"": first, "1_SpladePooling": f"sentence_transformers.sparse_encoder.{second}"})
    said = {"max_seq_length": 64, "do_lower_case": False}
    if not legacy:
        logits = {"text": {"method": "forward", "method_output_name": "logits"}}
        said = {
            "transformer_task": "fill-mask",
            "modality_config": logits,
            "module_output_name": "token_embeddings",
            "processor_kwargs": {"model_max_length": 64},
        }
    write(directory / "sentence_bert_config.json", said)
    write(
        directory / "1_SpladePooling" / "config.json",
        {"pooling_strategy": pooling, "activation_function": activation, "word_embedding_dimension": None},
    )
    options = {"model_type": "SparseEncoder", "prompts": prompts or {}, "similarity_fn_name": "dot"}
    options |= {} if max_active is None else {"max_active_dims": max_active}
    write(directory / "config_sentence_transformers.json", options)
    return directory


def make_multi_vector(
    directory: Path,
    *,
    expansion: dict[str, object] | None = None,
    skiplist: tuple[str, ...] = (),
    skiplist_tasks: tuple[str, ...] = ("document",),
    lengths: tuple[int | None, int | None] = (None, None),
    prompts: dict[str, str] | None = None,
    seed: int = 23,
) -> Path:
    """A ``MultiVectorEncoder`` as sentence-transformers 6 saves it; ``lengths`` are of queries and documents."""
    tiny_models.make_plain(directory, seed=seed)
    _add_mask_token(directory)
    said: dict[str, object] = {"processor_kwargs": {"model_max_length": 64}}
    said |= {"query_length": lengths[0], "document_length": lengths[1], "query_expansion": expansion}
    write(directory / "sentence_bert_config.json", said)
    home = "sentence_transformers"
    kinds = {
        "": f"{home}.base.modules.transformer.Transformer",
        "1_Dense": f"{home}.base.modules.dense.Dense",
        "2_MultiVectorMask": f"{home}.multi_vector_encoder.modules.multi_vector_mask.MultiVectorMask",
        "3_Normalize": f"{home}.base.modules.normalize.Normalize",
    }
    write_modules(directory, kinds)
    _write_projection(directory / "1_Dense", {"module_input_name": "token_embeddings"}, seed)
    write(
        directory / "2_MultiVectorMask" / "config.json",
        {"skiplist_words": list(skiplist), "skiplist_tasks": list(skiplist_tasks), "keep_only_token_ids": None},
    )
    write(directory / "3_Normalize" / "config.json", {"module_input_name": "token_embeddings"})
    options = {"model_type": "MultiVectorEncoder", "prompts": prompts or {"query": "[Q] ", "document": "[D] "}}
    write(directory / "config_sentence_transformers.json", options | {"similarity_fn_name": "maxsim"})
    return directory


def make_pylate(directory: Path, *, seed: int = 24, **options: object) -> Path:
    """A PyLate 3 checkpoint: transformer and projection only, everything else in ``options``."""
    tiny_models.make_plain(directory, seed=seed)
    _add_mask_token(directory)
    write(directory / "sentence_bert_config.json", {"max_seq_length": 63, "do_lower_case": False})
    kinds = {"": "sentence_transformers.models.Transformer", "1_Dense": "pylate.models.Dense.Dense"}
    write_modules(directory, kinds)
    _write_projection(directory / "1_Dense", {"use_residual": False}, seed)
    markers = {"query_prefix": "[unused0]", "document_prefix": "[unused1]"}
    said = {"model_type": "ColBERT", "query_length": 20, "document_length": 40, "do_query_expansion": True}
    said |= {"attend_to_expansion_tokens": False, "prompts": {}, "default_prompt_name": None, **markers, **options}
    write(directory / "config_sentence_transformers.json", said)
    return directory


def make_stanford_colbert(directory: Path, *, metadata: dict[str, object] | None = None, seed: int = 25) -> Path:
    """``colbert-ir/colbertv2.0``: ``HF_ColBERT``, its projection among the weights, ``artifact.metadata``."""
    from safetensors.numpy import load_file, save_file

    tiny_models.make_plain(directory, seed=seed)
    _add_mask_token(directory)
    config = json.loads((directory / "config.json").read_text("utf-8"))
    write(directory / "config.json", config | {"architectures": ["HF_ColBERT"]})
    weights = {f"bert.{name}": array for name, array in load_file(directory / "model.safetensors").items()}
    random = np.random.RandomState(seed)
    weights["linear.weight"] = random.standard_normal((16, SHAPE.hidden)).astype(np.float32)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    if metadata is not None:
        write(directory / "artifact.metadata", metadata)
    return directory


def _write_projection(folder: Path, config: dict[str, object], seed: int) -> None:
    from safetensors.numpy import save_file

    activation = "torch.nn.modules.linear.Identity"
    shape = {"in_features": SHAPE.hidden, "out_features": 16, "bias": False, "activation_function": activation}
    write(folder / "config.json", shape | config)
    weight = np.random.RandomState(seed).standard_normal((16, SHAPE.hidden)).astype(np.float32)
    save_file({"linear.weight": weight}, folder / "model.safetensors", metadata={"format": "pt"})


def _add_mask_token(directory: Path) -> None:
    """Put ``[unused0]`` and ``[unused1]`` in place of the last two words of the vocabulary."""
    path = directory / "tokenizer.json"
    tokenizer = json.loads(path.read_text("utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    for word, marker in zip(list(vocabulary)[-2:], ("[unused0]", "[unused1]"), strict=True):
        vocabulary[marker] = vocabulary.pop(word)
    write(path, tokenizer)


def write_modules(directory: Path, modules: dict[str, str]) -> None:
    """Write ``modules.json``: folder → dotted class name."""
    entries = [
        {"idx": index, "name": str(index), "path": path, "type": kind}
        for index, (path, kind) in enumerate(modules.items())
    ]
    write(directory / "modules.json", entries)


def write(path: Path, document: object) -> None:
    """Write JSON and make the folder it goes to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")
