"""An ``Encoder`` over sentence-transformers' modules: tokenizer, prompts, and the forward path that was chosen.

Built by ``loader``, called by ``engine``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, Protocol

import numpy as np
import torch

from emb_model_provider.errors import InvalidRequestError
from emb_model_provider.messages.link import Token
from emb_model_provider.messages.status import EncoderInfo
from shard.encoder import PLAIN, FatalDeviceError, Reading, Results, Tokenized, cut, cut_raw, in_order
from shard.encoders.text_tokenizer import TextTokenizer
from shard.memory import ran_out
from shard.model_files.prompt_families import find_prompt

#: What the driver says of a call that it does not carry out, as of a kernel that takes more than this card has. Of what
#: goes wrong on the way it says something else, to every call from then on (cudaError_t in CUDA's Runtime API).
_NOT_CARRIED_OUT: Final = (
    "invalid argument",
    "invalid configuration argument",
    "invalid device function",
    "operation not supported",
    "too many resources requested for launch",
)


class ForwardPath(Protocol):
    """One way from token ids to results."""

    def split(self, batch: Sequence[Tokenized]) -> list[list[int]]:
        """Return which texts of ``batch`` share a pass: every index once."""
        ...

    def run(self, rows: Sequence[Tokenized]) -> Results:
        """Return the results of one such pass, on the CPU."""
        ...


def run_path(path: ForwardPath, batch: Sequence[Tokenized]) -> Results:
    """Return the results of ``batch`` in its order."""
    try:
        with torch.inference_mode():
            if len(batch) == 1:
                return path.run(batch)
            passes = [(rows, path.run([batch[row] for row in rows])) for rows in path.split(batch)]
    except RuntimeError as error:
        # Too little memory, also for a call of the driver itself, leaves the device as it was.
        fault = None if ran_out(error) else _fault_of_card(error)
        if fault is None:
            raise
        raise FatalDeviceError(fault) from error
    return in_order(passes, len(batch))


def _fault_of_card(error: RuntimeError) -> str | None:
    """Return what is wrong with the card; ``None`` where an error is one of the texts or of the model."""
    if isinstance(error, torch.AcceleratorError) and not _was_not_carried_out(error):
        return str(error)  # a failed assertion in a kernel, a lost card
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return None
    # Of what the libraries and Triton meet, torch makes the same error as of a wrong shape. A context that is broken
    # says so to every call from then on.
    try:
        torch.cuda.synchronize()
    except RuntimeError as said:
        return f"{said}\nIt was met as: {error}"
    return None


def _was_not_carried_out(error: RuntimeError) -> bool:
    return str(error).partition("\n")[0].removeprefix("CUDA error: ") in _NOT_CARRIED_OUT


class SentenceTransformerEncoder:
    """Implements ``shard.encoder.Encoder``. ``own_dimension`` is the model's before its own cut to ``info.dimension``.

    ``reference`` makes the plain fp32 path when it is first needed.
    """

    def __init__(
        self,
        path: ForwardPath,
        reference: Callable[[], ForwardPath],
        tokenizer: TextTokenizer,
        info: EncoderInfo,
        *,
        own_dimension: int,
        prompts: dict[str, str],
        default_prompt_name: str | None,
    ) -> None:
        self.info = info
        self._path = path
        self._make_reference = reference
        self._reference: ForwardPath | None = None
        self._one_at_a_time = threading.Lock()
        self._tokenizer = tokenizer
        self._own_dimension = own_dimension
        self._prompts = prompts
        self._default_prompt = None if default_prompt_name is None else prompts[default_prompt_name]

    def tokenize(self, texts: Sequence[str], reading: Reading = PLAIN, seconds: Sequence[str] = ()) -> list[Tokenized]:
        if seconds and "scores" not in self.info.outputs:
            raise InvalidRequestError("This model takes single texts, not pairs.", param="input")
        if not seconds:
            return self._tokenizer.tokenize(texts, reading)
        if all(seconds):
            return self._tokenizer.tokenize_pairs(texts, seconds, reading)
        pairs = [index for index, second in enumerate(seconds) if second]
        alone = [index for index, second in enumerate(seconds) if not second]
        read = self._tokenizer.tokenize([texts[index] for index in alone], reading)
        if pairs:
            chosen = [texts[index] for index in pairs], [seconds[index] for index in pairs]
            read += self._tokenizer.tokenize_pairs(*chosen, reading)
        return [one for _, one in sorted(zip([*alone, *pairs], read, strict=True), key=lambda entry: entry[0])]

    def accept_ids(self, ids: Sequence[int], reading: Reading = PLAIN) -> Tokenized:
        return self._tokenizer.accept_ids(ids, reading)

    def spell(self, texts: Sequence[str], *, prompt: str | None, add_special_tokens: bool) -> list[tuple[Token, ...]]:
        return self._tokenizer.spell(texts, prompt, add_special_tokens=add_special_tokens)

    def detokenize(self, token_ids: Sequence[Sequence[int]], *, skip_special_tokens: bool) -> list[str]:
        return self._tokenizer.detokenize(token_ids, skip_special_tokens=skip_special_tokens)

    def resolve_prompt(self, prompt_name: str | None) -> str | None:
        if prompt_name is None:
            return self._default_prompt
        prompt = find_prompt(self._prompts, prompt_name)
        if prompt is None:
            known = ", ".join(self._prompts) or "none"
            raise InvalidRequestError(
                f"This model has no prompt named {prompt_name!r}; it has: {known}.", param="prompt_name"
            )
        return prompt

    def use_threads(self, count: int) -> None:
        if count != torch.get_num_threads():
            torch.set_num_threads(count)

    def encode(self, batch: Sequence[Tokenized]) -> Results:
        return self._run(self._path, batch)

    def encode_exactly(self, batch: Sequence[Tokenized]) -> Results:
        with self._one_at_a_time:
            if self._reference is None:
                self._reference = self._make_reference()
            return self._run(self._reference, batch)

    def _run(self, path: ForwardPath, batch: Sequence[Tokenized]) -> Results:
        results = run_path(path, batch)
        dimension, vectors = self.info.dimension, results.rows
        if vectors is not None and dimension != self._own_dimension:
            raw = [one.raw or not self.info.normalized for one in batch]
            vectors = np.where(np.array(raw)[:, None], cut_raw(vectors, dimension), cut(vectors, dimension))
            return replace(results, rows=vectors)
        return results
