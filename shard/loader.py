"""A complete local directory → an ``Encoder`` that is known to answer. Called once by ``main``; asks no network.

Order: what layout, may its code run, where and how to compute, build, then three texts as a proof.
"""

from __future__ import annotations

import ctypes
import logging
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
import torch
from safetensors import SafetensorError
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.base.modules.module import Module
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import nn
from transformers.utils import logging as transformers_logging

from emb_model_provider.errors import LoadError, LoadReason
from emb_model_provider.logs import EventLog
from emb_model_provider.messages import EncoderInfo
from emb_model_provider.modelmap import ModelSpec
from shard.device import ComputePlan, Machine, plan_compute, this_machine
from shard.encoder import Encoder
from shard.encoders.modules import LoadOptions, build_modules
from shard.encoders.sentence_transformer import Pipeline, SentenceTransformerEncoder
from shard.encoders.text_tokenizer import TextTokenizer, TokenizerFacts
from shard.fidelity import choose_batching
from shard.layouts import Recipe, read_recipe
from shard.storage16 import store_in_16_bit
from shard.trust import ModelOrigin, refuse_code
from shard.weights import hostile_pickle

log = EventLog("shard.loader")

_PROBES: Final = ("早晨喝牛奶是否科学？", "The weather is lovely today.", "好")
_NORM_TOLERANCE: Final = 1e-3
#: For models that state no length at all (T5's positions are relative): enough for a chapter, not for a whole disk.
_UNSTATED_MAX_TOKENS: Final = 8192
_LARGEST_STATED_TOKENS: Final = 1_000_000  # transformers writes 1e30 for "no limit"


def load(
    directory: Path,
    spec: ModelSpec,
    *,
    source: ModelOrigin,
    trust_remote_code: bool,
    threads: int,
    cache_directory: Path,
    machine: Machine | None = None,
) -> Encoder:
    """Load the model in ``directory`` as ``spec`` wants it and prove that it answers; raise ``LoadError`` otherwise.

    ``threads`` is set for torch and the tokenizer, process-wide. ``cache_directory`` receives converted weights.
    """
    recipe = read_recipe(directory, spec)
    if not trust_remote_code:
        refuse_code(directory, source, spec.name)
    plan = plan_compute(spec.device, spec.precision, machine or this_machine())
    _report_choices(spec, recipe, plan)
    _set_threads(threads)
    with _reasons(directory), _quiet_libraries():
        modules = build_modules(directory, recipe, LoadOptions(plan, trust_remote_code, cache_directory))
        encoder = _assemble(modules, recipe, plan)
        _probe(encoder)
        if plan.on_cpu:
            choose_batching(encoder)
    _return_free_memory()
    return encoder


def _return_free_memory() -> None:
    """Give the kernel back what loading and probing have freed; glibc keeps it, other C libraries lack the call."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _report_choices(spec: ModelSpec, recipe: Recipe, plan: ComputePlan) -> None:
    if recipe.pooling_assumed:
        log.warning(
            "pooling_assumed",
            model=spec.id,
            pooling=recipe.pooling,
            reason="the model does not say how its tokens become one vector; mean is a guess that gives poor "
            'vectors if it is wrong: set "pooling" in this model\'s mapping entry',
        )
    if plan.note is not None:
        log.warning("precision_widened", model=spec.id, note=plan.note)


def _set_threads(threads: int) -> None:
    threads = max(1, threads)
    torch.set_num_threads(threads)
    # Read by the Rust tokenizer's thread pool when it is first used.
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))


# --- from modules to an encoder -----------------------------------------------------------------------------------


def _assemble(modules: list[Module], recipe: Recipe, plan: ComputePlan) -> SentenceTransformerEncoder:
    transformer, heads = modules[0], modules[1:]
    if plan.widens_weights:
        store_in_16_bit(transformer, getattr(torch, plan.storage))
    if not plan.quantized:  # bitsandbytes has placed its weights itself and refuses to be moved
        transformer.to(plan.device)
    for head in heads:
        head.to(plan.device, torch.float32)
    tokenizer = transformer.tokenizer
    if tokenizer is None or not tokenizer.is_fast:
        raise LoadError(
            LoadReason.UNSUPPORTED_MODEL,
            f"this model cannot be served: its tokenizer ({type(tokenizer).__name__}) has no tokenizer.json form",
        )
    pooling = next((module for module in heads if isinstance(module, Pooling)), None)
    pipeline = Pipeline(
        transformer,
        heads,
        plan.device,
        pad_id=tokenizer.pad_token_id or 0,
        wants_type_ids="token_type_ids" in tokenizer.model_input_names,
        pools_prompt=pooling is None or pooling.include_prompt,
    )
    facts = TokenizerFacts(
        vocabulary_size=_vocabulary_size(transformer, len(tokenizer)),
        truncation_side=tokenizer.truncation_side,
        special_ids=frozenset(tokenizer.all_special_ids),
        split_special_tokens=bool(tokenizer.split_special_tokens),
    )
    max_tokens = _max_tokens(transformer, recipe)
    info = _describe(pipeline.modules, pooling, recipe, plan, max_tokens, facts.vocabulary_size)
    return SentenceTransformerEncoder(
        pipeline,
        TextTokenizer(tokenizer.backend_tokenizer, facts, max_tokens),
        info,
        prompts=dict(recipe.prompts),
        default_prompt_name=recipe.default_prompt_name,
        truncate_dimension=None if recipe.truncate_dimension is None else info.dimension,
    )


def _describe(
    modules: nn.ModuleList,
    pooling: Pooling | None,
    recipe: Recipe,
    plan: ComputePlan,
    max_tokens: int,
    vocabulary_size: int,
) -> EncoderInfo:
    own = next(
        size
        for module in reversed(modules)
        if callable(measure := getattr(module, "get_embedding_dimension", None)) and (size := measure()) is not None
    )
    mode = "none" if pooling is None else pooling.pooling_mode
    tensors = {id(tensor): tensor for tensor in (*modules.parameters(), *modules.buffers())}
    return EncoderInfo(
        dimension=min(own, recipe.truncate_dimension or own),
        max_tokens=max_tokens,
        pooling=mode if isinstance(mode, str) else "+".join(mode),
        normalized=isinstance(modules[-1], Normalize),
        device=plan.device,
        precision=plan.precision,
        storage_dtype=plan.storage,
        compute_dtype=plan.compute,
        layout=recipe.layout,
        weights_bytes=sum(tensor.nbytes for tensor in tensors.values()),
        vocabulary_size=vocabulary_size,
        prompts=tuple(name for name, _ in recipe.prompts),
    )


def _max_tokens(transformer: Module, recipe: Recipe) -> int:
    """Return the length to cut at: as set, else as the model says, never more than it has positions."""
    stated: int | None = recipe.max_length
    if stated is None and isinstance(transformer, Transformer):
        options = transformer.processing_kwargs
        stated = options.get("text", {}).get("max_length", options.get("common", {}).get("max_length"))
    if stated is None:
        stated = transformer.tokenizer.model_max_length
    positions = _positions(transformer)
    if positions is not None and stated > positions:
        if recipe.max_length is not None:
            log.warning("max_length_capped", asked=recipe.max_length, positions=positions)
        return positions
    if stated > _LARGEST_STATED_TOKENS:
        log.warning("max_length_unstated", using=_UNSTATED_MAX_TOKENS, setting="max_length in the mapping entry")
        return _UNSTATED_MAX_TOKENS
    return int(stated)


def _positions(transformer: Module) -> int | None:
    """Count usable positions. RoBERTa and its kin start at padding_idx + 1, which their table's size includes."""
    for module in transformer.modules():
        table = getattr(module, "position_embeddings", None)
        if isinstance(table, nn.Embedding):
            offset = getattr(module, "padding_idx", None)
            return table.num_embeddings - (offset + 1 if isinstance(offset, int) else 0)
    stated = getattr(getattr(transformer, "config", None), "max_position_embeddings", None)
    return stated if isinstance(stated, int) and stated > 0 else None


def _vocabulary_size(transformer: Module, tokens: int) -> int:
    """Return how many ids are both in the tokenizer and in the table of the model."""
    model = getattr(transformer, "model", None)
    table = model.get_input_embeddings() if model is not None else None
    return min(tokens, getattr(table, "num_embeddings", tokens))


# --- proof and errors ---------------------------------------------------------------------------------------------


def _probe(encoder: Encoder) -> None:
    vectors = encoder.encode(encoder.tokenize(_PROBES, prompt=None))
    if not np.isfinite(vectors).all():
        raise LoadError(
            LoadReason.BAD_VECTORS,
            f"the loaded model answers with NaN or infinity in {encoder.info.precision}: its weights are damaged, or "
            "need a wider precision (fp32 or bf16)",
        )
    norms = np.linalg.norm(vectors, axis=1)
    if encoder.info.normalized and not np.allclose(norms, 1, atol=_NORM_TOLERANCE):
        raise LoadError(
            LoadReason.BAD_VECTORS,
            f"the loaded model should answer with vectors of length 1, but their lengths are {norms.round(4).tolist()}",
        )


@contextmanager
def _reasons(directory: Path) -> Iterator[None]:
    """Turn what libraries raise into a reason a person can act on; what is not listed goes through as it is."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise LoadError(
            LoadReason.OUT_OF_MEMORY,
            f"{directory} does not fit into memory: use a lower precision, another device, or fewer models ({error})",
        ) from error
    except ImportError as error:
        raise LoadError(LoadReason.PACKAGE_MISSING, f"{directory} needs a package: {error}") from error
    except pickle.UnpicklingError as error:
        raise hostile_pickle(directory / "pytorch_model.bin") from error
    except SafetensorError as error:
        raise LoadError(LoadReason.WRONG_WEIGHTS, f"the weights in {directory} cannot be read: {error}") from error
    except OSError as error:
        raise LoadError(LoadReason.INCOMPLETE_DOWNLOAD, f"{directory} cannot be read: {error}") from error
    except RuntimeError as error:
        raise LoadError(
            LoadReason.WRONG_WEIGHTS, f"the weights in {directory} do not make a working model: {error}"
        ) from error
    except (ValueError, KeyError) as error:
        raise LoadError(
            LoadReason.UNSUPPORTED_MODEL, f"{directory} holds a model that cannot be served: {error}"
        ) from error


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keep progress bars and transformers' report of unused weights off the log; ``check_filled`` reads that report."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    # What int8 always does, once per layer and batch; and advice to install what would fetch code from a hub.
    logging.getLogger("bitsandbytes.autograd._functions").addFilter(_is_news)
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_news)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _is_news(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return "inputs will be cast from" not in message and "kernels-community" not in message
