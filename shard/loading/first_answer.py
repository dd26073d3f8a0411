"""The last question before READY: whether the loaded model answers at all, and with what it says of itself.

The loader compares its own models with a reference; this holds for whatever encoder it returns. Called by ``main``,
for the sentence also by ``loader``.
"""

from __future__ import annotations

from typing import Final

from emb_model_provider.errors import LoadError, LoadReason
from shard.encoder import Encoder, Reading, Results, row_dimension

QUESTIONS: Final = ("Is it ready?", "准备好了吗？")


def refuse_bad_answers(encoder: Encoder) -> None:
    """Raise ``LoadError`` BAD_VECTORS for results that are not finite or of another shape than announced."""
    info = encoder.info
    seconds = QUESTIONS if info.task == "rerank" else ()
    results = encoder.encode(encoder.tokenize(QUESTIONS, Reading(outputs=info.outputs), seconds))
    refuse_infinite(results, info.precision)
    expected = (len(QUESTIONS), row_dimension(info))
    if results.rows is not None and results.rows.shape != expected:
        raise LoadError(
            LoadReason.BAD_VECTORS,
            f"the loaded model answers {expected[0]} texts with numbers of shape {results.rows.shape}, not {expected}: "
            "its configuration and its weights do not belong together",
        )


def refuse_infinite(results: Results, precision: str) -> None:
    """Raise ``LoadError`` BAD_VECTORS for results that are not finite."""
    if not results.is_finite:
        raise LoadError(
            LoadReason.BAD_VECTORS,
            f"the loaded model answers with NaN or infinity in {precision}: its weights are damaged, or need a wider "
            "precision (fp32 or bf16)",
        )
