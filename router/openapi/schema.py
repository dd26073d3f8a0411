"""JSON Schema (draft 2020-12, as OpenAPI 3.1 has it) in a few words. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

Schema = Mapping[str, object]

TEXT: Final[Schema] = {"type": "string"}
FILLED: Final[Schema] = {"type": "string", "minLength": 1}
NUMBER: Final[Schema] = {"type": "number"}
WHOLE: Final[Schema] = {"type": "integer"}
FLAG: Final[Schema] = {"type": "boolean"}
ANYTHING: Final[Schema] = {}


def words(*values: str) -> Schema:
    """Return one of these words."""
    return {"type": "string", "enum": list(values)}


def whole(least: int, most: int | None = None) -> Schema:
    """Return a whole number within bounds."""
    return {"type": "integer", "minimum": least} | ({} if most is None else {"maximum": most})


def listed(item: Schema, least: int = 0, most: int | None = None) -> Schema:
    """Return a list of so many items."""
    bounds = ({"minItems": least} if least else {}) | ({} if most is None else {"maxItems": most})
    return {"type": "array", "items": item, **bounds}


def either(*options: Schema) -> Schema:
    """Return any of these."""
    return {"anyOf": list(options)}


def or_null(schema: Schema) -> Schema:
    """Return the schema of a value that may be ``null``, which is the same as absent."""
    kind = schema.get("type")
    if kind == "null":
        return schema
    if isinstance(kind, str) and "enum" not in schema:
        return {**schema, "type": [kind, "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def told(schema: Schema, description: str) -> Schema:
    """Return the schema with what it means."""
    return {**schema, "description": description}


def record(required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    """Return the schema of an object that may hold more than is named."""
    return {
        "type": "object",
        "required": list(required),
        "properties": {**required, **(optional or {})},
    }
