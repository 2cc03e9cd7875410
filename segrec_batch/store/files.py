"""Finished Parquet files of the index: immutable, named by UUID, invisible until committed.

A *part* is the set of files, at most one per table and class, that were written together under one
name. All rows of an image are in one part. So whoever knows the part of an image has its files, and
what is dropped, merged or verified is a part.
"""

import json
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segrec_batch import storage
from segrec_batch.store.schema import PARTITION, TABLES

ROW_GROUP = 2048  # rows; DuckDB skips whole row groups only

_PART = re.compile(r"[0-9a-f]{32}")
_OWNER = b"segrec.part"  # in a file's own metadata: the table and part that it is of


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

    @property
    def part(self) -> str:
        """The name that the file shares with the others of its part."""
        return storage.stem(self.path)

    def uri(self, index: str) -> str:
        """Where the file lies in an index."""
        return storage.join(index, self.table, self.path)


def count_rows(files: Iterable[DataFile], table: str) -> int:
    """Rows that some files hold of a table."""
    return sum(file.rows for file in files if file.table == table)


def by_part(files: Iterable[DataFile]) -> dict[str, list[DataFile]]:
    """Files grouped by part."""
    parts: dict[str, list[DataFile]] = {}
    for file in files:
        parts.setdefault(file.part, []).append(file)
    return parts


def new_part() -> str:
    """A name for a part that no other has."""
    return uuid.uuid4().hex


def path_in_part(table: str, part: str, partition: str | None = None) -> str:
    """The path, below the table's folder, of a part's file."""
    folder = f"{PARTITION[table]}={partition}/" if partition is not None else ""
    return f"{folder}{part}.parquet"


def parse_rows(content: bytes) -> pa.Table:
    """The rows that the bytes of a file hold; raises OSError, pa.ArrowException if damaged."""
    file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
    return file.read()


def read_path(index: str, table: str, path: str) -> pa.Table:
    """The rows of a file, without the partition column."""
    return parse_rows(storage.read_bytes(storage.join(index, table, path)))


def read_file(index: str, file: DataFile) -> pa.Table:
    """The same for a file that is described."""
    return read_path(index, file.table, file.path)


def read_column(index: str, file: DataFile, column: str) -> pa.ChunkedArray:
    """One column of a file, without reading the others."""
    fs, path = storage.filesystem(file.uri(index))
    with fs.open(path) as source:
        return pq.read_table(source, columns=[column], partitioning=None)[column]


def read_some(index: str, file: DataFile, image_ids: Sequence[str]) -> pa.Table:
    """The rows of some images, without holding the others all at once."""
    fs, path = storage.filesystem(file.uri(index))
    with fs.open(path) as source:
        return pq.read_table(
            source,
            filters=pc.field("image_id").isin(pa.array(image_ids, pa.string())),
            partitioning=None,
            page_checksum_verification=True,
        )


def write_file(
    index: str, part: str, table: str, rows: pa.Table, partition: str | None = None
) -> DataFile:
    """Write rows, without the partition column, as a part's file of a table of the index.

    On local disk uncompressed, which reads fastest; on object stores zstd, with the bytes of
    vectors split, which is a quarter smaller. The file names its table and part, by which
    `is_part_file` knows it.
    """
    path = path_in_part(table, part, partition)
    sink = pa.BufferOutputStream()
    rows = rows.replace_schema_metadata({_OWNER: _owner(table, part)})
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


def files_in_place(index: str, table: str) -> Iterator[tuple[DataFile, float]]:
    """Yield the Parquet files in a table's folder, whoever wrote them, and when they were written.

    Rows and statistics are not looked up. Time in seconds since 1970.
    """
    for path, size, written in files_below(index, table):
        if path.endswith(".parquet"):
            yield file_at(table, path, size), written


def unfinished_files(index: str) -> Iterator[tuple[str, int, float]]:
    """Yield URI, size and time of files that a process was writing when it was killed, or still is.

    On local disk only: object stores show whole objects.
    """
    for table in TABLES:
        for path, size, written in files_below(index, table):
            if storage.is_draft(path):
                yield storage.join(index, table, path), size, written


def files_below(index: str, folder: str) -> Iterator[tuple[str, int, float]]:
    """Yield path, size and time of the files in a folder of the index, less those of a Delta log.

    What lies behind a symbolic link is left out, also if the folder itself is one.
    """
    uri = storage.join(index, folder)
    if storage.is_link(uri):
        return
    for file, size, written in storage.find_files(uri):
        path = file.removeprefix(f"{uri}/")
        if not path.startswith("_delta_log/"):
            yield path, size, written


def file_at(table: str, path: str, size: int) -> DataFile:
    """Return the file at a path below a table's folder; rows and statistics are not looked up."""
    parent, _, _ = path.rpartition("/")
    return DataFile(table, path, size, 0, parent.partition("=")[2] or None, "")


def is_part_file(index: str, file: DataFile) -> bool:
    """Whether a file says of itself that it is the file of that table and part.

    So are known the parts of runs that died before they committed, which no log names. A file that
    someone else has put there does not say so, whatever its name is.
    """
    expected = path_in_part(file.table, file.part, file.partition)
    if not _PART.fullmatch(file.part) or file.path != expected:
        return False
    fs, path = storage.filesystem(file.uri(index))
    try:
        with fs.open(path) as source:
            metadata = pq.read_metadata(source).metadata or {}
    except (FileNotFoundError, PermissionError, pa.ArrowException):
        return False
    return bool(metadata.get(_OWNER) == _owner(file.table, file.part))


def _owner(table: str, part: str) -> bytes:
    return f"{table}/{part}".encode()


def statistics(rows: pa.Table) -> str:
    """Row count and minima and maxima of coverages, as JSON, so that engines skip files.

    Not of `image_id` and `uri`: the log outlives rows that are purged.
    """
    names = [name for name in rows.column_names if name.startswith("coverage")]
    extremes = {name: pc.min_max(rows[name]).as_py() for name in names}
    return json.dumps(
        {
            "numRecords": rows.num_rows,
            "minValues": {name: _json(e["min"]) for name, e in extremes.items()},
            "maxValues": {name: _json(e["max"]) for name, e in extremes.items()},
            "nullCount": dict.fromkeys(names, 0),
        }
    )


def _json(value: float) -> float:
    """A float32 as it prints, which reads back as the same float32."""
    return float(str(np.float32(value)))
