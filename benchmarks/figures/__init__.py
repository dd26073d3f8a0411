"""Every figure by name, in the order in which they are shown. Each function returns the figures of one row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from benchmarks.figure import Figure
from benchmarks.figures.engine import engine_against_gemm, engine_against_sentence_transformers, int8_against_fp32
from benchmarks.figures.footprint import peak_memory, private_memory
from benchmarks.figures.http import (
    bulk_against_engine,
    one_short_text,
    one_short_text_after_a_pause,
    one_short_text_after_another,
    singles_against_engine,
)
from benchmarks.figures.router import router_and_channel
from benchmarks.figures.startup import start
from benchmarks.figures.together import short_under_bulk, two_models
from benchmarks.setting import Setting

ALL: Final[Mapping[str, Callable[[Setting], list[Figure]]]] = {
    "gemm": engine_against_gemm,
    "sentence-transformers": engine_against_sentence_transformers,
    "bulk": bulk_against_engine,
    "singles": singles_against_engine,
    "one-text": one_short_text,
    "one-text-after-pause": one_short_text_after_a_pause,
    "one-text-after-another": one_short_text_after_another,
    "short-under-bulk": short_under_bulk,
    "two-models": two_models,
    "router": router_and_channel,
    "int8": int8_against_fp32,
    "peak-memory": peak_memory,
    "start": start,
    "private-memory": private_memory,
}
#: Those that say something of a card. The others are about a CPU's cores, kernels or memory, or run on the CPU.
ON_CARD: Final = (
    "gemm",
    "sentence-transformers",
    "bulk",
    "singles",
    "one-text",
    "one-text-after-pause",
    "one-text-after-another",
    "short-under-bulk",
    "router",
)
