"""The engine alone: against the machine's limit, against sentence-transformers, and in int8."""

from __future__ import annotations

import statistics

from benchmarks import texts
from benchmarks.bare_engine import GEMM_FLOPS, worker_environment
from benchmarks.figure import Figure, interleaved, median_ratio, rounded
from benchmarks.setting import Setting
from benchmarks.worker import Worker

_GEMM_REPEATS = 5


def engine_against_gemm(setting: Setting) -> list[Figure]:
    """FLOP/s on mixed lengths, tokenising included, as a share of what large fp32 products between them reach."""
    selection = texts.mixed()
    with setting.engine() as engine:
        engine.call("seconds", selection[:100])
        flops: float = engine.call("flops", selection)
        tokens: int = engine.call("tokens", selection)
        runs, onednn = interleaved(
            setting.rounds(5),
            lambda: engine.call("seconds_beside_products", selection),
            lambda: engine.call("onednn_flops_per_s", _GEMM_REPEATS),
        )
        described = engine.call("describe")
    whole = [flops / (tokenize_s + encode_s) for tokenize_s, encode_s, _ in runs]
    encode = [flops / encode_s for _, encode_s, _ in runs]
    torch_mm = [GEMM_FLOPS / product_s for _, _, product_s in runs]
    share = median_ratio(whole, torch_mm)
    of_onednn = median_ratio(whole, onednn)
    return [
        Figure(
            "engine, mixed lengths: FLOP/s of torch.mm",
            share,
            0.85,
            "x",
            "at least",
            {
                "engine_gflops_per_s": rounded([value / 1e9 for value in whole], 1),
                "encode_alone_gflops_per_s": rounded([value / 1e9 for value in encode], 1),
                "torch_mm_gflops_per_s": rounded([value / 1e9 for value in torch_mm], 1),
                "onednn_linear_gflops_per_s": rounded([value / 1e9 for value in onednn], 1),
                "ratio_to_onednn_linear": round(of_onednn, 3),
                "texts": len(selection),
                "tokens": tokens,
                "tokens_per_s": round(tokens * statistics.median(whole) / flops),
                **{name: value for name, value in described.items() if isinstance(value, str)},
            },
            f"torch.mm is MKL; of oneDNN's own large product, the engine reaches {of_onednn:.2f}",
        )
    ]


def engine_against_sentence_transformers(setting: Setting) -> list[Figure]:
    """Texts per second against ``SentenceTransformer.encode(batch_size=32)`` on the same texts."""
    selection = texts.mixed(200 if setting.quick else None)
    with (
        setting.engine() as engine,
        Worker(
            "benchmarks.baselines:SentenceTransformers",
            str(setting.model_directory),
            setting.threads,
            environment=worker_environment(setting.threads),
        ) as peer,
    ):
        engine.call("seconds", selection[:100])
        peer.call("seconds", selection[:100])
        ours, theirs = interleaved(
            setting.rounds(5), lambda: engine.call("seconds", selection), lambda: peer.call("seconds", selection)
        )
    return [
        Figure(
            "engine, mixed lengths: sentence-transformers",
            median_ratio(theirs, ours),
            1.8,
            "x",
            "at least",
            {
                "engine_texts_per_s": rounded([len(selection) / value for value in ours], 1),
                "sentence_transformers_texts_per_s": rounded([len(selection) / value for value in theirs], 1),
            },
        )
    ]


def int8_against_fp32(setting: Setting) -> list[Figure]:
    """Throughput of the engine in int8 against fp32, with the cosine that int8 keeps."""
    selection = texts.mixed(200 if setting.quick else None)
    with setting.engine("int8") as narrow, setting.engine() as wide:
        narrow.call("seconds", selection[:100])
        wide.call("seconds", selection[:100])
        int8, fp32 = interleaved(
            setting.rounds(5), lambda: narrow.call("seconds", selection), lambda: wide.call("seconds", selection)
        )
        described = narrow.call("describe")
    return [
        Figure(
            "int8: fp32 throughput",
            median_ratio(fp32, int8),
            1.5,
            "x",
            "at least",
            {
                "int8_texts_per_s": rounded([len(selection) / value for value in int8], 1),
                "fp32_texts_per_s": rounded([len(selection) / value for value in fp32], 1),
                "int8_kernel": described["kernel"],
                "int8_smallest_cosine_to_fp32": round(described["cosine"], 5),
            },
        )
    ]
