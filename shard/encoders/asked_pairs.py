"""Pairs as a language model is asked about them: query and document within a prompt. Called by ``parts``.

As sentence-transformers reads them: the model's chat template writes one text of both, which is tokenised as it is;
one that is too long loses what stands before the template's own end, so that the model is still asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from emb_model_provider.errors import InvalidRequestError
from shard.encoder import PLAIN, Reading, Tokenized
from shard.encoders.in_parts import ALONE, Helpers
from shard.encoders.text_tokenizer import TextTokenizer, TokenizerFacts
from shard.foreign_ids import Decode
from shard.model_files.prompt_families import WEB_SEARCH

#: Instruction (``None``: the model's own), query and document → the text that the model reads.
Write = Callable[[str | None, str, str], str]

#: Two texts that have no token in common: what two prompts around them end with is the template's.
_FILLERS: Final = ("0", "1 2 3 4")
#: Clients may send any number of instructions.
_KNOWN_ENDS: Final = 64


def write_qwen3(instruction: str | None, query: str, document: str) -> str:
    """Return the prompt of the model card of https://huggingface.co/Qwen/Qwen3-Reranker-0.6B."""
    return (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
        f"<Instruct>: {WEB_SEARCH if instruction is None else instruction}\n<Query>: {query}\n"
        f"<Document>: {document}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


def template_writer(tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any], *, structured: bool) -> Write:
    """Return what the tokenizer's chat template writes of messages by ``query``, ``document`` and ``system``."""

    def message(role: str, text: str) -> dict[str, Any]:
        return {"role": role, "content": [{"type": "text", "text": text}] if structured else text}

    def write(instruction: str | None, query: str, document: str) -> str:
        messages = [message("query", query), message("document", document)]
        if instruction:
            messages.insert(0, message("system", instruction))
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))

    return write


class AskedTokenizer(TextTokenizer):
    """Tokenises pairs with ``write`` around them. A prompt is the instruction, not a text before the first."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        facts: TokenizerFacts,
        max_tokens: int,
        write: Write,
        *,
        decode: Decode | None = None,
        helpers: Helpers = ALONE,
    ) -> None:
        super().__init__(tokenizer, facts, max_tokens, decode=decode, helpers=helpers)
        self._write = write
        self._ends: dict[str | None, tuple[int, ...]] = {}

    def tokenize(self, texts: Sequence[str], reading: Reading = PLAIN) -> list[Tokenized]:
        """Refuse single texts, of which nothing can be asked."""
        del texts, reading
        raise InvalidRequestError(
            "This model is asked whether a document answers a query: send pairs of texts (/v1/rerank, /score, or pairs "
            "in /predict).",
            param="input",
        )

    def tokenize_pairs(
        self, firsts: Sequence[str], seconds: Sequence[str], reading: Reading = PLAIN
    ) -> list[Tokenized]:
        """Tokenise the prompt of each pair, cut before its end."""
        if reading.cut_side == "start":
            raise InvalidRequestError(
                "This model reads a pair within a prompt, which can only be cut at the end of the document.",
                param="truncate",
            )
        limit = self._text_limit(reading)
        end = self._end(reading.prompt)
        if limit <= len(end):
            raise InvalidRequestError(
                f"A limit of {limit} tokens leaves no room for text: the prompt ends with {len(end)} of its own.",
                param="max_tokens",
            )
        parts = self._shorten(list(seconds), limit, reading)
        written = [self._write(reading.prompt, first, part) for first, part in zip(firsts, parts, strict=True)]
        tokenized = []
        for encoding, part, second in zip(self._encode(written, add_special_tokens=False), parts, seconds, strict=True):
            ids = tuple(encoding.ids)
            length = len(ids)
            if length > limit:
                # A tokenizer that prefers the start cuts the prompt's, as it does for sentence-transformers.
                ids = ids[-limit:] if self._side(reading) == "start" else (*ids[: limit - len(end)], *end)
            tokenized.append(Tokenized(ids, length, outputs=reading.outputs, counted=part is second))
        return tokenized

    def _end(self, instruction: str | None) -> tuple[int, ...]:
        """Return the tokens that the prompt ends with whatever it is about."""
        end = self._ends.get(instruction)
        if end is None:
            written = [self._write(instruction, filler, filler) for filler in _FILLERS]
            one, other = (encoding.ids for encoding in self._encode(written, add_special_tokens=False))
            count = 0
            for left, right in zip(reversed(one), reversed(other), strict=False):
                if left != right:
                    break
                count += 1
            end = tuple(one[len(one) - count :])
            if len(self._ends) < _KNOWN_ENDS:
                self._ends[instruction] = end
        return end
