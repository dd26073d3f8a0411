"""The bodies of answers, and of errors in each dialect. Pure; used by ``routes`` and ``document``."""

from __future__ import annotations

from typing import Final

from router.openapi.schema import ANYTHING, FLAG, NUMBER, TEXT, WHOLE, Schema, either, listed, or_null, record, words

NUMBERS: Final = listed(NUMBER)
#: A vector in any form: numbers, base64, or nothing where its input has an error.
VECTOR: Final = or_null(either(NUMBERS, TEXT))
_ERROR_OBJECT: Final = record({"message": TEXT, "code": or_null(TEXT)})
_USAGE: Final = record({"prompt_tokens": WHOLE, "total_tokens": WHOLE})
_MODEL: Final = record({"id": TEXT, "object": words("model"), "created": WHOLE, "owned_by": TEXT, "state": TEXT})

EMBEDDINGS: Final = record(
    {
        "id": TEXT,
        "object": words("list"),
        "data": listed(
            record(
                {"object": words("embedding"), "index": WHOLE},
                {
                    "embedding": VECTOR,
                    "embeddings": {"type": "object", "additionalProperties": VECTOR},
                    "sparse_embedding": record({"indices": listed(WHOLE), "values": NUMBERS}),
                    "multi_vector": listed(VECTOR),
                    "error": _ERROR_OBJECT,
                },
            )
        ),
        "model": TEXT,
        "usage": _USAGE,
    },
    {"system_fingerprint": TEXT},
)
MODELS: Final = record({"object": words("list"), "data": listed(_MODEL)})
ONE_MODEL: Final = _MODEL
COHERE_EMBEDDINGS: Final = record(
    {
        "id": TEXT,
        "response_type": words("embeddings_floats", "embeddings_by_type"),
        "embeddings": either(listed(VECTOR), {"type": "object", "additionalProperties": listed(VECTOR)}),
        "texts": listed(or_null(TEXT)),
        "meta": record({"api_version": record({"version": TEXT})}),
    }
)
_RESULTS: Final = listed(
    record({"index": WHOLE, "relevance_score": or_null(NUMBER)}, {"document": record({"text": TEXT})})
)
COHERE_RANKING: Final = record({"id": TEXT, "results": _RESULTS, "meta": record({})})
COHERE_TOKENS: Final = record({"tokens": listed(WHOLE), "token_strings": listed(TEXT)})
NVIDIA_RANKING: Final = record({"rankings": listed(record({"index": WHOLE, "logit": NUMBER})), "usage": _USAGE})
_SIZES: Final = {"dim": WHOLE, "dims": WHOLE}
WEAVIATE_VECTORS: Final = either(
    record({"text": TEXT, "vector": VECTOR, **_SIZES}), record({"vectors": listed(VECTOR), **_SIZES})
)
WEAVIATE_RANKING: Final = record({"scores": listed(record({"document": TEXT, "score": or_null(NUMBER)}))})
WEAVIATE_READINESS: Final = record({"status": words("ready")})
WEAVIATE_META: Final = record({"models": {"type": "object", "additionalProperties": TEXT}})
RANKING: Final = record(
    {"id": TEXT, "object": words("list", "rerank"), "model": TEXT, "results": _RESULTS, "usage": _USAGE},
    {"data": _RESULTS},
)
TEI_RANKING: Final = listed(record({"index": WHOLE, "score": or_null(NUMBER)}, {"text": TEXT}))
VECTORS: Final = listed(VECTOR)
TOKEN_VECTORS: Final = listed(or_null(listed(NUMBERS)))
SPARSE_VECTORS: Final = listed(or_null(listed(record({"index": WHOLE, "value": NUMBER}))))
_LABELLED: Final = listed(record({"label": TEXT, "score": NUMBER}))
PREDICTIONS: Final = either(_LABELLED, listed(or_null(_LABELLED)))
SIMILARITIES: Final = listed(or_null(NUMBER))
TEI_TOKENS: Final = listed(
    listed(record({"id": WHOLE, "text": TEXT, "special": FLAG, "start": or_null(WHOLE), "stop": or_null(WHOLE)}))
)
STRINGS: Final = listed(TEXT)
TEI_INFO: Final = record(
    {"model_id": TEXT, "model_type": ANYTHING, "max_input_length": or_null(WHOLE), "version": TEXT}
)
ROOT: Final = either(VECTORS, SPARSE_VECTORS, TOKEN_VECTORS, TEI_RANKING, PREDICTIONS, SIMILARITIES)
SCORES: Final = record({"data": listed(record({"index": WHOLE, "score": or_null(NUMBER)})), "usage": _USAGE})
CLASSES: Final = record(
    {
        "data": listed(record({"index": WHOLE, "label": or_null(TEXT), "probs": NUMBERS, "num_classes": WHOLE})),
        "usage": _USAGE,
    }
)
VLLM_TOKENS: Final = record(
    {"count": WHOLE, "max_model_len": WHOLE, "tokens": listed(WHOLE)}, {"token_strs": or_null(STRINGS)}
)
PROMPT: Final = record({"prompt": TEXT})
OLLAMA_EMBEDDINGS: Final = record({"model": TEXT, "embeddings": listed(VECTOR), "prompt_eval_count": WHOLE})
OLLAMA_EMBEDDING: Final = record({"embedding": VECTOR})
OLLAMA_SHOW: Final = record({"details": record({}), "model_info": record({}), "capabilities": STRINGS})
OLLAMA_PULL: Final = record({"status": TEXT})
OLLAMA_MODELS: Final = record({"models": listed(record({"name": TEXT, "model": TEXT, "size": WHOLE, "digest": TEXT}))})
VERSION: Final = record({"version": TEXT})
HEALTH: Final = record({"status": TEXT, "loop_lag_s": NUMBER})
KEYS: Final = record({"auth": FLAG})
READINESS: Final = record({"status": words("ready", "not_ready"), "models": {"type": "object"}})

_OPENAI_ERROR: Final = record(
    {
        "error": record({"message": TEXT, "type": TEXT, "param": or_null(TEXT), "code": or_null(TEXT)}),
        "detail": TEXT,
    }
)
_RANKING_ERROR: Final = record({"error": record({"message": TEXT}), "message": TEXT, "detail": TEXT})
#: By dialect: what ``Dialect.render_error`` writes.
ERRORS: Final[dict[str, Schema]] = {
    "openai": _OPENAI_ERROR,
    "vllm": _OPENAI_ERROR,
    "jina": _RANKING_ERROR,
    "nvidia": _RANKING_ERROR,
    "cohere": record({"message": TEXT, "code": or_null(TEXT), "param": or_null(TEXT)}),
    "tei": record({"error": TEXT, "error_type": TEXT}),
    "ollama": record({"error": TEXT}),
    "weaviate": record({"error": TEXT}),
}
