"""Nearly valid documents and bytes, for tests of their readers."""

import json
from typing import Any

from hypothesis import strategies as st

_ODD = [
    None, True, 0, -1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, "", "x", "../..", "a" * 300, "\x00",
    "\ud800", "'; --", [], {}, [[]], {"a": 1}, "2026-01-01",
]  # fmt: skip


def json_documents() -> st.SearchStrategy[Any]:
    """Return a strategy for JSON values, some levels deep."""
    numbers = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    leaves = st.none() | st.booleans() | numbers | st.text()

    def inside(kids: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.lists(kids, max_size=3) | st.dictionaries(st.text(), kids, max_size=3)

    return st.recursive(leaves, inside, max_leaves=8).filter(lambda value: depth(value) <= 5)


def depth(value: object) -> int:
    """Return the number of nested levels of arrays and objects."""
    kids = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if kids is None else 1 + max(map(depth, kids), default=0)


@st.composite
def changed_json(draw: st.DrawFn, value: Any) -> Any:
    """Draw a JSON value with one part, anywhere, replaced, removed or repeated."""
    if isinstance(value, dict) and value and draw(st.integers(0, 4)):
        key = draw(st.sampled_from(sorted(value)))
        if not draw(st.integers(0, 5)):
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: draw(changed_json(value[key]))}
    if isinstance(value, list) and value and draw(st.integers(0, 4)):
        place = draw(st.integers(0, len(value) - 1))
        if not draw(st.integers(0, 5)):
            return [*value, value[place]]
        return [*value[:place], draw(changed_json(value[place])), *value[place + 1 :]]
    return draw(st.sampled_from(_ODD))


@st.composite
def changed_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw bytes with some of them changed, removed or inserted."""
    result = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(result)))
        match draw(st.integers(0, 3)):
            case 0:
                result[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
            case 1:
                result[place : place + draw(st.integers(1, 100))] = b""
            case 2:
                result[place:place] = draw(st.binary(max_size=20))
            case _:
                result = result[:place]
    return bytes(result)


def mutated(document: bytes) -> st.SearchStrategy[bytes]:
    """Return a strategy for a JSON document changed as a value or as bytes, or for any bytes."""
    try:
        values = changed_json(json.loads(document)).map(lambda v: json.dumps(v).encode())
    except ValueError:
        return changed_bytes(document) | st.binary(max_size=200)
    return values | values | changed_bytes(document) | st.binary(max_size=50)
