"""The tokenizers of the tiny models, written as plain JSON so that no library version changes them.

Called by ``tests.support.tiny_models``; ``SAMPLE_TEXTS`` are what ``recorded/record.py`` records. The vocabulary
covers printable ASCII, common CJK characters (U+4E00 to U+5BFF) and every other character of those texts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

#: zh, en, mixed, emoji (unknown to the vocabulary), one character, full-width, blanks, and two longer than any limit.
SAMPLE_TEXTS: Final = (
    "吃完海鲜可以喝牛奶吗?",
    "不可以，早晨喝牛奶不科学",
    "The weather is lovely today.",
    "He drove to the stadium.",
    "用 Python 3.11 部署 embedding 服务，延迟 < 10 ms！",
    "今天心情很好 😀🎉 let's go",
    "好",
    "a",
    "ＡＢＣ　１２３",
    "  leading and trailing blanks \t",
    "北京是中国的首都。" * 40,
    "the quick brown fox jumps over the lazy dog " * 40,
)

MODEL_MAX_LENGTH: Final = 512

_SPECIALS: Final = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_WORDS: Final = ("the", "is", "of", "and", "python", "server", "today", "##ing", "##ed", "##er", "##s", "##ly")


def characters() -> list[str]:
    """Every character that is a token of its own, without the blank."""
    wanted = {chr(code) for code in range(0x4E00, 0x5C00)} | {chr(code) for code in range(0x21, 0x7F)}
    wanted |= {char for char in "".join(SAMPLE_TEXTS) if "\u3000" < char < "\uffff"}
    return sorted(wanted)


def wordpiece_vocabulary() -> list[str]:
    """Tokens in the order of their ids, ``[PAD]`` first."""
    lower_case = [char for char in characters() if char == char.lower()]
    pieces = [f"##{char}" for char in lower_case if char.isascii() and char.isalnum()]
    return [*_SPECIALS, *lower_case, *pieces, *_WORDS]


def write_wordpiece_tokenizer(directory: Path, vocabulary: list[str], baked_length: int | None = None) -> None:
    """``tokenizer.json`` and its companions, no ``vocab.txt``. ``baked_length`` truncates and pads to it."""
    ids = {token: number for number, token in enumerate(vocabulary)}
    truncation, padding = None, None
    if baked_length is not None:
        truncation = {
            "direction": "Right",
            "max_length": baked_length,
            "strategy": "LongestFirst",
            "stride": 0,
        }
        padding = {
            "strategy": {"Fixed": baked_length},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "[PAD]",
        }
    write_json(
        directory / "tokenizer.json",
        {
            "version": "1.0",
            "truncation": truncation,
            "padding": padding,
            "added_tokens": [_special_token(ids[token], token) for token in _SPECIALS],
            "normalizer": {
                "type": "BertNormalizer",
                "clean_text": True,
                "handle_chinese_chars": True,
                "strip_accents": None,
                "lowercase": True,
            },
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": _template("[CLS]", ids["[CLS]"], "[SEP]", ids["[SEP]"]),
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
            "model": {
                "type": "WordPiece",
                "unk_token": "[UNK]",
                "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100,
                "vocab": ids,
            },
        },
    )
    named = {f"{token[1:-1].lower()}_token": token for token in _SPECIALS}
    write_json(directory / "special_tokens_map.json", named)
    options = {"do_lower_case": True, "model_max_length": MODEL_MAX_LENGTH, "tokenize_chinese_chars": True}
    write_json(directory / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", **options, **named})


def write_unigram_tokenizer(directory: Path, pieces: list[str], max_length: int) -> None:
    specials = ("<s>", "<pad>", "</s>", "<unk>")
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    write_json(
        directory / "tokenizer.json",
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [_special_token(number, token) for number, token in enumerate(specials)],
            "normalizer": {"type": "NFKC"},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]},
            "post_processor": _template("<s>", 0, "</s>", 2),
            "decoder": metaspace,
            "model": {
                "type": "Unigram",
                "unk_id": 3,
                "vocab": [[piece, 0.0 if piece in specials else -5.0] for piece in pieces],
                "byte_fallback": False,
            },
        },
    )
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "sep_token": "</s>"}
    named |= {"pad_token": "<pad>", "cls_token": "<s>"}
    write_json(directory / "special_tokens_map.json", named)
    options = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_length}
    write_json(directory / "tokenizer_config.json", options | named)


def write_sentencepiece_model(path: Path, pieces: list[str]) -> None:
    """Write pieces as SentencePiece itself does, in place of a ``tokenizer.json``; the first three are special."""
    from sentencepiece import sentencepiece_model_pb2

    model: Any = sentencepiece_model_pb2.ModelProto()
    kinds = model.SentencePiece
    for number, piece in enumerate(pieces):
        kind = kinds.UNKNOWN if piece == "<unk>" else kinds.CONTROL if number < 3 else kinds.NORMAL
        model.pieces.add(piece=piece, score=-5.0 * (number >= 3), type=kind)
    model.trainer_spec.model_type = model.trainer_spec.UNIGRAM
    model.trainer_spec.unk_id = pieces.index("<unk>")
    path.write_bytes(model.SerializeToString())


def _special_token(number: int, token: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": number, "content": token, **flags}


def _template(start: str, start_id: int, end: str, end_id: int) -> dict[str, Any]:
    def special(token: str, type_id: int = 0) -> dict[str, Any]:
        return {"SpecialToken": {"id": token, "type_id": type_id}}

    first = {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": [special(start), first, special(end)],
        "pair": [special(start), first, special(end), second, special(end, 1)],
        "special_tokens": {
            token: {"id": token, "ids": [number], "tokens": [token]}
            for token, number in ((start, start_id), (end, end_id))
        },
    }


def write_json(path: Path, value: object) -> None:
    """Write ``value`` and make the folder it goes to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
