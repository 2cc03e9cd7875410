"""Rows as text or bytes: a table for people, CSV, JSON and Parquet for programs."""

import csv
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq

from segrec_batch import console

FORMATS = ("table", "csv", "json", "parquet")

_WIDEST = 120  # characters of a cell of a table; the other formats keep all


def formatted(kind: str, rows: pa.Table, title: str) -> bytes:
    """Rows in one of FORMATS; only a table for people has the title."""
    if kind == "parquet":
        out = io.BytesIO()
        pq.write_table(rows, out)
        return out.getvalue()
    values = [tuple(row.values()) for row in rows.to_pylist()]
    if kind == "json":
        named = [dict(zip(rows.column_names, row, strict=True)) for row in values]
        return (json.dumps(named, indent=2, default=str) + "\n").encode()
    if kind == "csv":
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([rows.column_names, *values])
        return text.getvalue().encode()
    cells = [[_cell(value) for value in row] for row in values]
    return console.table(title, rows.column_names, cells).encode()


def _cell(value: object) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = f"<{len(value)} bytes>" if isinstance(value, bytes) else str(value)
    return text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "…"
