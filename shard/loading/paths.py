"""Which way to compute: the quickest one whose vectors are the model's own, found out at every start.

Called by ``loader``. The way is not looked up in a list of model names: each candidate is compared with the plain path
on a fixed set of probes, and the first that is near enough is taken. Where none is, it is the plain path itself; and
where texts that share its passes change each other's vectors, one text at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Final

import numpy as np
from torch import fx
from transformers import PreTrainedModel

from emb_model_provider.errors import unsupported
from emb_model_provider.logs import EventLog
from emb_model_provider.messages.status import Batching
from emb_model_provider.modelmap import ModelSpec
from shard.device import ComputePlan
from shard.encoder import Results
from shard.encoders.cuda.packed import CudaPackedPath
from shard.encoders.filled_passes import FilledPasses
from shard.encoders.graph.capture import CaptureError, capture
from shard.encoders.graph.int8 import narrow_linears
from shard.encoders.graph.kernels import choose_float_kernels, find_plain_tokens, is_onednn_quicker
from shard.encoders.graph.lowering import Kernel, Kernels, lower
from shard.encoders.graph.program import compile_graph
from shard.encoders.one_by_one import OneByOne
from shard.encoders.onednn_linears import multiply_by_onednn, multiply_by_torch
from shard.encoders.packed import PackedGraph, PackedPath, by_tokens
from shard.encoders.positions import find_first_position
from shard.encoders.rescaled_rope import BesideRescaled
from shard.encoders.score_head import ScoreHead
from shard.encoders.sentence_transformer import ForwardPath, run_path
from shard.encoders.static_embedding import TokenTable
from shard.loading.parts import Parts, count_bytes
from shard.loading.trial import (
    MAX_DEVIATION,
    MIN_COSINE_16_BIT,
    MIN_COSINE_INT8,
    Judge,
    Trial,
    is_equal,
    is_exact,
    is_within,
    judge_of,
    run_alone,
)
from shard.memory import ran_out

log = EventLog("shard.loading.paths")

#: By more than this their company must not move the probes in fp32. It moves other texts up to six times as far, and
#: what we promise is 1e-6.
_MAX_MOVED: Final = 2e-7


@dataclass(frozen=True, slots=True)
class Chosen:
    """The way taken. ``results`` are those of the probes, ``weights_bytes`` what a long pass reads."""

    path: ForwardPath
    batching: Batching
    kernel: str
    results: Results
    weights_bytes: int


def choose_path(parts: Parts, plan: ComputePlan, trial: Trial, spec: ModelSpec) -> Chosen:
    """Return the quickest way through ``parts`` that is near enough on ``trial``; ``spec`` may have a say in it.

    In int8 on the CPU ``parts`` are in fp32 and the way taken holds narrow copies of their matrices.
    """
    if isinstance(parts.transformer, TokenTable):
        return _looked_up(parts, trial)
    graph = _capture(parts, plan)
    if graph is not None and not plan.on_cpu:
        return _on_card(graph, parts, plan, trial) or _padded(parts, plan, trial)
    if graph is not None:
        plain_tokens = find_plain_tokens(graph)
        for kernels, is_near in _candidates(graph, parts, plan, trial, spec):
            lowered = _lower_all(graph, kernels, plain_tokens)
            if lowered is None:
                continue
            # Each by itself on all probes; together only one of them would see the long pass.
            runs = [compile_graph(module) for module in lowered]
            trials = [trial.run(_packed(run, parts, trial.max_tokens, plain_tokens)) for run in runs]
            nearness = min((nearness for _, nearness in trials), key=lambda one: one.cosine)
            seen = {"kernel": str(kernels), "cosine": nearness.cosine, "deviation": nearness.deviation}
            if all(is_near(nearness) for _, nearness in trials):
                log.info("packed", **seen)
                run = runs[0] if kernels.max_tokens is None else by_tokens(runs[0], runs[-1], kernels.max_tokens)
                weights_bytes = _count_packed(lowered[-1], parts)
                path = _packed(run, parts, trial.max_tokens, plain_tokens)
                if plan.narrows_to_int8 and isinstance(parts.heads, ScoreHead):
                    parts.heads.let_go_of_body()  # which is in fp32
                return Chosen(path, "packed", str(kernels), trials[-1][0], weights_bytes)
            log.warning("not_near", **seen)
    return _padded(parts, plan, trial)


def _looked_up(parts: Parts, trial: Trial) -> Chosen:
    results, nearness = trial.run(parts.plain)
    log.info("packed", kernel="stock", cosine=nearness.cosine, deviation=nearness.deviation)
    return Chosen(parts.plain, "packed", "stock", results, count_bytes([parts.transformer, parts.heads.modules]))


def _on_card(graph: fx.GraphModule, parts: Parts, plan: ComputePlan, trial: Trial) -> Chosen | None:
    modules = _lower_all(graph, Kernels("varlen"), 0)
    if modules is None:
        return None
    (lowered,) = modules
    path = CudaPackedPath(
        compile_graph(lowered),
        parts.heads,
        plan.device,
        first_position=find_first_position(parts.transformer),
        wants_type_ids=parts.wants_type_ids,
    )
    whole = _with_long(path, parts)
    for records in (False, True):  # a pass that fails by itself cannot be recorded
        if records:
            path.record_passes(trial.probes[0], trial.max_tokens)
        results, nearness = trial.run(whole)
        seen = {"kernel": "varlen", "recorded": records, "cosine": nearness.cosine, "deviation": nearness.deviation}
        if not judge_of(plan)(nearness):
            log.warning("not_near", **seen)
            return None
        log.info("packed", **seen)
    weights_bytes = _count_packed(lowered, parts)
    if isinstance(parts.heads, ScoreHead):
        parts.heads.let_go_of_body()  # whose matrices the graph has merged into others
    return Chosen(whole, "packed", "varlen", results, weights_bytes)


def _count_packed(graph: fx.GraphModule, parts: Parts) -> int:
    """Return the size of the weights of a graph and of what follows it: a classifier's head is part of its model."""
    heads = parts.heads
    return count_bytes([graph, heads.without_body() if isinstance(heads, ScoreHead) else heads.modules])


def _lower_all(graph: fx.GraphModule, kernels: Kernels, plain_tokens: int) -> list[fx.GraphModule] | None:
    """Return the graph with each of the kernels; ``None`` where they cannot be put in."""
    try:
        return [lower(graph, kernel, plain_tokens) for kernel in kernels.all]
    except Exception as error:
        if ran_out(error):
            raise
        # A graph that nobody has thought of is a mistake of ours, and no reason not to serve its model.
        log.exception("not_lowered", kernel=str(kernels))
        return None


def _candidates(
    graph: fx.GraphModule, parts: Parts, plan: ComputePlan, trial: Trial, spec: ModelSpec
) -> Iterator[tuple[Kernels, Judge]]:
    if plan.narrows_to_int8:
        # An error in the graph itself could hide behind what rounding does to vectors.
        stock = _lower_all(graph, Kernels("stock"), 0)
        if stock is None or not is_equal(trial.run(_packed(compile_graph(stock[0]), parts, trial.max_tokens, 0))[1]):
            return
        kinds: tuple[Kernel, ...] = ("int8-dynamic", "int8-weight-only")
        for kernel in kinds[kinds.index(f"int8-{spec.int8_method}") :]:
            yield Kernels(kernel), is_within(MIN_COSINE_INT8[kernel])
        return
    judge = judge_of(plan)
    kernels = choose_float_kernels(graph, prepack=spec.prepack_weights)
    yield kernels, judge
    if kernels != Kernels("stock"):
        yield Kernels("stock"), judge


def _capture(parts: Parts, plan: ComputePlan) -> fx.GraphModule | None:
    if parts.rescaled is not None and plan.narrows_to_int8:
        log.info("padded", reason="its own code is needed for long texts, and would hold its matrices in fp32, too")
        return None
    model = parts.heads.body if isinstance(parts.heads, ScoreHead) else getattr(parts.transformer, "model", None)
    if not isinstance(model, PreTrainedModel) or not parts.heads.takes_flat_output:
        log.info("padded", reason="this model's parts need more than its last hidden states")
        return None
    try:
        with nullcontext() if parts.rescaled is None else parts.rescaled.kept_plain():
            return capture(model, type_ids=parts.wants_type_ids)
    except CaptureError as error:
        log.info("padded", reason=str(error))
        return None


def _packed(run: PackedGraph, parts: Parts, max_tokens: int, plain_tokens: int) -> ForwardPath:
    path = PackedPath(
        run,
        parts.heads,
        plain_tokens=plain_tokens,
        max_tokens=max_tokens,
        first_position=find_first_position(parts.transformer),
        wants_type_ids=parts.wants_type_ids,
    )
    return _with_long(path, parts)


def _with_long(path: ForwardPath, parts: Parts) -> ForwardPath:
    """Return ``path``, with the model's own code for those texts whose positions are rescaled."""
    return path if parts.rescaled is None else BesideRescaled(path, parts.rescaled)


def _choose_linears(parts: Parts, plan: ComputePlan, trial: Trial) -> Kernel:
    """Have the model's own code multiply in the quickest way that is near enough; return which it is."""
    if plan.narrows_to_int8:
        narrow_linears(parts.transformer)
        return "int8-weight-only"
    if plan.on_cpu and plan.storage == plan.compute == "float32" and is_onednn_quicker(parts.transformer):
        multiply_by_onednn(parts.transformer)
        if is_equal(trial.run(parts.plain)[1]):
            return "onednn"
        multiply_by_torch(parts.transformer)
    return "stock"


def _padded(parts: Parts, plan: ComputePlan, trial: Trial) -> Chosen:
    kernel = _choose_linears(parts, plan, trial)
    results, nearness = trial.run(parts.plain)
    log.info("plain", kernel=kernel, cosine=nearness.cosine, deviation=nearness.deviation)
    if plan.narrows_to_int8 and nearness.cosine < MIN_COSINE_INT8["int8-weight-only"]:
        log.warning("far_from_fp32", cosine=nearness.cosine, reason="8 bit are too few for it; fp32 and bf16 are not")
    weights_bytes = count_bytes([parts.transformer, parts.heads.modules])
    if isinstance(parts.plain, OneByOne):
        log.info("one_by_one", reason="its files name no padding, without which its own code takes one text")
        return Chosen(parts.plain, "alone", kernel, results, weights_bytes)
    if not judge_of(plan)(nearness):
        alone = run_alone(parts.plain, trial.probes)
        moved = trial.compare(results, alone)  # by their company; what the precision costs is in both
        # On a card kernels change with the shape, and one text at a time is too dear a price for their rounding.
        is_near = judge_of(plan) if plan.on_cpu else is_within(MIN_COSINE_16_BIT)
        if np.isfinite(moved.deviation) and not is_near(moved):
            if not is_near(trial.compare(run_alone(parts.plain, trial.probes), alone)):
                raise unsupported("its own code gives the same text another vector each time (it draws random numbers)")
            log.warning("one_by_one", reason="its vectors depend on the texts beside them", cosine=moved.cosine)
            return Chosen(OneByOne(parts.plain), "alone", kernel, alone, weights_bytes)
    path = parts.plain
    if plan.on_cpu and is_exact(plan) and _MAX_MOVED < _moved(path, kernel, results, trial) <= MAX_DEVIATION:
        log.info("passes_filled", reason="a short text by itself has another vector")
        path = FilledPasses(path)
        results = run_path(path, trial.probes)
    return Chosen(path, "padded", kernel, results, weights_bytes)


def _moved(plain: ForwardPath, kernel: Kernel, results: Results, trial: Trial) -> float:
    """Return how far ``results``, of all probes together, are from those of each alone."""
    alone = trial.expected if kernel == "stock" else run_alone(plain, trial.probes)
    return trial.compare(results, alone).deviation
