"""JSON schema of the untrusted metadata of a session file."""

from collections.abc import Mapping
from typing import Any

import jsonschema

from segrec_batch.model.names import is_bundle_id, is_descriptor_name, is_name
from segrec_batch.search.filters import Method
from segrec_batch.sources.strict_json import shorten

Schema = dict[str, Any]

_MAX_LENGTH = 2**16  # values of a vector or a bitmap
_MAX_CLASSES = 256


def _object(**fields: Schema) -> Schema:
    return {**_optional(**fields), "required": list(fields)}


def _optional(**fields: Schema) -> Schema:
    return {"type": "object", "properties": fields, "additionalProperties": False}


def _number(low: float | None = None, high: float | None = None) -> Schema:
    schema: Schema = {"type": "number"}
    if low is not None:
        schema["minimum"] = low
    return schema if high is None else {**schema, "maximum": high}


def _count(low: int, high: int) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high}


def _list(items: Schema, longest: int = _MAX_LENGTH, shortest: int = 0) -> Schema:
    return {"type": "array", "items": items, "minItems": shortest, "maxItems": longest}


def _by_class(items: Schema) -> Schema:
    return {"type": "object", "additionalProperties": items, "maxProperties": _MAX_CLASSES}


_TEXT: Schema = {"type": "string", "maxLength": 4096}
_BOOLEAN: Schema = {"type": "boolean"}
_SHARE = _number(0, 1)

# `arguments` becomes arguments of the SQL macro, by name
_NEW_IMAGE = _object(
    uri=_TEXT,
    mask={"type": "string"},
    coverage=_by_class(_SHARE),
    arguments=_optional(
        query=_list(_number()),
        coverages=_list(_SHARE, _MAX_CLASSES),
        masks=_by_class(_list(_count(-(2**63), 2**63 - 1))),
        category={"type": ["string", "null"], "maxLength": 4096},
    ),
)
_METADATA = _object(
    format={"type": "integer"},
    index={**_TEXT, "minLength": 1},
    version=_count(0, 2**53),
    model_id=_TEXT,
    query={"type": "object"},
    filters=_object(
        cls={"type": ["string", "null"]},
        coverage=_list(_SHARE, 2, 2),
        k=_count(1, 2**31 - 1),
        scope={"enum": ["region", "image"]},
        epsilon={"type": ["number", "null"], "minimum": 0, "maximum": 2},
        penalise=_BOOLEAN,
        rerank={"enum": [None, "mask_iou", "foreground_iou"]},
        depth=_count(1, 2**31 - 1),
        distinct_content=_BOOLEAN,
        method=_TEXT,
    ),
    weights=_object(alpha=_number(0), beta=_number(0), gamma=_number(0), c=_number(0)),
    keep_marked=_BOOLEAN,
)
_INDEXED_IMAGE = _object(image_id=_TEXT)


def check_metadata(metadata: Mapping[str, Any]) -> None:
    """Raise ValueError, with the field, for metadata that does not match the schema."""
    _check(metadata, _METADATA, "")
    query = metadata["query"]
    _check(query, _INDEXED_IMAGE if "image_id" in query else _NEW_IMAGE, "query")
    filters = metadata["filters"]
    classes = [filters["cls"]] if filters["cls"] is not None else []
    masks = query.get("arguments", {}).get("masks", ())
    for name in (*classes, *query.get("coverage", ()), *masks):
        if not is_name(name):
            raise ValueError(f"class {shorten(name)}")
    if not is_bundle_id(metadata["model_id"]):
        raise ValueError(f"model_id {shorten(metadata['model_id'])}")
    descriptor = Method.of(filters["method"]).descriptor
    if descriptor is not None and not is_descriptor_name(descriptor):
        raise ValueError(f"method {shorten(filters['method'])}")


def _check(value: Any, schema: Schema, path: str) -> None:
    error = next(_validator(schema).iter_errors(value), None)
    if error is not None:
        place = ".".join(filter(None, (path, *map(str, error.absolute_path))))
        raise ValueError(f"{place}: {' '.join(error.message.split())[:200]}")


def _validator(schema: Schema) -> Any:
    """Return a validator that does not accept 1.0 as an integer, as in SQL."""
    kind = jsonschema.Draft202012Validator
    whole = kind.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
    return jsonschema.validators.extend(kind, type_checker=whole)(schema)
