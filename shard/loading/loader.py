"""What was fetched of a model → an ``Encoder`` that is known to answer. Called once by ``main``; asks no network.

Order: what layout, may its code run, where and how to compute, build, and which way through it is quick and right.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Final

import numpy as np
import torch

from emb_model_provider.errors import LoadError, LoadReason
from emb_model_provider.logs import EventLog
from emb_model_provider.messages.status import EncoderInfo
from emb_model_provider.modelmap import ModelSpec
from shard.device import ComputePlan, Machine, as_saved, plan_compute, this_machine
from shard.encoder import Encoder, Reading, Results, Tokenized
from shard.encoders.checked_transformer import LoadOptions
from shard.encoders.computed_buffers import fill_computed
from shard.encoders.graph.lowering import Kernel
from shard.encoders.heads import HeadFacts
from shard.encoders.in_parts import Helpers, count_helpers
from shard.encoders.late_modules import read_lengths
from shard.encoders.modules import build_beside, build_modules
from shard.encoders.sentence_transformer import ForwardPath, SentenceTransformerEncoder
from shard.encoders.text_tokenizer import TextTokenizer
from shard.fidelity import compare_results, compare_scores
from shard.foreign_ids import make_decode
from shard.loading.decisive_settings import decisive_settings
from shard.loading.fetched import Fetched
from shard.loading.first_answer import refuse_infinite
from shard.loading.lengths import max_tokens
from shard.loading.load_errors import quiet_libraries, reasons
from shard.loading.looked_up_routes import open_looked_up
from shard.loading.parts import Parts, narrow, place
from shard.loading.paths import Chosen, choose_path
from shard.loading.tokenizers import find_question, make_tokenizer
from shard.loading.trial import Trial, read_probes, run_alone, warn_if_far
from shard.mapped_files import have_changed, states_below
from shard.memory import keep_freed_memory, limit_kernel_caches, return_freed_memory, return_read_weights
from shard.model_files.fingerprint import hash_code, name_fingerprint, start_hashing
from shard.model_files.json_files import read_object
from shard.model_files.layouts import read_recipe
from shard.model_files.recipe import Recipe
from shard.model_files.static_files import is_static
from shard.model_files.trust import own_code, refuse_code
from shard.model_files.weights import weight_files

log = EventLog("shard.loading.loader")

_NORM_TOLERANCE: Final = 1e-3
_EXACT: Final = ComputePlan("cpu", "fp32", "float32", "float32")
#: They have copies of the matrices, and read of a checkpoint no more than the embeddings of tokens that come.
_COPYING_KERNELS: Final[tuple[Kernel, ...]] = ("onednn-packed", "int8-dynamic", "int8-weight-only")
#: Above it, loading a model once more in fp32 on the CPU is too high a price for knowing its cosine.
_MAX_COMPARED_BYTES: Final = 4 * 1024**3


def load(
    fetched: Fetched,
    spec: ModelSpec,
    *,
    threads: int,
    cache_directory: Path,
    machine: Machine | None = None,
) -> Encoder:
    """Load what was fetched as ``spec`` wants it and prove that it answers; raise ``LoadError`` otherwise.

    ``threads`` is set for torch, process-wide; so many tokenise, too, as far as they are of use. ``cache_directory``
    receives converted weights. ``foreign_classes`` has been told of code in other repositories.
    """
    directory = fetched.directory
    recipe = read_recipe(directory, spec)
    if not fetched.is_trusted:
        refuse_code(directory, fetched.source, spec.name)
    folder = directory / recipe.modules[0].path if recipe.modules else directory
    machine = machine or this_machine()
    plan = as_saved(plan_compute(spec.device, spec.precision, machine), read_object(folder / "config.json"), machine)
    if is_static(recipe.modules):  # sums up in fp32, in whatever format its rows are
        plan = replace(plan, compute="float32", note=None)
    _report_choices(spec, recipe, plan)
    threads = max(1, threads)
    _set_threads(threads)
    if not plan.on_cpu:
        os.environ.setdefault("TRITON_CACHE_DIR", str(cache_directory / "triton"))  # by default it writes into the home
        torch.backends.cudnn.allow_tf32 = False  # by default convolutions take 10 of fp32's 23 bits, products all
    keep_freed_memory()
    limit_kernel_caches()
    build = _Build(fetched, spec, recipe, plan, cache_directory, threads)
    with reasons(directory, uses_bitsandbytes=plan.uses_bitsandbytes), quiet_libraries():
        encoder = build.run()
    return_freed_memory()
    if encoder.info.kernel in _COPYING_KERNELS:
        return_read_weights()
    if not plan.on_cpu:
        gc.collect()  # the captured graph, which holds the matrices that were merged, is part of a circle
        torch.cuda.empty_cache()  # for the other models on this card
    return encoder


@dataclass(frozen=True, slots=True)
class _Build:
    """One loading: what it starts from, and its steps."""

    fetched: Fetched
    spec: ModelSpec
    recipe: Recipe
    plan: ComputePlan
    cache_directory: Path
    threads: int

    def run(self) -> SentenceTransformerEncoder:
        directory = self.fetched.directory
        code = own_code(directory) if self.fetched.is_trusted else []
        hashing = start_hashing(directory, self._folders(), code)
        foreign_code = hash_code(self.fetched.foreign_code) if self.fetched.foreign_code else None
        parts = self._parts(_EXACT if self.plan.starts_from_fp32 else self.plan)
        length = max_tokens(parts.transformer, self.recipe)
        lengths = None if self.recipe.late is None else read_lengths(parts.transformer)
        decode, helpers = make_decode(self.spec.token_ids), Helpers(count_helpers(self.threads))
        looked_up = open_looked_up(self.fetched.directory, self.recipe, decode, helpers)
        tokenizer = make_tokenizer(
            parts.transformer,
            length,
            decode,
            helpers,
            lengths,
            question := find_question(parts.transformer, self.recipe),
            looked_up,
        )
        prompts = dict(self.recipe.prompts)
        default = self.recipe.default_prompt_name
        facts = parts.heads.facts
        read_as = default if self.recipe.routes is None else self.recipe.routes.first_task
        reading = Reading(None if default is None else prompts[default], facts.outputs, prompt_name=read_as)
        probes = read_probes(tokenizer, reading, facts.task)
        if self.recipe.routes is not None:
            probes += [one._replace(route=way) for way in self.recipe.routes.beside_first for one in probes]
        compare = compare_scores if self.recipe.scores else compare_results
        exact = self._exact_vectors(parts, probes)
        if self.plan.widens_weights:
            narrow(parts, self.plan)
        expected = exact if self.plan == _EXACT or self.plan.narrows_to_int8 else None
        if expected is None:
            expected = run_alone(parts.plain, probes)
        chosen = choose_path(parts, self.plan, Trial(probes, expected, length, compare), self.spec)
        _check(chosen.results, normalized=facts.normalized, precision=self.plan.precision)
        info = self._describe(facts, tokenizer, length, chosen).replace(takes_instruction=question is not None)
        cosine = None if exact is None else compare(chosen.results, exact).cosine
        if cosine is not None:
            warn_if_far(self.plan, cosine)
        info = info.replace(cosine=cosine, fingerprint=self._fingerprint(info, hashing.result(), foreign_code))
        path, reference = chosen.path, self._reference(parts)
        if looked_up is not None and looked_up.paths:
            path, reference = looked_up.beside(path), looked_up.beside_later(reference)
        return SentenceTransformerEncoder(
            path,
            reference,
            tokenizer,
            info,
            own_dimension=facts.dimension,
            prompts=prompts,
            default_prompt_name=default,
        )

    def _fingerprint(self, info: EncoderInfo, weights: str, foreign_code: str | None) -> str:
        decisive = decisive_settings(info, self.recipe, self.plan) | {"revision": self.fetched.revision}
        if foreign_code is not None:
            decisive["foreign_code"] = foreign_code
        return name_fingerprint(weights, decisive)

    def _folders(self) -> list[Path]:
        directory, routes = self.fetched.directory, self.recipe.routes
        entries = self.recipe.modules if routes is None else dict.fromkeys(chain.from_iterable(routes.ways))
        return [directory / entry.path for entry in entries] or [directory]

    def _parts(self, plan: ComputePlan) -> Parts:
        options = LoadOptions(plan, self.fetched.is_trusted, self.cache_directory)
        modules = build_modules(self.fetched.directory, self.recipe, options)
        fill_computed(modules)
        return place(modules, plan, self.recipe, build_beside(self.fetched.directory, self.recipe, options, modules[0]))

    def _exact_vectors(self, parts: Parts, probes: Sequence[Tokenized]) -> Results | None:
        """Return the plain fp32 results of the probes, each alone; ``None`` where there is none, or too large."""
        if self.plan.starts_from_fp32:
            return run_alone(parts.plain, probes)
        if (
            self.plan.is_saved
            or sum(file.stat().st_size for file in weight_files(self._folders())) > _MAX_COMPARED_BYTES
        ):
            return None
        return run_alone(self._parts(_EXACT).plain, probes)

    def _reference(self, parts: Parts) -> Callable[[], ForwardPath]:
        if self.plan == _EXACT or self.plan.is_saved:
            return lambda: parts.plain

        directory = self.fetched.directory
        before = states_below(directory)

        def load_exactly() -> ForwardPath:
            if have_changed(directory, before):
                raise RuntimeError(f"{directory} has changed since the model was loaded: restart the model")
            log.info("reference_loaded", reason="an input gave no finite vector and is computed once more in fp32")
            with quiet_libraries():
                return self._parts(_EXACT).plain

        return load_exactly

    def _describe(self, facts: HeadFacts, tokenizer: TextTokenizer, length: int, chosen: Chosen) -> EncoderInfo:
        return EncoderInfo(
            dimension=min(facts.dimension, self.recipe.truncate_dimension or facts.dimension),
            max_tokens=length,
            pooling=facts.pooling,
            normalized=facts.normalized,
            device=self.plan.device,
            precision=self.plan.precision,
            storage_dtype=self.plan.storage,
            compute_dtype=self.plan.compute,
            layout=self.recipe.layout,
            weights_bytes=chosen.weights_bytes,
            vocabulary_size=tokenizer.vocabulary_size,
            prompts=tuple(name for name, _ in self.recipe.prompts),
            batching=chosen.batching,
            kernel=chosen.kernel,
            task=facts.task,
            outputs=facts.outputs,
            labels=facts.labels,
            activation=self.recipe.activation if self.recipe.scores else "identity",
            token_dimension=facts.token_dimension,
            matryoshka=self.recipe.matryoshka,
            routes=() if self.recipe.routes is None else tuple(task for task, _ in self.recipe.routes.by_task),
        )


def _report_choices(spec: ModelSpec, recipe: Recipe, plan: ComputePlan) -> None:
    if recipe.pooling_assumed:
        log.warning(
            "pooling_assumed",
            model=spec.id,
            pooling=recipe.pooling,
            reason="the model does not say how its tokens become one vector; this is a guess that gives poor "
            'vectors if it is wrong: set "pooling" in this model\'s mapping entry',
        )
    if spec.device == "auto" and plan.on_cpu and (card := os.environ.get("CUDA_VISIBLE_DEVICES")):
        log.warning(
            "card_not_used",
            model=spec.id,
            card=card,
            reason=f"torch {torch.__version__} sees no CUDA device there, so the CPU computes: check nvidia-smi, the "
            'driver and that torch is a CUDA build, or set "device" to cpu',
        )
    if plan.is_saved and spec.precision not in ("auto", plan.precision):
        log.warning(
            "saved_narrow",
            model=spec.id,
            precision=plan.precision,
            reason="bitsandbytes has saved its weights so; for another precision take the model that they were made of",
        )
    if plan.note is not None:
        log.warning("precision_widened", model=spec.id, note=plan.note)


def _set_threads(threads: int) -> None:
    torch.set_num_threads(threads)
    # The Rust tokenizer reads it at every call; ``Helpers`` are in place of its thread pool.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _check(results: Results, *, normalized: bool, precision: str) -> None:
    """Raise ``LoadError`` BAD_VECTORS where the probes have no vectors worth serving."""
    refuse_infinite(results, precision)
    norms = np.ones(1) if results.rows is None else np.linalg.norm(results.rows, axis=1)
    if normalized and not np.allclose(norms, 1, atol=_NORM_TOLERANCE):
        raise LoadError(
            LoadReason.BAD_VECTORS,
            f"the loaded model should answer with vectors of length 1, but their lengths are {norms.round(4).tolist()}",
        )
