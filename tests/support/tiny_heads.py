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
