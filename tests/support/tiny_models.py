"""Makes tiny models with random weights on disk, in the layouts that the real ones have.

Called by tests of the loader, of downloads and of the whole server, and by ``recorded/record.py``. Weights come
from ``numpy.random.RandomState(seed)``, whose streams never change between versions: a recorded vector stays
true. Every maker writes into ``directory`` (made if missing) and returns it. They are of a scale at which
texts differ clearly and CLS, mean, fp16 and a wrong length can be told apart. A model is 0.4 to 0.7 MB, made in 20 ms.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tests.support.tiny_tokenizers import (
    characters,
    wordpiece_vocabulary,
    write_json,
    write_unigram_tokenizer,
    write_wordpiece_tokenizer,
)

Weights = dict[str, npt.NDArray[np.float32]]

#: ``max_seq_length`` of the sentence-transformers layout.
ST_MAX_TOKENS: Final = 64


@dataclass(frozen=True, slots=True)
class TinyShape:
    """The size of a tiny encoder; ``positions`` and ``token_types`` differ between families."""

    hidden: int = 32
    layers: int = 3
    heads: int = 4
    intermediate: int = 64
    positions: int = 512
    token_types: int = 2


SHAPE: Final = TinyShape()


# --- the layouts --------------------------------------------------------------------------------------------


def make_gte(directory: Path, *, seed: int = 1, max_length: int | None = None) -> Path:
    """``iic/nlp_gte_sentence-embedding_*``: CLS, normalised, fp16 ``.bin``, a tokenizer that pads to 256.

    No ``modules.json``, ``vocab.txt`` or safetensors, as there. ``max_length`` sets ``preprocessor.max_length``,
    which the real ones do not have.
    """
    vocabulary = wordpiece_vocabulary()
    configuration: dict[str, Any] = {
        "framework": "pytorch",
        "task": "sentence-embedding",
        "model": {
            **_bert_config(len(vocabulary)),
            "normalize": True,
            "emb_pooler_type": "cls",
        },
        "pipeline": {"type": "sentence-embedding"},
        "allow_remote": True,
    }
    if max_length is not None:
        configuration["preprocessor"] = {"type": "sentence-embedding", "max_length": max_length}
    write_json(directory / "configuration.json", configuration)
    write_json(directory / "config.json", _bert_config(len(vocabulary)) | {"torch_dtype": "float16"})
    write_wordpiece_tokenizer(directory, vocabulary, baked_length=256)
    _save_bin(directory, _bert_weights(len(vocabulary), seed) | _unused_pooler(seed), half=True)
    return directory


def make_corom(directory: Path, *, seed: int = 2, max_length: int | None = None) -> Path:
    """``iic/nlp_corom_sentence-embedding_*``: CLS, not normalised, ``vocab.txt`` only, keys below ``bert.``.

    The layout follows what modelscope's ``BertForSentenceEmbedding`` saves: its encoder is the attribute ``bert``.
    """
    vocabulary = wordpiece_vocabulary()
    preprocessor: dict[str, Any] = {"type": "sentence-embedding"}
    if max_length is not None:
        preprocessor["max_length"] = max_length
    write_json(
        directory / "configuration.json",
        {
            "framework": "pytorch",
            "task": "sentence-embedding",
            "model": {"type": "bert"},
            "pipeline": {"type": "sentence-embedding"},
            "preprocessor": preprocessor,
        },
    )
    write_json(directory / "config.json", _bert_config(len(vocabulary)) | {"architectures": ["Bert"]})
    (directory / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    weights = _bert_weights(len(vocabulary), seed)
    _save_bin(directory, {f"bert.{name}": array for name, array in weights.items()})
    return directory


def make_sentence_transformers(
    directory: Path,
    *,
    pooling: str = "mean",
    normalize: bool = True,
    dense: int | None = None,
    prompts: Mapping[str, str] | None = None,
    default_prompt_name: str | None = None,
    seed: int = 3,
) -> Path:
    """A HuggingFace sentence-transformers repository with safetensors.

    ``pooling`` is a sentence-transformers mode (``cls``, ``mean``, ``max``, ``lasttoken``, ``weightedmean``,
    ``mean_sqrt_len_tokens``). ``dense`` adds a Tanh layer with that many outputs.
    """
    vocabulary = wordpiece_vocabulary()
    write_json(directory / "config.json", _bert_config(len(vocabulary)))
    write_wordpiece_tokenizer(directory, vocabulary)
    _save_safetensors(directory, _bert_weights(len(vocabulary), seed))
    modules = [("", "models.Transformer"), ("1_Pooling", "models.Pooling")]
    write_json(directory / "1_Pooling" / "config.json", _pooling_config(pooling))
    if dense is not None:
        modules.append(("2_Dense", "models.Dense"))
        _write_dense(directory / "2_Dense", dense, seed)
    if normalize:
        modules.append((f"{len(modules)}_Normalize", "models.Normalize"))
    write_json(
        directory / "modules.json",
        [
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.{kind}"}
            for index, (path, kind) in enumerate(modules)
        ],
    )
    write_json(directory / "sentence_bert_config.json", {"max_seq_length": ST_MAX_TOKENS, "do_lower_case": False})
    write_json(
        directory / "config_sentence_transformers.json",
        {
            "__version__": {"sentence_transformers": "3.0.0", "transformers": "4.41.0", "pytorch": "2.3.0"},
            "prompts": dict(prompts or {}),
            "default_prompt_name": default_prompt_name,
            "similarity_fn_name": "cosine",
        },
    )
    return directory


def make_plain(directory: Path, *, seed: int = 4, shape: TinyShape = SHAPE) -> Path:
    """A plain transformers BERT with safetensors and no word about pooling."""
    vocabulary = wordpiece_vocabulary()
    write_json(directory / "config.json", _bert_config(len(vocabulary), shape))
    write_wordpiece_tokenizer(directory, vocabulary)
    _save_safetensors(directory, _bert_weights(len(vocabulary), seed, shape))
    return directory


def make_xlm_roberta(directory: Path, *, seed: int = 5, positions: int = 130) -> Path:
    """A plain XLM-RoBERTa: positions start at 2, so only ``positions - 2`` tokens fit, special ones included."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", *characters()]
    write_json(
        directory / "config.json",
        _bert_config(len(pieces))
        | {
            "architectures": ["XLMRobertaModel"],
            "model_type": "xlm-roberta",
            "max_position_embeddings": positions,
            "type_vocab_size": 1,
            "pad_token_id": 1,
            "bos_token_id": 0,
            "eos_token_id": 2,
        },
    )
    write_unigram_tokenizer(directory, pieces, positions - 2)
    _save_safetensors(directory, _bert_weights(len(pieces), seed, TinyShape(positions=positions, token_types=1)))
    return directory


# --- things that go wrong with a model directory ------------------------------------------------------------


def prefix_weight_names(directory: Path, prefix: str = "text_encoder.") -> None:
    """Rename every weight so that none is found: naive loaders then serve random vectors without a word."""
    _rewrite(directory, {prefix + name: array for name, array in _stored_weights(directory).items()})


def drop_weight(directory: Path, name: str = "encoder.layer.1.attention.self.query.weight") -> None:
    """Take one weight out of the file (``name`` without the ``bert.`` of CoROM)."""
    weights = _stored_weights(directory)
    left = {key: array for key, array in weights.items() if key.removeprefix("bert.") != name}
    if len(left) == len(weights):
        raise KeyError(name)
    _rewrite(directory, left)


def truncate_weights(directory: Path, keep_bytes: int | None = None) -> None:
    """Leave the first ``keep_bytes`` (half, if ``None``) of the weights file."""
    path = weights_path(directory)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2 if keep_bytes is None else keep_bytes])


def plant_hostile_pickle(directory: Path, marker: Path) -> None:
    """Replace the weights by a ``.bin`` whose unpickling creates ``marker``; ``weights_only=True`` refuses it."""
    import torch

    tensors = {name: torch.from_numpy(array.copy()) for name, array in _stored_weights(directory).items()}
    weights_path(directory).unlink()
    torch.save({**tensors, "hostile": _OpensWhenUnpickled(marker)}, directory / "pytorch_model.bin")


def plant_remote_code(directory: Path, marker: Path) -> None:
    """Add an ``auto_map`` and a Python file that creates ``marker`` when it is imported."""
    # a class of its own: transformers marks the class it finds as custom code, for as long as the process lives,
    # and its own BertModel could not be saved afterwards
    code = [
        f"open({str(marker)!r}, 'w').close()",
        "from transformers import BertModel",
        "class TinyModel(BertModel): ...",
    ]
    (directory / "modeling_tiny.py").write_text("\n".join(code) + "\n", encoding="utf-8")
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    write_json(directory / "config.json", config | {"auto_map": {"AutoModel": "modeling_tiny.TinyModel"}})


def weights_path(directory: Path) -> Path:
    """The one weights file of a directory made here."""
    (path,) = (p for p in (directory / "model.safetensors", directory / "pytorch_model.bin") if p.exists())
    return path


class _OpensWhenUnpickled:
    def __init__(self, marker: Path) -> None:
        self._marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self._marker, "w")


# --- weights ------------------------------------------------------------------------------------------------


def _bert_weights(vocabulary_size: int, seed: int, shape: TinyShape = SHAPE) -> Weights:
    """Every parameter of ``transformers.BertModel`` without its pooler, in that model's own names."""
    random = np.random.RandomState(seed)

    def normal(*size: int, std: float = 0.2) -> npt.NDArray[np.float32]:
        return (random.standard_normal(size) * std).astype(np.float32)

    weights: Weights = {}

    def layer_norm(name: str) -> None:
        weights[f"{name}.weight"] = 1 + normal(shape.hidden, std=0.1)
        weights[f"{name}.bias"] = normal(shape.hidden, std=0.1)

    def linear(name: str, outputs: int, inputs: int) -> None:
        weights[f"{name}.weight"] = normal(outputs, inputs)
        weights[f"{name}.bias"] = normal(outputs, std=0.05)

    weights["embeddings.word_embeddings.weight"] = normal(vocabulary_size, shape.hidden)
    weights["embeddings.position_embeddings.weight"] = normal(shape.positions, shape.hidden, std=0.1)
    weights["embeddings.token_type_embeddings.weight"] = normal(shape.token_types, shape.hidden, std=0.1)
    layer_norm("embeddings.LayerNorm")
    for number in range(shape.layers):
        layer = f"encoder.layer.{number}"
        for part in ("query", "key", "value"):
            linear(f"{layer}.attention.self.{part}", shape.hidden, shape.hidden)
        linear(f"{layer}.attention.output.dense", shape.hidden, shape.hidden)
        layer_norm(f"{layer}.attention.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", shape.intermediate, shape.hidden)
        linear(f"{layer}.output.dense", shape.hidden, shape.intermediate)
        layer_norm(f"{layer}.output.LayerNorm")
    return weights


def _unused_pooler(seed: int) -> Weights:
    """BERT's own pooler, which checkpoints carry and sentence embedding ignores."""
    random = np.random.RandomState(seed + 1000)
    weight = random.standard_normal((SHAPE.hidden, SHAPE.hidden)) * 0.2
    return {
        "pooler.dense.weight": weight.astype(np.float32),
        "pooler.dense.bias": np.zeros(SHAPE.hidden, dtype=np.float32),
    }


def _save_bin(directory: Path, weights: Weights, *, half: bool = False) -> None:
    import torch

    dtype = torch.float16 if half else torch.float32
    torch.save(
        {name: torch.from_numpy(array).to(dtype) for name, array in weights.items()},
        directory / "pytorch_model.bin",
    )


def _save_safetensors(directory: Path, weights: Weights) -> None:
    from safetensors.numpy import save_file

    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def _stored_weights(directory: Path) -> dict[str, npt.NDArray[Any]]:
    path = weights_path(directory)
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return dict(load_file(path))
    import torch

    return {name: tensor.numpy() for name, tensor in torch.load(path, weights_only=True).items()}


def _rewrite(directory: Path, weights: dict[str, npt.NDArray[Any]]) -> None:
    if weights_path(directory).suffix == ".safetensors":
        _save_safetensors(directory, weights)
    else:
        half = any(array.dtype == np.float16 for array in weights.values())
        _save_bin(directory, weights, half=half)


# --- configuration ------------------------------------------------------------------------------------------


def _bert_config(vocabulary_size: int, shape: TinyShape = SHAPE) -> dict[str, Any]:
    return {
        "architectures": ["BertModel"],
        "attention_probs_dropout_prob": 0.1,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": shape.positions,
        "model_type": "bert",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
        "type_vocab_size": shape.token_types,
        "use_cache": True,
        "vocab_size": vocabulary_size,
    }


def _pooling_config(mode: str) -> dict[str, Any]:
    names = {
        "cls": "pooling_mode_cls_token",
        "mean": "pooling_mode_mean_tokens",
        "max": "pooling_mode_max_tokens",
        "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
        "weightedmean": "pooling_mode_weightedmean_tokens",
        "lasttoken": "pooling_mode_lasttoken",
    }
    flags = dict.fromkeys(names.values(), False) | {names[mode]: True}
    return {"word_embedding_dimension": SHAPE.hidden, **flags, "include_prompt": True}


def _write_dense(directory: Path, outputs: int, seed: int) -> None:
    random = np.random.RandomState(seed + 2000)
    write_json(
        directory / "config.json",
        {
            "in_features": SHAPE.hidden,
            "out_features": outputs,
            "bias": True,
            "activation_function": "torch.nn.modules.activation.Tanh",
        },
    )
    weight = (random.standard_normal((outputs, SHAPE.hidden)) * 0.2).astype(np.float32)
    bias = (random.standard_normal(outputs) * 0.05).astype(np.float32)
    _save_safetensors(directory, {"linear.weight": weight, "linear.bias": bias})
