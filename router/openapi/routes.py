"""What each route of each dialect is for, reads and answers. A route that is missing here fails a test.

``examples`` are whole bodies: shown on the page, and what tests send.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from router.openapi import answers as a
from router.openapi import properties as p
from router.openapi.schema import FILLED, FLAG, TEXT, Schema, either, listed, record, told, whole, words

Body = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Described:
    """One route. ``required`` and ``optional`` are the fields of its body, empty for a ``GET``.

    ``runs_model`` says that ``properties.OPTIONS`` are read too. ``needs_one`` are names of which one is required.
    ``means_one`` is a ``GET`` of the only model there is, which is wrong where there are several.
    """

    summary: str
    answer: Schema
    examples: tuple[Body, ...] = ()
    required: Mapping[str, Schema] = field(default_factory=dict)
    optional: Mapping[str, Schema] = field(default_factory=dict)
    runs_model: bool = True
    needs_one: tuple[tuple[str, ...], ...] = ()
    means_one: bool = False

    def properties(self) -> dict[str, Schema]:
        """Return every field that is read."""
        options = p.OPTIONS if self.runs_model else {}
        return {**self.required, **self.optional, **{k: v for k, v in options.items() if k not in self.required}}


_TEI_MODEL: Final = {"model": p.OPTIONAL_MODEL}
_TOKEN_FLAG: Final = {"add_special_tokens": told(FLAG, "Whether [CLS], [SEP] and the like are put around.")}
_QUERY: Final = told(FILLED, "What the documents are to answer.")
_RANKING_OPTIONS: Final[dict[str, Schema]] = {
    **p.RAW,
    "model": p.OPTIONAL_MODEL,
    "top_n": told(whole(0), "Only the best so many; 0: all."),
    "top_k": told(whole(0), "Another name for `top_n`."),
    "return_documents": told(either(FLAG, words("true", "false")), "Send the documents back."),
    "return_text": told(either(FLAG, words("true", "false")), "Another name for `return_documents`."),
    "instruction": told(TEXT, "Another name for `prompt`, to rerankers that take one; others ignore it."),
}
_RANKING_EXAMPLE: Final = {"query": "capital of France", "documents": ["Paris is …", "Berlin is …"], "top_n": 1}

_EMBEDDINGS: Final = Described(
    "Vectors of texts or token ids.",
    a.EMBEDDINGS,
    (
        {"model": "MODEL", "input": ["hello", "你好"]},
        {"model": "MODEL", "input": "hello", "encoding_format": "base64", "dimensions": 2},
        {"model": "MODEL", "input": ["a", "b"], "on_error": "null", "usage_details": True},
    ),
    required={"model": p.REQUIRED_MODEL, "input": either(p.INPUTS, listed(record({"text": FILLED}), 1))},
    optional={
        "encoding_format": told(words("float", "base64"), "How vectors are written."),
        "embedding_type": told(p.VECTOR_TYPES, "Of which type their numbers are; several give `embeddings` by type."),
        "output_dtype": told(p.VECTOR_TYPES, "Another name for `embedding_type`."),
        "embed_dtype": told(p.VECTOR_TYPES, "Another name for `embedding_type`."),
        "endianness": told(words("native", "little"), "vLLM's: the order of the bytes in base64."),
        "use_activation": told(FLAG, "vLLM's name for `normalize`."),
        "add_special_tokens": told(FLAG, "vLLM's: only true is taken."),
        "outputs": p.OUTPUTS,
        "return_multivector": told(FLAG, "Jina's: token vectors alone, which then stand in `embeddings`."),
        "user": told(TEXT, "Ignored."),
        "modality": told(words("text"), "infinity's: what is to be embedded. Beside it, 0 `dimensions` are all."),
    },
)


def _cohere_embed(example: Body) -> Described:
    return Described(
        "Vectors of texts, by type.",
        a.COHERE_EMBEDDINGS,
        (example, {**example, "embedding_types": ["int8", "float"]}),
        optional={
            "texts": p.TEXTS,
            "inputs": told(listed(p.CONTENT, 1), "The texts, each as the one part of an object."),
            "model": p.OPTIONAL_MODEL,
            "embedding_types": told(p.VECTOR_TYPE_LIST, "Which types; each has its own list in the answer."),
            "images": told(listed({}, most=0), "Not supported."),
        },
        needs_one=(("texts", "inputs"),),
    )


def _ranking(answer: Schema) -> Described:
    return Described(
        "Documents ordered by how well they answer a query.",
        answer,
        (_RANKING_EXAMPLE, {"query": "q", "documents": [{"text": "a"}, "b"], "return_documents": True}),
        required={"query": _QUERY, "documents": p.DOCUMENTS},
        optional=_RANKING_OPTIONS,
    )


def _tei(summary: str, answer: Schema, inputs: Schema, *examples: Body) -> Described:
    return Described(summary, answer, examples, required={"inputs": inputs}, optional=_TEI_MODEL)


_TEI_RANKING_FIELDS: Final[dict[str, Schema]] = {
    "return_text": told(FLAG, "Send the texts back."),
    **p.RAW,
    "model": p.OPTIONAL_MODEL,
}
_SCORE: Final = Described(
    "The score of each pair of texts.",
    a.SCORES,
    ({"text_1": "capital of France", "text_2": ["Paris is …", "Berlin is …"]}, {"queries": ["a"], "documents": ["b"]}),
    optional={
        **p.RAW,
        "model": p.OPTIONAL_MODEL,
        **{
            name: told(p.TEXT_OR_TEXTS, "One text, or as many as there are others.")
            for name in ("text_1", "queries", "data_1")
        },
        **{
            name: told(p.TEXT_OR_TEXTS, "Those to compare it with.")
            for name in ("text_2", "documents", "items", "data_2")
        },
    },
    needs_one=(("text_1", "queries", "data_1"), ("text_2", "documents", "items", "data_2")),
)
_NVIDIA_RANKING: Final = Described(
    "Passages ordered by how well they answer a query, with their logits.",
    a.NVIDIA_RANKING,
    ({"query": {"text": "capital of France"}, "passages": [{"text": "Paris is …"}, {"text": "Berlin is …"}]},),
    required={"query": record({"text": _QUERY}), "passages": listed(record({"text": FILLED}), 1)},
    optional={"model": p.OPTIONAL_MODEL, "top_n": _RANKING_OPTIONS["top_n"], "top_k": _RANKING_OPTIONS["top_k"]},
)
_PAIR: Final = listed(FILLED, 1, 2)
_INPUT: Final[dict[str, Schema]] = {"input": p.TEXT_OR_TEXTS}

#: By dialect and path.
ROUTES: Final[dict[tuple[str, str], Described]] = {
    ("openai", "/v1/embeddings"): _EMBEDDINGS,
    ("openai", "/embeddings"): _EMBEDDINGS,
    ("openai", "/openai/deployments/{model:.+}/embeddings"): _EMBEDDINGS,
    ("openai", "/openai/v1/embeddings"): _EMBEDDINGS,
    ("openai", "/v1/models"): Described("Every model and its state.", a.MODELS, runs_model=False),
    ("openai", "/models"): Described("The same.", a.MODELS, runs_model=False),
    ("openai", "/v1/models/{model:.+}"): Described("One model.", a.ONE_MODEL, runs_model=False),
    ("cohere", "/v2/embed"): _cohere_embed({"texts": ["hello"], "input_type": "search_document", "model": "MODEL"}),
    ("cohere", "/v1/embed"): _cohere_embed({"texts": ["hello"], "model": "MODEL"}),
    ("cohere", "/v2/rerank"): _ranking(a.COHERE_RANKING),
    ("cohere", "/v1/tokenize"): Described(
        "The token ids of a text, and what each stands for in it.",
        a.COHERE_TOKENS,
        ({"text": "hello", "model": "MODEL"},),
        required={"text": FILLED},
        optional={"model": p.OPTIONAL_MODEL},
        runs_model=False,
    ),
    ("nvidia", "/v1/ranking"): _NVIDIA_RANKING,
    ("nvidia", "/v1/retrieval/nvidia/reranking"): _NVIDIA_RANKING,
    ("nvidia", "/v1/retrieval/{model:.+}/reranking"): _NVIDIA_RANKING,
    ("weaviate", "/vectors"): Described(
        "Vectors of one text or several, as Weaviate's text2vec-transformers asks for them.",
        a.WEAVIATE_VECTORS,
        ({"text": "hello", "config": {"task_type": "query"}}, {"texts": ["hello", "你好"]}),
        optional={
            "text": FILLED,
            "texts": p.TEXTS,
            "config": told({"type": "object"}, "`task_type`: passage or query; `dimensions`; options, as at the top."),
            "model": p.OPTIONAL_MODEL,
        },
        needs_one=(("texts", "text"),),
    ),
    ("weaviate", "/rerank"): Described(
        "The score of each document, in the order given, as Weaviate's reranker-transformers asks for them.",
        a.WEAVIATE_RANKING,
        ({"query": "capital of France", "documents": ["Paris is …", ""], "property": ""},),
        required={"query": _QUERY, "documents": listed(TEXT, 1)},
        optional={"model": p.OPTIONAL_MODEL},
    ),
    ("weaviate", "/.well-known/ready"): Described(
        "Whether all models, or the one in the path, can answer.", a.WEAVIATE_READINESS, runs_model=False
    ),
    ("weaviate", "/meta"): Described("The models' names.", a.WEAVIATE_META, runs_model=False),
    ("jina", "/v1/rerank"): _ranking(a.RANKING),
    ("jina", "/rerank"): _ranking(a.RANKING),
    ("tei", "/embed"): _tei("Vectors of texts or token ids.", a.VECTORS, p.INPUTS, {"inputs": ["hello", "你好"]}),
    ("tei", "/pipeline/feature-extraction/{model:.+}"): _tei("The same.", a.VECTORS, p.INPUTS, {"inputs": ["hello"]}),
    ("tei", "/embed_all"): _tei("A vector for each token.", a.TOKEN_VECTORS, p.INPUTS, {"inputs": "hello"}),
    ("tei", "/embed_sparse"): _tei("Sparse vectors.", a.SPARSE_VECTORS, p.INPUTS, {"inputs": ["hello"]}),
    ("tei", "/rerank"): Described(
        "Texts ordered by how well they answer a query.",
        a.TEI_RANKING,
        ({"query": "capital of France", "texts": ["Paris is …", "Berlin is …"], "return_text": True},),
        required={"query": _QUERY, "texts": p.TEXTS},
        optional=_TEI_RANKING_FIELDS,
    ),
    ("tei", "/predict"): Described(
        "Classes of texts or pairs of texts, with their scores.",
        a.PREDICTIONS,
        ({"inputs": "I like it"}, {"inputs": [["I like it"], ["I do not"]]}),
        required={"inputs": either(FILLED, _PAIR, listed(_PAIR, 1))},
        optional={**p.RAW, "model": p.OPTIONAL_MODEL},
    ),
    ("tei", "/similarity"): Described(
        "How like one sentence is to others.",
        a.SIMILARITIES,
        ({"inputs": {"source_sentence": "hello", "sentences": ["good day", "goodbye"]}},),
        required={"inputs": record({"source_sentence": FILLED, "sentences": p.TEXTS})},
        optional={"model": p.OPTIONAL_MODEL, "parameters": told({"type": "object"}, "Options, as at the top.")},
    ),
    ("tei", "/tokenize"): Described(
        "The tokens of texts.",
        a.TEI_TOKENS,
        ({"inputs": ["hello"]},),
        required={"inputs": p.TEXT_OR_TEXTS},
        optional={
            **_TOKEN_FLAG,
            "model": p.OPTIONAL_MODEL,
            "prompt_name": p.OPTIONS["prompt_name"],
            "prompt": p.OPTIONS["prompt"],
        },
        runs_model=False,
    ),
    ("tei", "/decode"): Described(
        "The texts of token ids.",
        a.STRINGS,
        ({"ids": [101, 102]}, {"ids": [[101], [102]]}),
        required={"ids": either(p.TOKEN_IDS, listed(p.TOKEN_IDS, 1))},
        optional={"model": p.OPTIONAL_MODEL, "skip_special_tokens": told(FLAG, "Leave out [CLS] and the like.")},
        runs_model=False,
    ),
    ("tei", "/info"): Described("The model.", a.TEI_INFO, runs_model=False, means_one=True),
    ("tei", "/"): Described(
        "Whatever the model is for; what Hugging Face's InferenceClient posts to.",
        a.ROOT,
        ({"inputs": ["hello"]}, {"query": "q", "texts": ["a", "b"]}, {"query": "q", "documents": ["a", "b"]}),
        optional={
            "inputs": either(p.INPUTS, listed(_PAIR, 1), record({"source_sentence": FILLED, "sentences": p.TEXTS})),
            "query": _QUERY,
            "texts": p.TEXTS,
            "documents": told(p.TEXTS, "Elasticsearch's name for `texts`."),
            "return_documents": told(FLAG, "Its name for `return_text`."),
            "parameters": told({"type": "object"}, "Options, as at the top; for classifiers `top_k`."),
            **_TEI_RANKING_FIELDS,
        },
    ),
    ("vllm", "/score"): _SCORE,
    ("vllm", "/v1/score"): _SCORE,
    ("vllm", "/classify"): Described(
        "Classes of texts.",
        a.CLASSES,
        ({"input": ["I like it"]},),
        required=_INPUT,
        optional={**p.RAW, "model": p.OPTIONAL_MODEL},
    ),
    ("vllm", "/tokenize"): Described(
        "The token ids of a text.",
        a.VLLM_TOKENS,
        ({"prompt": "hello", "return_token_strs": True},),
        required={"prompt": FILLED},
        optional={
            **_TOKEN_FLAG,
            "model": p.OPTIONAL_MODEL,
            "messages": told({"type": "null"}, "Not supported."),
            "return_token_strs": told(FLAG, "The tokens' texts too."),
        },
        runs_model=False,
    ),
    ("vllm", "/detokenize"): Described(
        "The text of token ids.",
        a.PROMPT,
        ({"tokens": [101, 102]},),
        required={"tokens": p.TOKEN_IDS},
        optional={"model": p.OPTIONAL_MODEL},
        runs_model=False,
    ),
    ("ollama", "/api/embed"): Described(
        "Vectors of texts.",
        a.OLLAMA_EMBEDDINGS,
        ({"model": "MODEL", "input": ["hello"]},),
        required={"model": p.REQUIRED_MODEL},
        optional={"input": told(either(TEXT, listed(FILLED)), "Nothing: only wait until the model is loaded.")},
    ),
    ("ollama", "/api/embeddings"): Described(
        "The vector of one text.",
        a.OLLAMA_EMBEDDING,
        ({"model": "MODEL", "prompt": "hello"},),
        required={"model": p.REQUIRED_MODEL},
        optional={"prompt": told(TEXT, "Nothing: only wait until the model is loaded.")},
    ),
    ("ollama", "/api/show"): Described(
        "One model.",
        a.OLLAMA_SHOW,
        ({"model": "MODEL"},),
        optional={"model": p.MODEL, "name": told(TEXT, "An older name for `model`.")},
        runs_model=False,
        needs_one=(("model", "name"),),
    ),
    ("ollama", "/api/pull"): Described(
        "Wait until a served model is loaded.",
        a.OLLAMA_PULL,
        ({"model": "MODEL"},),
        optional={"model": p.MODEL, "name": told(TEXT, "An older name for `model`.")},
        runs_model=False,
        needs_one=(("model", "name"),),
    ),
    ("ollama", "/api/tags"): Described("Every model.", a.OLLAMA_MODELS, runs_model=False),
    ("ollama", "/api/ps"): Described("The models that are ready.", a.OLLAMA_MODELS, runs_model=False),
    ("ollama", "/api/version"): Described("The server's version.", a.VERSION, runs_model=False),
}
