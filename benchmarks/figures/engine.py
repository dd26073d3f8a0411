"""The engine alone: against the machine's limit, against sentence-transformers, and in int8."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks import texts
from benchmarks.figure import Figure, Part, interleaved, median_ratio, rounded
from benchmarks.setting import Setting
from benchmarks.worker import Worker

_GEMM_REPEATS = 5
#: On a card sentence-transformers is at its best in far larger batches than its default of 32.
_LARGE_BATCH = 256


def engine_against_gemm(setting: Setting) -> list[Figure]:
    """FLOP/s on mixed lengths, tokenising included, as a share of what large products between them reach."""
    selection = setting.enough(texts.mixed())
    with setting.engine() as engine:
        engine.call("seconds", setting.warm_up(selection))
        flops: float = engine.call("flops", selection)
        tokens: int = engine.call("tokens", selection)
        runs, onednn = interleaved(
            setting.rounds(5),
            lambda: engine.call("seconds_beside_products", selection),
            lambda: 0.0 if setting.on_card else engine.call("onednn_flops_per_s", _GEMM_REPEATS),
        )
        described = engine.call("describe")
    whole = [flops / (tokenize_s + encode_s) for tokenize_s, encode_s, _ in runs]
    encode = [flops / encode_s for _, encode_s, _ in runs]
    torch_mm = [rate for _, _, rate in runs]
    share = median_ratio(whole, torch_mm)
    whole_s = flops / statistics.median(whole)
    parts: dict[str, Part] = {
        "engine_gflops_per_s": rounded([value / 1e9 for value in whole], 1),
        "encode_alone_gflops_per_s": rounded([value / 1e9 for value in encode], 1),
        "torch_mm_gflops_per_s": rounded([value / 1e9 for value in torch_mm], 1),
    }
    if setting.on_card:
        encode_s = flops / statistics.median(encode)
        encode_share = median_ratio(encode, torch_mm)
        parts |= {
            "share_with_tokenizing": round(share, 4),
            "share_of_encoding_alone": round(encode_share, 4),
            "texts_per_s": round(len(selection) / whole_s),
            "encode_alone_texts_per_s": round(len(selection) / encode_s),
            "encode_alone_tokens_per_s": round(tokens / encode_s),
        }
        note = f"large products in {setting.precision}; without tokenising, the engine reaches {encode_share:.2f}"
    else:
        of_onednn = median_ratio(whole, onednn)
        parts |= {
            "onednn_linear_gflops_per_s": rounded([value / 1e9 for value in onednn], 1),
            "ratio_to_onednn_linear": round(of_onednn, 3),
        }
        note = f"torch.mm is MKL; of oneDNN's own large product, the engine reaches {of_onednn:.2f}"
    parts |= {"texts": len(selection), "tokens": tokens, "tokens_per_s": round(tokens / whole_s)}
    parts |= {name: value for name, value in described.items() if isinstance(value, str)}
    target = None if setting.on_card else 0.85
    return [Figure("engine, mixed lengths: FLOP/s of torch.mm", share, target, "x", "at least", parts, note)]


def engine_against_sentence_transformers(setting: Setting) -> list[Figure]:
    """Texts per second against ``SentenceTransformer.encode(batch_size=32)`` on the same texts."""
    selection = setting.enough(texts.mixed(200 if setting.quick else None))
    sizes = (32, _LARGE_BATCH) if setting.on_card else (32,)
    with setting.engine() as engine, setting.sentence_transformers() as peer:
        engine.call("seconds", setting.warm_up(selection))
        _seconds_each(peer, setting.warm_up(selection), sizes)
        ours, theirs = interleaved(
            setting.rounds(5),
            lambda: engine.call("seconds", selection),
            lambda: _seconds_each(peer, selection, sizes),
        )
    usual = [seconds[0] for seconds in theirs]
    parts: dict[str, Part] = {
        "engine_texts_per_s": rounded([len(selection) / value for value in ours], 1),
        "sentence_transformers_texts_per_s": rounded([len(selection) / value for value in usual], 1),
    }
    note = ""
    if setting.on_card:
        large = [seconds[1] for seconds in theirs]
        of_large = median_ratio(large, ours)
        parts |= {
            f"sentence_transformers_texts_per_s_in_batches_of_{_LARGE_BATCH}": rounded(
                [len(selection) / value for value in large], 1
            ),
            f"ratio_to_batches_of_{_LARGE_BATCH}": round(of_large, 3),
        }
        note = f"both in {setting.precision}; against its batches of {_LARGE_BATCH} it is {of_large:.2f}"
    name = "engine, mixed lengths: sentence-transformers"
    return [Figure(name, median_ratio(usual, ours), 1.8, "x", "at least", parts, note)]


def _seconds_each(peer: Worker, selection: list[str], sizes: Sequence[int]) -> list[float]:
    """Return the seconds of sentence-transformers with each size of batch."""
    return [peer.call("seconds", selection, size) for size in sizes]


def int8_against_fp32(setting: Setting) -> list[Figure]:
    """Throughput of the engine in int8 against fp32, with the cosine that int8 keeps."""
    selection = texts.mixed(200 if setting.quick else None)
    with setting.engine("int8") as narrow, setting.engine("fp32") as wide:
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
