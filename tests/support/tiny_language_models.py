"""Makes tiny language models that are asked whether a document answers a query, with a tokenizer like Qwen's.

As in ``tiny_models``: random weights from a seed, into ``directory``, which is returned.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
)

#: As Qwen's: words with the space before them, digits one by one, line ends by themselves.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "initializer_range": 0.3,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGED = ("yes", "no", "Qu", "ery", "Query", "Doc", "ument", "Document", "Ġthe", "Ġweather")

#: A template that carries a pair, as rerankers ship it for sentence-transformers.
PAIR_TEMPLATE = (
    "{%- set instruction = messages | selectattr('role', 'eq', 'system') | map(attribute='content') | first -%}"
    "<|im_start|>system\nYes or no?<|im_end|>\n<|im_start|>user\n"
    "<Instruct>: {{ instruction if instruction else 'find answers' }}\n"
    "<Query>: {{ messages | selectattr('role', 'eq', 'query') | map(attribute='content') | first }}\n"
    "<Document>: {{ messages | selectattr('role', 'eq', 'document') | map(attribute='content') | first }}<|im_end|>\n"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif %}"
)
#: One that does not, as Qwen3 itself has it.
CHAT_TEMPLATE = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"


def make_qwen3(directory: Path, *, template: str | None = CHAT_TEMPLATE, length: int = 256, seed: int = 41) -> Path:
    """``Qwen3ForCausalLM`` as ``Qwen/Qwen3-Reranker-0.6B``: nothing beside it says what it is for."""
    tokenizer = _make_tokenizer(template, length)
    tokenizer.save_pretrained(directory)
    torch.manual_seed(seed)
    sizes = SIZES | {"vocab_size": len(tokenizer), "max_position_embeddings": length}
    Qwen3ForCausalLM(Qwen3Config(**sizes, head_dim=8)).save_pretrained(directory)
    return directory


def make_qwen3_classifier(directory: Path, *, template: str | None = None, length: int = 256, seed: int = 42) -> Path:
    """``Qwen3ForSequenceClassification`` with one label: a Qwen3-Reranker turned into a cross-encoder."""
    tokenizer = _make_tokenizer(template, length)
    tokenizer.save_pretrained(directory)
    torch.manual_seed(seed)
    sizes = SIZES | {"vocab_size": len(tokenizer), "max_position_embeddings": length}
    sizes |= {"num_labels": 1, "pad_token_id": tokenizer.pad_token_id}
    Qwen3ForSequenceClassification(Qwen3Config(**sizes, head_dim=8)).save_pretrained(directory)
    return directory


def make_qwen2(directory: Path, *, length: int = 256) -> Path:
    """``Qwen2ForCausalLM``, a language model for chats."""
    tokenizer = _make_tokenizer(CHAT_TEMPLATE, length)
    tokenizer.save_pretrained(directory)
    sizes = SIZES | {"vocab_size": len(tokenizer), "max_position_embeddings": length}
    Qwen2ForCausalLM(Qwen2Config(**sizes)).save_pretrained(directory)
    return directory


def _make_tokenizer(template: str | None, length: int) -> PreTrainedTokenizerFast:
    vocabulary = {token: number for number, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges: list[tuple[str, str]] = []
    for word in MERGED:
        made = word[0]
        for letter in word[1:]:
            if made + letter not in vocabulary:
                vocabulary[made + letter] = len(vocabulary)
                merges.append((made, letter))
            made += letter
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIALS])
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=length
    )
    if template is not None:
        made.chat_template = template
    return made


def card_scores(
    directory: Path, pairs: Sequence[tuple[str, str]], instruction: str | None = None, max_length: int = 256
) -> list[float]:
    """The code of Qwen3-Reranker's model card, for one pair at a time."""
    tokenizer = AutoTokenizer.from_pretrained(directory, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    yes, no = tokenizer.convert_tokens_to_ids("yes"), tokenizer.convert_tokens_to_ids("no")
    prefix = (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    )
    suffix = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    before = tokenizer.encode(prefix, add_special_tokens=False)
    after = tokenizer.encode(suffix, add_special_tokens=False)
    if instruction is None:
        instruction = "Given a web search query, retrieve relevant passages that answer the query"
    found = []
    for query, document in pairs:
        text = f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
        inputs = tokenizer(
            [text],
            padding=False,
            truncation="longest_first",
            return_attention_mask=False,
            max_length=max_length - len(before) - len(after),
        )
        ids = torch.tensor([before + inputs["input_ids"][0] + after])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[:, -1, :]
        both = torch.nn.functional.log_softmax(torch.stack([logits[:, no], logits[:, yes]], dim=1), dim=1)
        found.append(both[0, 1].exp().item())
    return found
