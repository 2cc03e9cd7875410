"""Finished Parquet files of the index: immutable, named by UUID, invisible until committed."""

import json
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segrec_batch import storage
from segrec_batch.store.schema import PARTITION

ROW_GROUP = 2048  # rows; DuckDB skips whole row groups only


@dataclass(frozen=True)
class DataFile:
    """A file in place: its table, path below the table's folder, bytes, rows, the value of the
    partition column (None if the table has none) and statistics as Delta Lake writes them.
    """

    table: str
    path: str
    size: int
    rows: int
    partition: str | None
    stats: str

    def uri(self, index: str) -> str:
        """Where the file lies in an index."""
        return storage.join(index, self.table, self.path)


def count_rows(files: Iterable[DataFile], table: str) -> int:
    """Rows that some files hold of a table."""
    return sum(file.rows for file in files if file.table == table)


def write_file(index: str, table: str, rows: pa.Table, partition: str | None = None) -> DataFile:
    """Write rows, without the partition column, as one file of a table of the index.

    On local disk uncompressed, which reads fastest; on object stores zstd, with the bytes of
    vectors split, which is a quarter smaller.
    """
    folder = f"{PARTITION[table]}={partition}/" if partition is not None else ""
    path = f"{folder}{uuid.uuid4().hex}.parquet"
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, row_group_size=ROW_GROUP, **_encoding(index, rows.schema))
    data = sink.getvalue()
    storage.write_bytes(storage.join(index, table, path), data.to_pybytes())
    return DataFile(table, path, data.size, rows.num_rows, partition, _statistics(rows))


def _encoding(index: str, schema: pa.Schema) -> dict[str, Any]:
    texts = [f.name for f in schema if f.type == pa.string()]
    if "://" not in index:
        return {"compression": "none", "use_dictionary": texts}
    floats = [f.name for f in schema if f.type == pa.float32()]
    vectors = [f"{f.name}.list.element" for f in schema if pa.types.is_list(f.type)]
    return {
        "compression": "zstd",
        "use_dictionary": texts,
        "use_byte_stream_split": floats + vectors,
    }


def _statistics(rows: pa.Table) -> str:
    """Row count and minima and maxima of `image_id` and coverages, so that engines skip files."""
    wanted = [n for n in rows.column_names if n == "image_id" or n.startswith("coverage")]
    extremes = {name: pc.min_max(rows[name]).as_py() for name in wanted}
    return json.dumps(
        {
            "numRecords": rows.num_rows,
            "minValues": {n: _json(e["min"]) for n, e in extremes.items()},
            "maxValues": {n: _json(e["max"]) for n, e in extremes.items()},
            "nullCount": dict.fromkeys(wanted, 0),
        }
    )


def _json(value: str | float) -> str | float:
    """float32 values as they print, which reads back as the same float32."""
    return value if isinstance(value, str) else float(str(np.float32(value)))
