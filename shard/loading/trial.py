"""What every way of computing is tried on, and how near to the model's own vectors it must come.

Called by ``loader``, which has the probes read and computed on the plain path, and by ``paths``, which tries each way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from emb_model_provider.errors import unsupported
from emb_model_provider.logs import EventLog
from emb_model_provider.modelmap import Task
from shard.device import ComputePlan
from shard.encoder import Reading, Results, Tokenized, in_order
from shard.encoders.graph.lowering import Kernel
from shard.encoders.sentence_transformer import ForwardPath, run_path
from shard.encoders.text_tokenizer import TextTokenizer
from shard.fidelity import PROBES, Nearness
from shard.memory import ran_out

log = EventLog("shard.loading.trial")

#: Of a vector of length 1, the bound that our promise of equality allows in fp32.
MAX_DEVIATION: Final = 1e-5
#: Two ways of computing in 16 bit round differently at every step.
MIN_COSINE_16_BIT: Final = 0.999
#: ONNX Runtime's dynamic int8 comes to .99; far below it a search result changes for no reason a user could see.
MIN_COSINE_INT8: Final[dict[Kernel, float]] = {"int8-dynamic": 0.97, "int8-weight-only": 0.99}
#: Of what bitsandbytes holds: that of our own 8 bit; in 4 bit all-MiniLM-L6-v2 has .92 at the least.
_MIN_COSINE_BITSANDBYTES: Final[dict[str, float]] = {"int8": 0.99, "nf4": 0.9}

Judge = Callable[[Nearness], bool]


@dataclass(frozen=True, slots=True)
class Trial:
    """What every candidate is tried on: the probes, and what the plain path makes of each of them alone.

    ``max_tokens`` is the longest text that the model will be given. ``compare`` says how near results are.
    """

    probes: Sequence[Tokenized]
    expected: Results
    max_tokens: int
    compare: Callable[[Results, Results], Nearness]

    def run(self, path: ForwardPath) -> tuple[Results, Nearness]:
        """Return the results of all probes in one batch, and how near they come; so does the first probe alone.

        A path that raises is as far as can be; of too little memory its error is raised.
        """
        try:
            found = run_path(path, self.probes)
            first = run_path(path, self.probes[:1])
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:  # a kernel this processor lacks
            if ran_out(error):  # which says nothing of this way: with more room it may be the one
                raise
            log.warning("not_computed", error=f"{type(error).__name__}: {error}")
            return Results(np.full((1, 1), np.nan, np.float32)), Nearness(cosine=-1.0, deviation=float("inf"))
        count = len(self.probes)
        everything = in_order([(range(count), found), ([count], first)], count + 1)
        wanted = in_order([(range(count), self.expected), ([count], self.expected.at(0))], count + 1)
        return found, self.compare(everything, wanted)


def run_alone(path: ForwardPath, probes: Sequence[Tokenized]) -> Results:
    """Return the results of each text by itself."""
    return in_order([([index], run_path(path, [one])) for index, one in enumerate(probes)], len(probes))


def read_probes(tokenizer: TextTokenizer, reading: Reading, task: Task) -> list[Tokenized]:
    """Return the probes as the model reads them; for a reranker each is asked about the next.

    Raises ``LoadError`` where nothing is read of any text.
    """
    if task == "rerank":
        probes = tokenizer.tokenize_pairs(PROBES, [*PROBES[1:], PROBES[0]], reading)
    else:
        probes = tokenizer.tokenize(PROBES, reading)
    if len({probe.ids for probe in probes}) == 1:
        raise unsupported(
            "its special tokens, with its prompt, fill its length, so that nothing is read of any text: set a larger "
            "max_length"
        )
    if task == "multi_vector":
        probes += tokenizer.tokenize(PROBES, reading._replace(prompt_name="query"))
    return probes


def judge_of(plan: ComputePlan) -> Judge:
    """Return what is near enough for what computes in the format of ``plan``."""
    return is_equal if is_exact(plan) else is_within(MIN_COSINE_16_BIT)


def is_exact(plan: ComputePlan) -> bool:
    """Tell whether all is computed in fp32, so that nothing but the order of sums may tell two ways apart."""
    # bitsandbytes multiplies in bf16 where the processor can, whatever it is given.
    return plan.compute == "float32" and not plan.uses_bitsandbytes


def is_equal(nearness: Nearness) -> bool:
    """Tell whether it is near enough in fp32."""
    return nearness.deviation <= MAX_DEVIATION


def is_within(cosine: float) -> Judge:
    """Return what is near enough where the formats themselves differ."""
    return lambda nearness: nearness.cosine >= cosine


def warn_if_far(plan: ComputePlan, cosine: float) -> None:
    """Tell of vectors that bitsandbytes has moved; ``paths`` does of those that our own int8 has."""
    if plan.uses_bitsandbytes and cosine < _MIN_COSINE_BITSANDBYTES[plan.storage]:
        bits, nearer = ("4", "int8, bf16 and fp32 are nearer") if plan.storage == "nf4" else ("8", "bf16 is")
        log.warning("far_from_fp32", cosine=cosine, reason=f"{bits} bit are too few for it; {nearer}")
