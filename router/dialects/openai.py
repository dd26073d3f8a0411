"""OpenAI's JSON, to and from our types; pure. The contract is that of the official clients.

Formats: https://platform.openai.com/docs/api-reference/embeddings. The official clients ask for base64 (little-endian
float32) unless told otherwise; unknown fields are ignored. Jina's ``/v1/embeddings`` is the same route with more
fields.
"""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import Collection, Iterator
from functools import partial
from typing import Final

import orjson

from emb_model_provider.errors import InvalidRequestError, RequestError
from emb_model_provider.messages.link import Output
from emb_model_provider.value import Value
from router.dialects.fields import Fields, no_words, unsupported
from router.dialects.inputs import read_input, read_partial_input
from router.dialects.openai_models import render_model, render_models
from router.dialects.options import Options, has_prompt, read_options, read_outputs
from router.dialects.seam import (
    Answered,
    DescribeCall,
    Dialect,
    EncodeCall,
    ListCall,
    Route,
    Steps,
    at_once,
)
from router.dialects.vectors import (
    PLAIN,
    Chunk,
    VectorForm,
    chunks,
    details_json,
    error_object,
    row_list,
    to_json,
)
from router.quantization import NEED_UNIT_LENGTH, VectorType
from router.requests import EncodeRequest, EncodeResult

_FORMATS: Final = {"float": False, "base64": True}
#: infinity's: an image or a sound is sent as an address or base64, which would be embedded as a text.
_MODALITIES: Final = {"text": "text"}
#: Words for a vector's type; ``base64`` is Jina's for base64 of floats.
FORMS: Final[dict[str, VectorForm]] = {
    "float": PLAIN,
    "base64": VectorForm(base64=True),
    "float16": VectorForm("float16"),
    "int8": VectorForm("int8"),
    "uint8": VectorForm("uint8"),
    "binary": VectorForm("binary"),
    "ubinary": VectorForm("ubinary"),
}
_KINDS: Final[dict[str, VectorType]] = {
    "float": "float", "float32": "float", "float16": "float16", "int8": "int8", "uint8": "uint8",
    "binary": "binary", "ubinary": "ubinary",
}  # fmt: skip
_WORDS: Final = frozenset([*FORMS, *_KINDS])


class Shape(Value, frozen=True):
    """How ``/v1/embeddings`` is answered.

    ``several`` names each form of a vector, where more than one is asked for; ``matrix`` is the name of token vectors.
    """

    form: VectorForm = PLAIN
    several: tuple[tuple[str, VectorForm], ...] = ()
    outputs: tuple[Output, ...] = ("dense",)
    details: bool = False
    matrix: str = "multi_vector"

    @property
    def is_plain(self) -> bool:
        return not self.several and self.outputs == ("dense",)


_FLOAT: Final = Shape()
_BASE64: Final = Shape(VectorForm(base64=True))
#: vLLM's words for the order of the bytes in base64; "big" is nobody's here, and must not be taken for the other.
_ENDIANNESS: Final = {"native": False, "little": False}
_VLLM_NAMES: Final = frozenset({"endianness", "add_special_tokens", "use_activation"})
_SHAPE_NAMES: Final = frozenset({"outputs", "return_multivector", "embedding_type", "output_dtype", "embed_dtype"})


# ------------------------------------------------------------------------------------------------- reading


def parse_embeddings(fields: Fields) -> Steps:
    """Read the body of ``POST /v1/embeddings``."""
    if fields.choice("modality", _MODALITIES) and fields.values.get("dimensions") == 0:
        del fields.values["dimensions"]  # infinity's word for all of them
    options = read_options(fields, reads_prompt=has_prompt(fields, "input"))
    fields.string("user")
    options = _as_vllm_asks(fields, options)
    shape = _shape(fields, options)
    if options.partial and isinstance(fields.values.get("input"), list):
        texts, token_ids, holes = yield from read_partial_input(fields)
    else:
        texts, token_ids = yield from read_input(fields)
        holes = {}
    request = options.request(parse_model(fields), texts=texts, token_ids=token_ids, outputs=shape.outputs, holes=holes)
    if shape is not _FLOAT and shape is not _BASE64:
        request = with_unit_length(request, [form for _, form in shape.several] or [shape.form])
    return EncodeCall(
        request,
        partial(build_embeddings, shape),
        role=options.role,
        holes=holes,
    )


def parse_model(fields: Fields) -> str:
    """Return the required name of a model."""
    value = fields.values.get("model")
    if not isinstance(value, str) or not value:
        raise InvalidRequestError("'model' is required: the id of a served model, as a string.", param="model")
    return value


def with_unit_length(request: EncodeRequest, forms: list[VectorForm]) -> EncodeRequest:
    """Return the request for vectors of length 1 where a form says nothing about others."""
    wanting = [form.kind for form in forms if form.kind in NEED_UNIT_LENGTH]
    if not wanting or request.normalize:
        return request
    if request.normalize is False:
        raise InvalidRequestError(
            f"{wanting[0]} is for vectors of length 1: leave out 'normalize' or send true.", param="normalize"
        )
    return request.replace(normalize=True)


def _as_vllm_asks(fields: Fields, options: Options) -> Options:
    """Return the options with what vLLM's own fields say; refuse what would make other vectors than are made here."""
    if _VLLM_NAMES.isdisjoint(fields.values):
        return options
    fields.choice("endianness", _ENDIANNESS)
    if fields.flag("add_special_tokens") is False:
        raise InvalidRequestError(
            "Texts are embedded with their special tokens, as the model was trained: leave out 'add_special_tokens'. "
            "Token ids are taken as they are.",
            param="add_special_tokens",
        )
    activates = fields.flag("use_activation")
    if activates is None or options.normalize is not None:
        return options
    return options.replace(normalize=activates)


def _shape(fields: Fields, options: Options) -> Shape:
    base64 = fields.choice("encoding_format", _FORMATS) or False
    if _SHAPE_NAMES.isdisjoint(fields.values) and not options.details:
        return _BASE64 if base64 else _FLOAT
    if fields.flag("return_multivector"):  # Jina's word for the token vectors alone
        return Shape(VectorForm(base64=base64), outputs=("multi_vector",), details=options.details, matrix="embeddings")
    outputs = read_outputs(fields)
    name = fields.first_of("embedding_type", "output_dtype", "embed_dtype")
    value = fields.values.get(name)
    if value is None:
        return Shape(VectorForm(base64=base64), outputs=outputs, details=options.details)
    if isinstance(value, list):
        several = tuple((word, _form(name, word, base64=base64)) for word in read_words(name, value, _WORDS))
        return Shape(several=several, outputs=outputs, details=options.details)
    return Shape(_form(name, value, base64=base64), outputs=outputs, details=options.details)


def read_words(name: str, value: list[object], known: Collection[str]) -> list[str]:
    """Return the different names of vector types in a list."""
    words = [one.lower() if isinstance(one, str) else one for one in value]
    for one, word in zip(value, words, strict=True):
        if not isinstance(word, str) or word not in known:
            raise unsupported(name, one, FORMS)
    if not words:
        raise no_words(name, FORMS)
    return list(dict.fromkeys(map(str, words)))


def _form(name: str, value: object, *, base64: bool) -> VectorForm:
    word = value.lower() if isinstance(value, str) else ""
    if word == "base64":
        return VectorForm(base64=True)
    if word in _KINDS:
        return VectorForm(_KINDS[word], base64)
    raise unsupported(name, value, FORMS)


# ------------------------------------------------------------------------------------------------- writing


def build_embeddings(shape: Shape, answered: Answered) -> Iterator[bytes]:
    """Yield the answer's JSON in pieces, none of which takes much more than a millisecond to make."""
    return render_embeddings(answered.result, shape, answered.request_id)


def render_embeddings(result: EncodeResult, shape: Shape, request_id: str = "") -> Iterator[bytes]:
    """Do so from the result. OpenAI's own answer has no id; vLLM's has one, and Mistral's client wants it."""
    head = b'{"id":%b,"object":"list","data":[' % orjson.dumps(request_id)
    for chunk in chunks(result):
        yield head + _write(chunk, shape)
        head = b","
    usage: dict[str, object] = {"prompt_tokens": result.prompt_tokens, "total_tokens": result.prompt_tokens}
    if shape.details:
        usage["details"] = details_json(result)
    end = b'],"model":%b,"usage":%b' % (orjson.dumps(result.model_id), orjson.dumps(usage))
    if result.fingerprint:
        end += b',"system_fingerprint":' + orjson.dumps(result.fingerprint)
    yield end + b"}"


def _write(chunk: Chunk, shape: Shape) -> bytes:
    if not shape.is_plain or chunk.part.errors:
        return to_json(_items(chunk, shape))[1:-1]
    if shape.form == _BASE64.form:
        return _write_base64(chunk)
    rows = row_list(chunk.dense(), shape.form)
    return to_json(
        [{"object": "embedding", "index": number, "embedding": row} for number, row in enumerate(rows, chunk.index)]
    )[1:-1]


def _write_base64(chunk: Chunk) -> bytes:
    """Put the alphabet of base64 between quotes as it is: nothing in it needs escaping in JSON."""
    vectors, size = memoryview(chunk.part.vectors), 4 * chunk.part.dimension
    items = [
        b'{"object":"embedding","index":%d,"embedding":"%b"}'
        % (index, b2a_base64(vectors[row * size : (row + 1) * size], newline=False))
        for index, row in enumerate(range(chunk.begin, chunk.end), chunk.index)
    ]
    return items[0] if len(items) == 1 else b",".join(items)


def _items(chunk: Chunk, shape: Shape) -> list[dict[str, object]]:
    """Return the items of an answer that holds more than dense vectors in one form."""
    items: list[dict[str, object]] = [
        {"object": "embedding", "index": chunk.index + row} for row in range(chunk.end - chunk.begin)
    ]
    if "dense" in shape.outputs:
        for name, form in shape.several or (("", shape.form),):
            for item, row in zip(items, row_list(chunk.dense(), form), strict=True):
                if name:
                    embeddings = item.setdefault("embeddings", {})
                    assert isinstance(embeddings, dict)
                    embeddings[name] = row
                else:
                    item["embedding"] = row
    if "sparse" in shape.outputs:
        for item, (indices, values) in zip(items, chunk.sparse(), strict=True):
            item["sparse_embedding"] = {"indices": indices, "values": values}
    if "multi_vector" in shape.outputs:
        for item, matrix in zip(items, chunk.token_vectors(), strict=True):
            item[shape.matrix] = row_list(matrix, shape.form)
    for row, error in chunk.errors().items():
        items[row] = {
            "object": "embedding",
            "index": chunk.index + row,
            "embedding": None,
            "error": error_object(error),
        }
    return items


# ------------------------------------------------------------------------------------------- errors and models


def render_error(error: RequestError) -> bytes:
    """Return OpenAI's error body, and beside it ``detail``: clients of Jina's embeddings raise what it says."""
    body = {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}
    return orjson.dumps({"error": body, "detail": error.message})


OPENAI: Final = Dialect(
    name="openai",
    routes=(
        Route("/v1/embeddings", parse_embeddings),
        Route("/embeddings", parse_embeddings),  # where TEI and infinity have it too
        Route("/openai/deployments/{model:.+}/embeddings", parse_embeddings),  # Azure's; ``auth`` knows its header
        Route("/openai/v1/embeddings", parse_embeddings),  # Azure's since its API has no dates
        Route("/v1/models", at_once(lambda _fields: ListCall(render_models)), method="GET"),
        Route("/models", at_once(lambda _fields: ListCall(render_models)), method="GET"),  # beside "/embeddings"
        Route(
            "/v1/models/{model:.+}",
            at_once(lambda fields: DescribeCall(parse_model(fields), lambda status, _limits: render_model(status))),
            method="GET",
        ),
    ),
    render_error=render_error,
    errors_below=("/v1/models/",),  # where a model may be called as another dialect's path is
)
