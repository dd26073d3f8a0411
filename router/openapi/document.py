"""Joins the dialects' table with the descriptions to one OpenAPI 3.1 document. Pure; served by ``endpoints``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from emb_model_provider import errors
from emb_model_provider.errors import InvalidRequestError, RequestError
from router.dialects.seam import Dialect
from router.dialects.table import MODEL_PREFIX, by_path
from router.dialects.version import our_version
from router.openapi import answers
from router.openapi.routes import ROUTES, Described
from router.openapi.schema import TEXT, Schema, either, or_null, told

_PATTERN: Final = re.compile(r"\{(\w+):[^{}]*\}")
_KINDS: Final[tuple[type[RequestError], ...]] = tuple(
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, RequestError) and kind is not RequestError
)
#: Nothing about a body can be wrong where there is none, and no model is asked.
_BODILESS: Final = frozenset({401, 404, 408, 429, 500, 503})
_MODEL_PARAMETER: Final = {
    "name": "model",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": r"^[A-Za-z0-9._/:-]+$"},
    "description": "The id of a served model; it may hold slashes.",
}
_REQUEST_ID: Final = {"x-request-id": {"schema": TEXT, "description": "Yours, or one made for you; in the logs too."}}

#: Routes of the server itself: path, summary, content type, schema, whether 503 is an answer too.
_OWN: Final = (
    ("/health", "That the process lives.", "application/json", answers.HEALTH, ()),
    ("/healthz", "The same under the name that Kubernetes' own parts use.", "application/json", answers.HEALTH, ()),
    ("/live", "The same.", "application/json", answers.HEALTH, ()),
    ("/", "The same, where Ollama's and TEI's clients ask.", "application/json", answers.HEALTH, ()),
    ("/ready", "Whether every model can answer, and its state.", "application/json", answers.READINESS, (503,)),
    ("/v1/cluster/auth", "Whether a key is asked for, in Xinference's words.", "application/json", answers.KEYS, ()),
    ("/metrics", "Numbers for Prometheus.", "text/plain", TEXT, ()),
    ("/openapi.json", "This description.", "application/json", {"type": "object"}, ()),
    ("/docs", "This description as a page.", "text/html", TEXT, ()),
)  # fmt: skip


def make_document(url_prefix: str) -> dict[str, object]:
    """Return the document."""
    paths: dict[str, dict[str, object]] = {}
    for path, summary, kind, schema, more in _OWN:
        paths[path] = {"get": _own(summary, kind, schema, more)}
    for (method, path), choices in by_path().items():
        described = [(dialect, ROUTES[dialect.name, path]) for dialect, _ in choices]
        paths.setdefault(_plain(path), {})[method.lower()] = _operation(path, method, described)
        if "{" not in path:
            behind = MODEL_PREFIX + path.rstrip("/")
            paths.setdefault(_plain(behind), {})[method.lower()] = _operation(behind, method, described)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "emb-model-provider",
            "version": our_version(),
            "description": "Embeddings, rankings and classes, in the words of OpenAI, Cohere, Jina, "
            "text-embeddings-inference, vLLM, Ollama, NVIDIA NIM and Weaviate. Fields that are not named are "
            "ignored; null is the same as absent.",
        },
        "servers": [{"url": url_prefix or "/"}],
        "security": [{"key": []}, {}],
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {f"{name}-error": schema for name, schema in answers.ERRORS.items()},
        },
        "paths": paths,
    }


def _plain(path: str) -> str:
    return _PATTERN.sub(r"{\1}", path)


def _own(summary: str, kind: str, schema: Schema, more: Sequence[int]) -> dict[str, object]:
    content = {kind: {"schema": schema}}
    statuses = [200, *more]
    responses: dict[str, object] = {str(one): {"description": _phrase(one), "content": content} for one in statuses}
    for status in (401, 500):
        responses[str(status)] = _error(status, ["openai"])
    return {"summary": summary, "tags": ["server"], "responses": responses}


def _operation(path: str, method: str, described: list[tuple[Dialect, Described]]) -> dict[str, object]:
    names = list(dict.fromkeys(dialect.name for dialect, _ in described))
    answers_ok = [one.answer for _, one in described]
    responses: dict[str, object] = {
        "200": {
            "description": "The answer.",
            "headers": _REQUEST_ID,
            "content": {"application/json": {"schema": answers_ok[0] if len(answers_ok) == 1 else either(*answers_ok)}},
        }
    }
    by_status: dict[int, list[str]] = {}
    for dialect, one in described:
        for status in _statuses(dialect, has_body=method == "POST"):
            by_status.setdefault(status, []).append(dialect.name)
        if one.means_one and "{model" not in path:
            by_status.setdefault(dialect.status_of(InvalidRequestError("")), []).append(dialect.name)
    if "{model" in path:  # what is no id is no route, and then no dialect's
        by_status.setdefault(404, []).append("openai")
    for status, speaking in sorted(by_status.items()):
        responses[str(status)] = _error(status, speaking)
    operation: dict[str, object] = {
        "summary": " ".join(dict.fromkeys(one.summary for _, one in described)),
        "tags": names,
        "responses": responses,
    }
    is_behind = path.startswith(MODEL_PREFIX)
    if "{model" in path:
        operation["parameters"] = [_MODEL_PARAMETER]
    if method == "POST":
        operation["requestBody"] = _body([one for _, one in described], is_behind=is_behind)
    return operation


def _body(described: list[Described], *, is_behind: bool) -> dict[str, object]:
    schemas = [_body_schema(one, is_behind=is_behind) for one in described]
    examples = {
        f"{number}": {"value": example}
        for number, example in enumerate((body for one in described for body in one.examples), 1)
    }
    schema = schemas[0] if len(schemas) == 1 else either(*schemas)
    return {"required": True, "content": {"application/json": {"schema": schema, "examples": examples}}}


def _body_schema(described: Described, *, is_behind: bool) -> Schema:
    required = [name for name in described.required if not (is_behind and name == "model")]
    schema: dict[str, object] = {
        "type": "object",
        "required": required,
        "properties": {
            name: one if name in required else _optional(one) for name, one in described.properties().items()
        },
    }
    if described.needs_one:
        schema["allOf"] = [
            {"anyOf": [{"required": [name], "properties": {name: described.optional[name]}} for name in names]}
            for names in described.needs_one
        ]
    return schema


def _optional(schema: Schema) -> Schema:
    description = schema.get("description")
    bare = or_null({key: value for key, value in schema.items() if key != "description"})
    return told(bare, str(description)) if description else bare


def _statuses(dialect: Dialect, *, has_body: bool) -> set[int]:
    found = {dialect.status_of(kind("")) for kind in _KINDS}
    found -= {405}
    return found if has_body else found & _BODILESS


def _error(status: int, dialects: list[str]) -> dict[str, object]:
    references: list[Schema] = [{"$ref": f"#/components/schemas/{name}-error"} for name in dict.fromkeys(dialects)]
    schema = references[0] if len(references) == 1 else either(*references)
    return {
        "description": _phrase(status),
        "headers": _REQUEST_ID,
        "content": {"application/json": {"schema": schema}},
    }


def _phrase(status: int) -> str:
    return {
        200: "The answer.",
        400: "The request is wrong; the message says what and where.",
        401: "No key, or a wrong one.",
        404: "No such model, or no such route.",
        408: "The body did not arrive in time.",
        413: "The body is too large.",
        415: "Not JSON as it stands.",
        422: "An input cannot be taken.",
        424: "The model could not do it.",
        429: "Too much to do; Retry-After says when to come back.",
        500: "The model or the server failed.",
        503: "Not ready now; Retry-After says when to come back.",
        504: "Not done in time, and given up.",
    }.get(status, "An error.")
