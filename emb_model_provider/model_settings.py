"""Turns the settings about models into one spec for each: those of the mapping, the named one, or the embedded one.

Called by ``load_settings``; what an entry of a mapping may say stands in ``mapping``.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final

from emb_model_provider import setting_table as table
from emb_model_provider.errors import ConfigurationError
from emb_model_provider.mapping import parse_mapping
from emb_model_provider.modelmap import (
    EMBEDDED_MODEL_ID,
    EMBEDDED_MODEL_NAME,
    BatchLimits,
    ModelSpec,
    Precision,
    is_model_id,
)
from emb_model_provider.setting_values import Values, check_quotes
from emb_model_provider.value_kinds import WrongValueError

_MAX_ID_CHARS: Final = 128
_UNSAFE_IN_ID: Final = re.compile(r"[^A-Za-z0-9._-]+")
_QUANTIZED: Final = frozenset({"int8", "int4"})
#: A setting of one model means nothing where a mapping describes each of several.
_SINGLE_MODEL_ONLY: Final = (table.MODEL_NAME, table.POOLING, table.NORMALIZE, table.MAX_LENGTH, table.TASK)
_NEEDS_A_NAME: Final = (
    table.MODEL_SOURCE,
    table.MODEL_REVISION,
    table.POOLING,
    table.NORMALIZE,
    table.MAX_LENGTH,
    table.TASK,
)


def read_models(values: Values) -> tuple[ModelSpec, ...]:
    """Return the mapping's models, else the one that is named, else the embedded one."""
    models = _read_models(values)
    values.warnings.extend(
        f"The minimal batch size of {spec.id!r}, {spec.batch.min_batch_size}, is ignored, because its dynamic batching"
        " is off: the texts of one request wait for no other."
        for spec in models
        if spec.batch.min_batch_size > 1 and not spec.batch.dynamic
    )
    return models


def _read_models(values: Values) -> tuple[ModelSpec, ...]:
    quantize = values.get(table.ENABLE_QUANTIZATION)
    shared = ModelSpec(
        id="",
        name="",
        source=values.get(table.MODEL_SOURCE),
        precision=_precision(values, quantize=quantize),
        int8_method=values.get(table.INT8_METHOD),
        prepack_weights=values.get(table.PREPACK_WEIGHTS),
        device=values.get(table.DEVICE),
        revision=values.get(table.MODEL_REVISION) or None,
        overlong=values.get(table.OVERLONG),
        token_ids=values.get(table.TOKEN_ID_POLICY),
        batch=_batch(values),
    )
    mapping = values.find(table.MODEL_MAPPING)
    if mapping is None:
        return (_single_model(values, shared),)
    values.warn_ignored(
        _SINGLE_MODEL_ONLY, f"{table.MODEL_MAPPING.name} ({mapping.where}) is set; its entries say this for each model"
    )
    if mapping.document is None:
        values.problems.append(
            f"{table.MODEL_MAPPING.name} ({mapping.where}) must be a JSON object: {{ comes after the equals sign."
        )
        return ()
    try:
        check_quotes(mapping)
        return parse_mapping(mapping.document, shared, quantize=quantize is True, place=values.path)
    except ConfigurationError as error:
        values.problems.extend(error.problems)
    except WrongValueError as error:
        values.problems.append(f"{table.MODEL_MAPPING.name} ({mapping.where}) cannot be used: {error}.")
    return ()


def _single_model(values: Values, shared: ModelSpec) -> ModelSpec:
    name = values.path(values.get(table.MODEL_NAME))
    if not name:
        values.warn_ignored(_NEEDS_A_NAME, f"no model is named and the embedded {EMBEDDED_MODEL_ID} is served")
        return replace(
            shared, id=EMBEDDED_MODEL_ID, name=EMBEDDED_MODEL_NAME, source="auto", revision=None, embedded=True
        )
    return replace(
        shared,
        id=id_of(name),
        name=name,
        pooling=values.get(table.POOLING),
        normalize=values.get(table.NORMALIZE),
        max_length=values.get(table.MAX_LENGTH),
        task=values.get(table.TASK),
    )


def id_of(name: str) -> str:
    """Return what clients call the model ``name``: a hub name as it stands, a directory's last part made safe."""
    if is_model_id(name) and name.count("/") <= 1:
        return name
    last = _UNSAFE_IN_ID.sub("-", name.rstrip("/").rpartition("/")[2])
    safe = re.sub(r"\.{2,}", ".", last).lstrip("._-")[:_MAX_ID_CHARS].rstrip("-")
    return safe if is_model_id(safe) else "model"


def _precision(values: Values, *, quantize: bool | None) -> Precision:
    """Return the precision of models that do not say their own."""
    asked = values.get(table.MODEL_PRECISION)
    switch, precision = table.ENABLE_QUANTIZATION.name, table.MODEL_PRECISION.name
    switch_at, precision_at = values.where(table.ENABLE_QUANTIZATION), values.where(table.MODEL_PRECISION)
    if quantize is False and asked in _QUANTIZED:
        values.problems.append(
            f"{switch}=false ({switch_at}) contradicts {precision}={asked} ({precision_at})."
            f" Change {switch_at} to {switch}=true, or {precision_at} to {precision}=auto."
        )
    if quantize and asked == "auto":
        return "int8"
    if quantize and asked not in _QUANTIZED:
        values.warnings.append(
            f"{switch}=true ({switch_at}) changes nothing for models of precision {asked}, which {precision}"
            f" ({precision_at}) asks for; {precision}=auto would make them int8."
        )
    return asked


def _batch(values: Values) -> BatchLimits:
    limits = BatchLimits(
        max_batch_size=values.get(table.MAX_BATCH_SIZE),
        min_batch_size=values.get(table.MIN_BATCH_SIZE),
        max_wait_time_ms=values.get(table.MAX_WAIT_TIME_MS),
        dynamic=values.get(table.ENABLE_DYNAMIC_BATCHING),
    )
    values.refuse_above(table.MIN_BATCH_SIZE, limits.min_batch_size, table.MAX_BATCH_SIZE, limits.max_batch_size)
    return limits
