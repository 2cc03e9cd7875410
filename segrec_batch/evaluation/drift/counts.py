"""`counts.parquet` of a drift report: one tidy table from which all its figures follow."""

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

COUNTS = pa.schema(
    [
        # images, failures, coverage: of all; stale: images that are failures, too; golden: a figure
        # of one golden image
        pa.field("what", pa.string(), nullable=False),
        # images, coverage: new, gone, changed, unchanged. failures: new, still, mended (indexed
        # now), gone. stale: stale. golden: the figure
        pa.field("name", pa.string(), nullable=False),
        pa.field("side", pa.string(), nullable=False),  # before, after; images: empty
        pa.field("class", pa.string(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),  # of failures
        pa.field("reason", pa.string(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),  # of golden images
        pa.field("setting", pa.string(), nullable=False),  # of an overlap: what was compared
        pa.field("k", pa.int32(), nullable=False),  # of an overlap, 0 of the others
        pa.field("bin", pa.int32()),  # of coverage: 0 is σ = 0, i is (i - 1)/1000 < σ <= i/1000
        pa.field("count", pa.int64()),  # images or failures
        pa.field("value", pa.float64()),  # coverage: sum of σ in the bin; golden: the figure
    ]
)


def as_counts(what: str, rows: pa.Table) -> pa.Table:
    """COUNTS of some of its columns; texts that are not given are empty, numbers NULL, k 0."""
    n = len(rows)
    given = {"what": pa.array([what] * n, pa.string())}
    given |= dict(zip(rows.column_names, rows.columns, strict=True))
    columns = []
    for field in COUNTS:
        nothing = "" if field.type == pa.string() else 0 if field.name == "k" else None
        column = given.get(field.name, pa.array([nothing] * n, field.type))
        columns.append(column.cast(field.type))
    return pa.table(columns, schema=COUNTS)


def golden_counts(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """COUNTS of golden figures: name, image_id, value (None: not defined), class, setting, k."""
    nothing = {"class": "", "setting": "", "k": 0}
    schema = pa.schema(
        [COUNTS.field(n) for n in ("name", "image_id", "value", "class", "setting", "k")]
    )
    return as_counts("golden", pa.Table.from_pylist([{**nothing, **r} for r in rows], schema))
