"""Parse untrusted JSON, with limits on size, depth and numbers."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from segrec_batch.sources import storage

MAX_BYTES = 2**24
"""Default limit of the size of a document in bytes."""

MAX_DEPTH = 64
"""Limit of the nesting of arrays and objects."""

_INTEGER_LIMIT = 2**64  # the limit of Parquet, SQL and NumPy
# a string is one token even if it is unterminated, so that the search takes linear time
_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{]|[\]}]', re.DOTALL)


def parse_json(content: bytes, limit: int = MAX_BYTES) -> Any:
    """Return the value of a JSON document in UTF-8.

    Raises:
        ValueError: The document is not JSON, is longer than `limit` bytes, is nested deeper than
            `MAX_DEPTH`, or has a duplicate key or a number that is not finite or exceeds 64 bits.
    """
    if len(content) > limit:
        raise ValueError(f"more than {limit:,} bytes")
    text = content.decode()
    _check_depth(text)
    return json.loads(
        text,
        parse_constant=_reject_constant,
        parse_float=_parse_float,
        parse_int=_parse_integer,
        object_pairs_hook=_reject_duplicate_keys,
    )


def read_json(uri: str, limit: int = MAX_BYTES) -> Any:
    """Return the value of a JSON file. Raises OSError, StorageError, and as `parse_json`."""
    return parse_json(storage.read_bytes(uri, limit), limit)


def check_values(value: object, depth: int = MAX_DEPTH // 2) -> None:
    """Raise ValueError for a value that `parse_json` cannot restore.

    Args:
        value: A value to be written as JSON.
        depth: Limit of the nesting of arrays and objects.
    """
    if value is None or isinstance(value, str | bool):
        return
    if isinstance(value, int | float):
        if abs(value) >= _INTEGER_LIMIT if isinstance(value, int) else not math.isfinite(value):
            raise ValueError(f"{shorten(value)} is a number that JSON cannot store")
        return
    if depth == 0:
        raise ValueError("nested too deep")
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"key {shorten(key)} is no text")
            check_values(item, depth - 1)
        return
    if not isinstance(value, list | tuple):
        raise ValueError(f"a {type(value).__name__} is no JSON value")
    for item in value:
        check_values(item, depth - 1)


def shorten(value: object) -> str:
    """Return the representation of a value for an error message, at most 80 characters.

    >>> shorten("x" * 1000)[-4:]
    'xxx…'
    """
    text = repr(value[:100] if isinstance(value, str | bytes | list | tuple) else value)
    return text if len(text) <= 80 else text[:79] + "…"


def _check_depth(text: str) -> None:
    depth = 0
    for token in _TOKEN.finditer(text):
        first = text[token.start()]
        if first in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
        elif first in "]}":
            depth -= 1


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _parse_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is too large a number")
    return number


def _parse_integer(text: str) -> int:
    number = int(text) if len(text) <= 21 else _INTEGER_LIMIT
    if abs(number) >= _INTEGER_LIMIT:
        raise ValueError(f"{text[:40]} is too large a number")
    return number


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        duplicate = next(name for i, name in enumerate(names) if name in names[:i])
        raise ValueError(f"key {shorten(duplicate)} stands twice")
    return values
