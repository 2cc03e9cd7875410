"""Seeded changes of valid inputs: JSON trees, bytes, Arrow tables and Parquet files."""

import copy
import io
import json
import random
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_RAW = "\x1araw{}\x1a"  # marks a place for text that is not JSON
_RAW_TEXTS = [
    "NaN", "-Infinity", "1e999", "1" + 400 * "0", "-0", "[" * 5000, '{"a":' * 5000, "nul", "",
    '{"a": 1, "a": 2}', '"\\ud800"', '"\\u0000"', "1.0", "[1,]", "'x'", "\ufeff{}",
]  # fmt: skip
_ODD = [
    None, True, False, 0, 1, -1, 2, 7, 2**31 - 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63),
    10**30, 0.5, -0.0, 1e308, "", " ", "x", "..", "../../x", "a" * 300, "a" * 70_000, "\x00",
    "\u202e", "%2e%2e%2f", "'; --", '"', "*", "a b", "null", "2026-01-01", "binary", "[]", "{}",
    [], {}, [[]], {"a": 1}, [None], [1] * 2000,
]  # fmt: skip
_TYPES = [
    pa.null(), pa.bool_(), pa.int8(), pa.int32(), pa.int64(), pa.uint64(), pa.float32(),
    pa.float64(), pa.string(), pa.large_string(), pa.binary(), pa.binary(16), pa.date32(),
    pa.timestamp("ns", tz="UTC"), pa.timestamp("us"), pa.decimal128(20, 2), pa.list_(pa.float32()),
    pa.list_(pa.string()), pa.struct([("a", pa.int64())]), pa.map_(pa.string(), pa.int64()),
    pa.dictionary(pa.int32(), pa.string()), pa.time64("us"), pa.float16(),
]  # fmt: skip
_NUMBERS = [0, -1, 1, 2, 127, 2**31 - 1, -(2**31), 2**62, float("nan"), float("inf"), 1e-45, 0.5]


class Damage:
    """Random changes of valid inputs.

    Args:
        rng: Generator of all choices.
        hostile: Strings that name files, hosts or statements, to replace values.
    """

    def __init__(self, rng: random.Random, hostile: Sequence[str] = ()) -> None:
        self._rng = rng
        self._hostile = hostile

    def odd_value(self) -> Any:
        """Return a JSON value that is rarely valid."""
        if self._hostile and self._rng.random() < 0.25:
            return self._rng.choice(self._hostile)
        return copy.deepcopy(self._rng.choice(_ODD))

    def change_document(self, content: bytes) -> bytes:
        """Return a JSON document with some values changed, or with changed bytes (one in five)."""
        if self._rng.random() < 0.2:
            return self.change_bytes(content)
        try:
            tree = json.loads(content)
        except ValueError:
            return self.change_bytes(content)
        return self.write_tree(self.change_tree(tree))

    def change_tree(self, tree: Any) -> Any:
        """Return a JSON tree with one to three changed nodes, for `write_tree`."""
        root = [copy.deepcopy(tree)]
        for _ in range(self._rng.choice((1, 1, 1, 2, 3))):
            self._change_node(root)
        return root[0] if root else None

    def write_tree(self, tree: Any) -> bytes:
        """Return a tree of `change_tree` as text, including the parts that are not JSON."""
        text = json.dumps(tree)
        for i, raw in enumerate(_RAW_TEXTS):
            text = text.replace(json.dumps(_RAW.format(i)), raw)
        return text.encode("utf-8", "surrogatepass")

    def _change_node(self, root: list[Any]) -> None:
        parent, key = self._rng.choice(list(_places(root)) or [(root, 0)])
        if parent is root and not root:
            return
        value = parent[key]
        match self._rng.randrange(10):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, list):
                parent.insert(key, copy.deepcopy(value))
            case 1:
                parent[self._text(str(key))] = parent.pop(key)
            case 2:
                parent[key] = _RAW.format(self._rng.randrange(len(_RAW_TEXTS)))
            case 3:
                other, place = self._rng.choice(list(_places(root)))
                parent[key] = copy.deepcopy(other[place])
            case 4:
                for _ in range(self._rng.choice((1, 30, 70))):
                    value = [value] if self._rng.random() < 0.5 else {"a": value}
                parent[key] = value
            case 5 | 6 if isinstance(value, str):
                parent[key] = self._text(value)
            case 5 | 6 if type(value) in (int, float):
                parent[key] = self._number(value)
            case _:
                parent[key] = self.odd_value()

    def _number(self, value: float) -> float:
        return self._rng.choice((value + 1, value - 1, -value, value * 2, value / 2, value * 10**9))

    def _text(self, text: str) -> str:
        """Return a string with a changed nested document, or with changed or more letters."""
        if text[:1] in ("{", "[") and self._rng.random() < 0.8:
            return self.change_document(text.encode()).decode("utf-8", "replace")
        place = self._rng.randint(0, len(text))
        other = self._rng.choice(["", "'", "..", "/", "\x00", "é", "%00", ";", text, text.upper()])
        return text[:place] + other + text[place + self._rng.randrange(3) :]

    def change_bytes(self, content: bytes) -> bytes:
        """Return bytes with some of them changed, removed, inserted, moved or cut off."""
        rng, result = self._rng, bytearray(content)
        for _ in range(rng.choice((1, 1, 2, 4, 16))):
            place = self._place(len(result))
            match rng.randrange(8):
                case 0 | 1 if place < len(result):
                    result[place] ^= 1 << rng.randrange(8)
                case 2 if place < len(result):
                    result[place] = rng.choice((0, 1, 127, 128, 255))
                case 3:
                    result[place : place + rng.randint(1, 100)] = b""
                case 4:
                    result[place:place] = rng.randbytes(rng.randint(1, 20))
                case 5:
                    size = rng.choice((4, 8))
                    number = rng.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1, 65536))
                    packed = (number % 256**size).to_bytes(size, "little")
                    result[place : place + size] = packed
                case 6:
                    start = self._place(len(result))
                    result[place : place + 64] = result[start : start + 64]
                case _ if rng.random() < 0.3:
                    result = result[:place]
        return bytes(result)

    def _place(self, length: int) -> int:
        """Return a position, mostly near the ends, where headers and footers are."""
        near = min(length, 400)
        match self._rng.randrange(3):
            case 0:
                return self._rng.randint(0, near)
            case 1:
                return length - self._rng.randint(0, near)
        return self._rng.randint(0, length)

    def change_parquet(self, content: bytes) -> bytes:
        """Return a Parquet file with other rows or columns, or with other bytes."""
        if self._rng.random() < 0.4:
            return self.change_bytes(content)
        rows = pq.read_table(io.BytesIO(content))
        for _ in range(self._rng.choice((1, 1, 2))):
            rows = self.change_rows(rows)
        return self.write_parquet(rows) or self.change_bytes(content)

    def write_parquet(self, rows: pa.Table) -> bytes | None:
        """Return rows as a file, written in one of many ways; None if Arrow cannot write them."""
        rng, out = self._rng, io.BytesIO()
        try:
            pq.write_table(
                rows,
                out,
                compression=rng.choice(("none", "zstd", "snappy", "gzip")),
                use_dictionary=rng.random() < 0.5,
                row_group_size=rng.choice((1, 2, 1000)),
                write_page_checksum=rng.random() < 0.5,
                store_schema=rng.random() < 0.7,
                data_page_version=rng.choice(("1.0", "2.0")),
                write_statistics=rng.random() < 0.7,
            )
        except (pa.ArrowException, OSError):
            return None
        return out.getvalue()

    def change_rows(self, rows: pa.Table) -> pa.Table:
        """Return a table with a value, a column, the order or the metadata changed."""
        rng = self._rng
        if not rows.num_columns:
            return rows
        i = rng.randrange(rows.num_columns)
        field, column = rows.schema.field(i), rows.column(i)
        match rng.randrange(10):
            case 0:
                return rows.remove_column(i)
            case 1:
                name = rng.choice((field.name.upper(), self._text(field.name), field.name))
                return rows.append_column(name, column)
            case 2:
                return rows.slice(rng.randrange(rows.num_rows + 1), rng.randrange(5))
            case 3:
                return pa.concat_tables([rows] * rng.choice((2, 30)))
            case 4:
                odd = rng.choice((b"ray.data.arrow_pickled_object", b"arrow.json", b"x"))
                of_field = {b"ARROW:extension:name": odd, b"ARROW:extension:metadata": b"{}"}
                return rows.set_column(i, field.with_metadata(of_field), column)
            case 5:
                known = dict(rows.schema.metadata or {})
                known[rng.choice([*known, b"ARROW:schema", b"x"])] = rng.randbytes(40)
                return rows.replace_schema_metadata(known)
            case 6 | 7:
                kind = rng.choice(_TYPES)
                return rows.set_column(i, field.name, self._cast(column, kind))
        return rows.set_column(i, field.name, self._other_values(column))

    def _cast(self, column: pa.ChunkedArray, kind: pa.DataType) -> pa.Array:
        try:
            return column.cast(kind, safe=False)
        except (pa.ArrowException, ValueError, TypeError):
            return pa.nulls(len(column), kind)

    def _other_values(self, column: pa.ChunkedArray) -> pa.Array:
        """Return a column with one value, or all, replaced by other values of its type, if any."""
        rng, values = self._rng, column.to_pylist()
        places = range(len(values)) if rng.random() < 0.4 else [rng.randrange(len(values) or 1)]
        for place in places if values else ():
            values[place] = self._other_value(values[place])
        try:
            return pa.array(values, column.type)
        except (pa.ArrowException, ValueError, TypeError, OverflowError):
            return pa.nulls(len(values), column.type)

    def _other_value(self, value: Any) -> Any:
        rng = self._rng
        if rng.random() < 0.15:
            return None
        if isinstance(value, list):
            return rng.choice((
                [], value[:-1], value * 2, [None] * len(value), [rng.choice(_NUMBERS)] * len(value),
                [*value[:-1], rng.choice(_NUMBERS)], value * 500,
            ))  # fmt: skip
        if isinstance(value, dict):
            return {k: self._other_value(v) for k, v in value.items()}
        if isinstance(value, str):
            odd = self.odd_value()
            return odd if isinstance(odd, str) else self._text(value)
        if isinstance(value, bytes):
            return self.change_bytes(value)
        return rng.choice(_NUMBERS) if isinstance(value, int | float) else value


def _places(tree: Any) -> Any:
    """Return parent and key of all nodes of a tree."""
    left = [tree]
    while left:
        node = left.pop()
        inner = list(node.items()) if isinstance(node, dict) else list(enumerate(node))
        for key, value in inner:
            yield node, key
            if isinstance(value, dict | list):
                left.append(value)
