"""Rows as a table for people, as CSV, JSON or Parquet for programs."""

import io
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segrec_batch.common import console
from segrec_batch.common.encoding import encode_csv, encode_json, escape_text
from segrec_batch.common.errors import InputError

_WIDEST = 120  # characters of a cell of a table; the other formats keep all


def formatted(
    kind: str, names: Sequence[str], columns: Sequence[Sequence[Any] | pa.ChunkedArray], title: str
) -> bytes:
    """Columns as `table`, `csv`, `json` or `parquet`; only the table has the title.

    Raises InputError for a value that Python cannot hold, such as a year above 9999.
    """
    if kind == "parquet":
        return _parquet(names, columns)
    try:
        values = [c.to_pylist() if isinstance(c, pa.ChunkedArray) else c for c in columns]
    except (OverflowError, ValueError) as error:
        raise InputError(
            f"a value cannot be shown as {kind}: {error}; cast it to VARCHAR, or take parquet"
        ) from error
    rows = list(zip(*values, strict=True))
    if kind == "json":
        named = [dict(zip(names, row, strict=True)) for row in rows]
        return f"{encode_json(named, indent=2)}\n".encode()
    if kind == "csv":
        return encode_csv([names, *rows]).encode()
    return console.table(title, names, [[_cell(v) for v in row] for row in rows]).encode()


def _parquet(names: Sequence[str], columns: Sequence[Sequence[Any] | pa.ChunkedArray]) -> bytes:
    arrays = [c if isinstance(c, pa.ChunkedArray) else pa.array(c) for c in columns]
    out = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, list(names)), out)
    return out.getvalue()


def _cell(value: object) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = f"<{len(value)} bytes>" if isinstance(value, bytes) else str(value)
    text = escape_text(text[: _WIDEST + 1])
    return text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "…"
