"""Reading and writing parts: rows sorted so that filters on coverage skip row groups.

Row groups are read whole or skipped, so the order of rows decides the cost of a filter: regions are
sorted by coverage, images along a Z-curve of all coverages.
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
from segrec_batch.index.parquet import open_parquet, read_parquet, without_embedded
from segrec_batch.index.schema import check_columns
from segrec_batch.sources import storage

ROW_GROUP = 2048  # rows

Rows = tuple[str, str | None, pa.Table]
"""A table, a partition, and rows without the partition column."""


def read_path(index: str, table: str, path: str) -> pa.Table:
    """Return the rows of a file at a path below a table's folder, without the partition column.

    Raises OSError if it cannot be read, IndexStateError if it does not hold rows of the table.
    """
    uri = storage.join(index, table, path)
    content = storage.read_bytes(uri)
    with _as_index_errors(uri):
        rows = read_parquet(content)
        check_columns(table, rows.schema)
    return rows


def read_file(index: str, file: DataFile) -> pa.Table:
    """Return the rows of a file, see `read_path`."""
    return read_path(index, file.table, file.path)


def read_column(index: str, file: DataFile, column: str) -> pa.ChunkedArray:
    """Return one column of a file, without reading the others."""
    uri = file.uri(index)
    with storage.opened(uri) as source, _as_index_errors(uri):
        opened = open_parquet(source)
        check_columns(file.table, opened.schema_arrow)
        return opened.read(columns=[column])[column]


def read_some(index: str, file: DataFile, image_ids: Sequence[str]) -> pa.Table:
    """Return the rows of some images, reading one row group at a time."""
    uri, ids = file.uri(index), pa.array(image_ids, pa.string())
    with storage.opened(uri) as source, _as_index_errors(uri):
        opened = open_parquet(source)
        check_columns(file.table, opened.schema_arrow)
        groups = [opened.schema_arrow.empty_table()]
        for group in range(opened.num_row_groups):
            column = opened.read_row_group(group, columns=["image_id"])["image_id"]
            if (is_member := pc.is_in(column, ids)).to_numpy().any():
                groups.append(opened.read_row_group(group).filter(is_member))
    return without_embedded(pa.concat_tables(groups))


@contextmanager
def _as_index_errors(uri: str) -> Iterator[None]:
    """Turn Arrow's errors about the content of a file into IndexStateError."""
    try:
        yield
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk or the store failed
            raise
        raise IndexStateError(
            f"{uri}: {error}; segrec maintain verify names all files that are damaged"
        ) from error


def write_part(index: str, contents: Iterable[Rows]) -> list[DataFile]:
    """Write rows as one part, without files for empty contents.

    One of the contents is in memory at a time. Rows of `failures` make a part of their own, because
    they are added and removed without those of other tables.
    """
    part, failed = new_part(), new_part()
    return [
        write_file(
            index,
            failed if table == "failures" else part,
            table,
            _sorted(table, rows),
            partition,
        )
        for table, partition, rows in contents
        if rows.num_rows
    ]


def rewrite_part(
    index: str, files: Sequence[DataFile], dropped: Sequence[str], mended: Sequence[str] = ()
) -> list[DataFile]:
    """Write a part again, under a new name, without the rows of some images.

    Args:
        index: The index.
        files: All files of the part.
        dropped: image_ids to leave out of all tables but `failures`.
        mended: image_ids to leave out of `failures`.
    """
    ids = {failed: pa.array(mended if failed else dropped, pa.string()) for failed in (True, False)}
    return write_part(
        index,
        (
            (f.table, f.partition, _without(read_file(index, f), ids[f.table == "failures"]))
            for f in files
        ),
    )


def merge_parts(index: str, files: Iterable[DataFile]) -> list[DataFile]:
    """Write the files of several parts as one part, see `write_part`."""
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

    Local files are uncompressed, which reads fastest; files on object stores have zstd and split
    bytes of vectors, which saves a quarter of the bytes.
    """
    path = path_in_part(table, part, partition)
    sink = pa.BufferOutputStream()
    rows = rows.replace_schema_metadata({OWNER: owner(table, part)})
    encoding = _encoding(index, rows.schema)
    pq.write_table(rows, sink, row_group_size=ROW_GROUP, write_page_checksum=True, **encoding)
    data = sink.getvalue()
    storage.write_bytes(storage.join(index, table, path), data.to_pybytes())
    return DataFile(table, path, data.size, rows.num_rows, partition, statistics(rows))


def _encoding(index: str, schema: pa.Schema) -> dict[str, Any]:
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


def statistics(rows: pa.Table) -> str:
    """Return the row count and the extremes of coverages as JSON, by which engines skip files.

    `image_id` and `uri` have no statistics: the log outlives purged rows.
    """
    names = [name for name in rows.column_names if name.startswith("coverage")]
    extremes = {name: pc.min_max(rows[name]).as_py() for name in names}
    return json.dumps(
        {
            "numRecords": rows.num_rows,
            "minValues": {name: _shortest(e["min"]) for name, e in extremes.items()},
            "maxValues": {name: _shortest(e["max"]) for name, e in extremes.items()},
            "nullCount": dict.fromkeys(names, 0),
        }
    )


def _shortest(value: float) -> float:
    """Return the shortest decimal number that reads back as the same float32."""
    return float(str(np.float32(value)))


def _without(rows: pa.Table, ids: pa.Array) -> pa.Table:
    return rows.filter(pc.invert(pc.is_in(rows["image_id"], ids)))


def _sorted(table: str, rows: pa.Table) -> pa.Table:
    if table == "failures":
        return rows.sort_by("image_id")
    if table == "descriptors":
        return rows.sort_by([("category", "ascending"), ("image_id", "ascending")])
    if table == "regions":
        return rows.sort_by([("coverage", "ascending"), ("image_id", "ascending")])
    rows = rows.sort_by("image_id")
    names = [n for n in rows.column_names if n.startswith("coverage_")]
    coverages = np.stack([rows[n].to_numpy() for n in names], axis=1)
    return rows.take(pa.array(z_order(coverages)))


def z_order(coverages: NDArray[np.float32], bits: int = 3) -> NDArray[np.int64]:
    """Return the order of coverages (N, K) in [0, 1] along a Z-curve, with `bits` bits per class.

    Neighbouring rows have similar coverages of every class, so the extremes of row groups exclude
    most of them. Only the first 21 classes count.
    """
    k = min(coverages.shape[1], 63 // bits)
    levels = np.minimum((coverages[:, :k] * 2**bits).astype(np.int64), 2**bits - 1)
    code = np.zeros(len(coverages), np.int64)
    for bit in reversed(range(bits)):
        for column in range(k):
            code = (code << 1) | ((levels[:, column] >> bit) & 1)
    return np.argsort(code, kind="stable")
