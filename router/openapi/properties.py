"""The fields of request bodies: one meaning for each name, wherever it is read. Pure; used by ``routes``."""

from __future__ import annotations

from typing import Final

from router.openapi.schema import FILLED, FLAG, TEXT, Schema, either, listed, record, told, whole, words

TEXTS: Final = listed(FILLED, 1)
TEXT_OR_TEXTS: Final = either(FILLED, TEXTS)
_TOKEN_ID: Final = whole(0, 2**31 - 1)
TOKEN_IDS: Final = listed(_TOKEN_ID, 1)
INPUTS: Final = either(FILLED, TEXTS, TOKEN_IDS, listed(TOKEN_IDS, 1))
#: A text as the one part of an object, which for Cohere may also have images.
CONTENT: Final = record({"content": listed(record({"type": words("text"), "text": FILLED}), 1, 1)})
DOCUMENTS: Final = listed(either(FILLED, record({"text": FILLED})), 1)
_VECTOR_TYPE: Final = words("float", "base64", "float16", "int8", "uint8", "binary", "ubinary")
_ONE_TYPE: Final = either(_VECTOR_TYPE, words("float32"))

#: Read on every route that runs a model, by ``dialects.options``.
OPTIONS: Final[dict[str, Schema]] = {
    "input_type": told(TEXT, "What the inputs are: query, document, classification, … Chooses the model's prompt."),
    "task": told(TEXT, "Jina's name for `input_type`, such as retrieval.query."),
    "prompt_name": told(TEXT, "The name of one of the model's prompts."),
    "prompt": told(TEXT, "A text put before each input; wins over the others. Empty: none."),
    "dimensions": told(whole(1), "Cut vectors to so many numbers and make them length 1 again."),
    "output_dimension": told(whole(1), "Cohere's name for `dimensions`."),
    "normalize": told(FLAG, "Make vectors length 1, or leave them; unset: as the model does."),
    "normalized": told(FLAG, "Jina's name for `normalize`."),
    "truncate": told(
        either(FLAG, words("NONE", "START", "END", "error", "start", "end", "truncate")),
        "What happens to an input that is too long: cut at its start or end, or refused (NONE, error, false).",
    ),
    "truncation": told(FLAG, "Voyage's name for `truncate`."),
    "truncation_direction": told(words("left", "right"), "The side that is cut off."),
    "truncation_side": told(words("left", "right"), "vLLM's name for `truncation_direction`."),
    "truncate_prompt_tokens": told(whole(-1, 2**31 - 1), "Cut inputs to so many tokens; -1: what the model can read."),
    "max_tokens": told(whole(1, 2**31 - 1), "An input with more tokens is too long; never above the model's own."),
    "priority": told(
        either(words("auto", "interactive", "bulk"), whole(-(2**31), 2**31 - 1)),
        "Which queue; as a number, vLLM's: below 0 is interactive, above 0 bulk.",
    ),
    "timeout_ms": told(whole(1, 86_400_000), "How long you will wait; then the answer is 504 and nothing is computed."),
    "on_error": told(words("fail", "null"), "`null`: good inputs are answered, bad ones carry their error."),
    "usage_details": told(FLAG, "Report each input's tokens, and whether it was cut."),
    "late_chunking": told({"type": "boolean", "enum": [False]}, "Not supported: only false."),
}

RAW: Final[dict[str, Schema]] = {
    "raw_scores": told(FLAG, "Scores as the model makes them, before its activation."),
    "use_activation": told(FLAG, "vLLM's opposite of `raw_scores`."),
    "activation": told(FLAG, "An older name for `use_activation`."),
}

MODEL: Final = told(TEXT, "The id of a served model, with `:query` or `:document` behind it for a prompt.")
REQUIRED_MODEL: Final = told(FILLED, "The id of a served model, with `:query` or `:document` behind it for a prompt.")
OPTIONAL_MODEL: Final = told(TEXT, "The id of a served model; left out: the only one of this kind.")

VECTOR_TYPES: Final = either(_ONE_TYPE, listed(_ONE_TYPE, 1))
VECTOR_TYPE_LIST: Final = listed(_VECTOR_TYPE, 1)
OUTPUTS: Final = told(
    listed(words("dense", "sparse", "multi_vector", "colbert"), 1), "What is wanted of the model, from one pass."
)
