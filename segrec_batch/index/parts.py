"""Read and write parts; rows are sorted so that filters on coverage skip row groups.

A row group is read as a whole or skipped, so the order of rows decides the cost of a filter.
Regions are sorted by coverage, images along a Z-curve through the coverages of all classes.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from segrec_batch.common.errors import IndexStateError
from segrec_batch.index.files import OWNER, DataFile, new_part, owner, path_in_part
from segrec_batch.index.parquet import drop_embedded_schema, open_parquet, read_parquet
from segrec_batch.index.schema import check_columns
from segrec_batch.sources import storage

ROW_GROUP = 2048  # rows

Rows = tuple[str, str | None, pa.Table]
"""Name of a table, partition, and rows without the partition column."""


def read_rows(index: str, table: str, path: str) -> pa.Table:
    """Return the rows of a file at a path below a table's folder, without the partition column.

    Raises OSError if it cannot be read, IndexStateError if it does not hold rows of the table.
    """
    uri = storage.join(index, table, path)
    content = storage.read_bytes(uri)
    with _convert_errors(uri):
        rows = read_parquet(content)
        check_columns(table, rows.schema)
    return rows


def read_file(index: str, file: DataFile) -> pa.Table:
    """Return the rows of a file, see `read_rows`."""
    return read_rows(index, file.table, file.path)


def read_column(index: str, file: DataFile, column: str) -> pa.ChunkedArray:
    """Return one column of a file, without reading the others."""
    uri = file.uri(index)
    with storage.opened(uri) as source, _convert_errors(uri):
        opened = open_parquet(source)
        check_columns(file.table, opened.schema_arrow)
        return opened.read(columns=[column])[column]


def read_images(index: str, file: DataFile, image_ids: Sequence[str]) -> pa.Table:
    """Return the rows of some images; one row group is in memory at a time."""
    uri, ids = file.uri(index), pa.array(image_ids, pa.string())
    with storage.opened(uri) as source, _convert_errors(uri):
        opened = open_parquet(source)
        check_columns(file.table, opened.schema_arrow)
        groups = [opened.schema_arrow.empty_table()]
        for group in range(opened.num_row_groups):
            column = opened.read_row_group(group, columns=["image_id"])["image_id"]
            if (is_member := pc.is_in(column, ids)).to_numpy().any():
                groups.append(opened.read_row_group(group).filter(is_member))
    return drop_embedded_schema(pa.concat_tables(groups))


@contextmanager
def _convert_errors(uri: str) -> Iterator[None]:
    """Raise errors about the content of a file as IndexStateError."""
    try:
        yield
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk or the store failed
            raise
        raise IndexStateError(
            f"{uri}: {error}; segrec maintain verify names all files that are damaged"
        ) from error


def write_part(index: str, contents: Iterable[Rows]) -> list[DataFile]:
    """Write rows as one part; a table or partition without rows has no file.

    One of the contents is in memory at a time. Rows of `failures` become a separate part, because
    they are added and removed independently of other tables.
    """
    part, failure_part = new_part(), new_part()
    return [
        write_file(
            index,
            failure_part if table == "failures" else part,
            table,
            _sort_rows(table, rows),
            partition,
        )
        for table, partition, rows in contents
        if rows.num_rows
    ]


def rewrite_part(
    index: str, files: Sequence[DataFile], image_ids: Sequence[str], failed_ids: Sequence[str] = ()
) -> list[DataFile]:
    """Write a part under a new name, without the rows of some images.

    Args:
        index: The index.
        files: All files of the part.
        image_ids: image_ids to leave out of all tables but `failures`.
        failed_ids: image_ids to leave out of `failures`.
    """
    ids = {
        failure_part: pa.array(failed_ids if failure_part else image_ids, pa.string())
        for failure_part in (True, False)
    }
    return write_part(
        index,
        (
            (f.table, f.partition, _drop_images(read_file(index, f), ids[f.table == "failures"]))
            for f in files
        ),
    )


def merge_parts(index: str, files: Iterable[DataFile]) -> list[DataFile]:
    """Write the rows of several parts as one part, see `write_part`."""
    groups: dict[tuple[str, str | None], list[DataFile]] = {}
    for file in files:
        groups.setdefault((file.table, file.partition), []).append(file)
    return write_part(
        index,
        (
            (table, partition, pa.concat_tables([read_file(index, f) for f in members]))
            for (table, partition), members in groups.items()
        ),
    )


def write_file(
    index: str, part: str, table: str, rows: pa.Table, partition: str | None = None
) -> DataFile:
    """Write rows, without the partition column, as a part's file of a table.

    Local files are uncompressed, because such files are read fastest. Files on object stores are
    compressed with zstd and byte-stream split, which saves a quarter of the bytes.
    """
    path = path_in_part(table, part, partition)
    sink = pa.BufferOutputStream()
    rows = rows.replace_schema_metadata({OWNER: owner(table, part)})
    encoding = _choose_encoding(index, rows.schema)
    pq.write_table(rows, sink, row_group_size=ROW_GROUP, write_page_checksum=True, **encoding)
    data = sink.getvalue()
    storage.write_bytes(storage.join(index, table, path), data.to_pybytes())
    return DataFile(table, path, data.size, rows.num_rows, partition, compute_statistics(rows))


def _choose_encoding(index: str, schema: pa.Schema) -> dict[str, Any]:
    texts = [f.name for f in schema if f.type == pa.string()]
    if not storage.is_remote(index):
        return {"compression": "none", "use_dictionary": texts}
    floats = [f.name for f in schema if f.type == pa.float32()]
    vectors = [f"{f.name}.list.element" for f in schema if pa.types.is_list(f.type)]
    return {
        "compression": "zstd",
        "use_dictionary": texts,
        "use_byte_stream_split": floats + vectors,
    }


def compute_statistics(rows: pa.Table) -> str:
    """Return the number of rows and the extremes of coverages as JSON; engines skip files by it.

    `image_id` and `uri` have no statistics, because the log cannot be purged of them.
    """
    names = [name for name in rows.column_names if name.startswith("coverage")]
    extremes = {name: pc.min_max(rows[name]).as_py() for name in names}
    return json.dumps(
        {
            "numRecords": rows.num_rows,
            "minValues": {name: _round_to_float32(e["min"]) for name, e in extremes.items()},
            "maxValues": {name: _round_to_float32(e["max"]) for name, e in extremes.items()},
            "nullCount": dict.fromkeys(names, 0),
        }
    )


def _round_to_float32(value: float) -> float:
    """Return the number with the shortest decimal text that reads back as the same float32."""
    return float(str(np.float32(value)))


def _drop_images(rows: pa.Table, ids: pa.Array) -> pa.Table:
    return rows.filter(pc.invert(pc.is_in(rows["image_id"], ids)))


def _sort_rows(table: str, rows: pa.Table) -> pa.Table:
    if table == "failures":
        return rows.sort_by("image_id")
    if table == "descriptors":
        return rows.sort_by([("category", "ascending"), ("image_id", "ascending")])
    if table == "regions":
        return rows.sort_by([("coverage", "ascending"), ("image_id", "ascending")])
    rows = rows.sort_by("image_id")
    names = [n for n in rows.column_names if n.startswith("coverage_")]
    coverages = np.stack([rows[n].to_numpy() for n in names], axis=1)
    return rows.take(pa.array(compute_z_order(coverages)))


def compute_z_order(coverages: NDArray[np.float32], bits: int = 3) -> NDArray[np.int64]:
    """Return the order of coverages (N, K) in [0, 1] along a Z-curve, with `bits` bits per class.

    Neighbouring rows have similar coverages of every class, so the extremes of most row groups
    exclude a filter's range. With 3 bits only the first 21 classes are used.
    """
    k = min(coverages.shape[1], 63 // bits)
    levels = np.minimum((coverages[:, :k] * 2**bits).astype(np.int64), 2**bits - 1)
    code = np.zeros(len(coverages), np.int64)
    for bit in reversed(range(bits)):
        for column in range(k):
            code = (code << 1) | ((levels[:, column] >> bit) & 1)
    return np.argsort(code, kind="stable")
