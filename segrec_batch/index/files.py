"""Finished Parquet files of the index: immutable, named by UUID, invisible until committed.

A *part* is the set of files, at most one per table and class, that were written together under one
name. All rows of an image are in one part. So whoever knows the part of an image has its files, and
what is dropped, merged or verified is a part.
"""

import json
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segrec_batch.common import faults
from segrec_batch.common.errors import IndexStateError, StorageError
from segrec_batch.index.parquet import open_parquet, read_parquet, without_embedded
from segrec_batch.index.schema import PARTITION, TABLES, check_columns
from segrec_batch.model.spec import is_descriptor_id, is_name
from segrec_batch.sources import storage
from segrec_batch.sources.strict_json import parse_json, shorten

ROW_GROUP = 2048  # rows; DuckDB skips whole row groups only
_FILE_NAME = re.compile(r"[0-9A-Za-z_-]{1,128}\.parquet")
_MOST_BYTES, _MOST_ROWS = 2**44, 2**31  # of a file; a log that says more is wrong

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


def described_file(
    table: str,
    path: object,
    size: object,
    rows: object,
    partition: object,
    stats: object,
) -> DataFile:
    """Return the file that a log or a manifest describes, if it can be one of ours.

    Raises:
        ValueError: It lies elsewhere than in the folder of its table and partition, or its numbers
            cannot be.
    """
    if table not in TABLES:
        raise ValueError(f"there is no table {shorten(table)}")
    known = {"descriptor": is_descriptor_id, "class": is_name}
    if not known[PARTITION[table]](partition) if table in PARTITION else partition is not None:
        raise ValueError(f"{table} has no partition {shorten(partition)}")
    folder = f"{PARTITION[table]}={partition}/" if table in PARTITION else ""
    if (
        not isinstance(path, str)
        or not path.startswith(folder)
        or not _FILE_NAME.fullmatch(path.removeprefix(folder))
    ):
        raise ValueError(f"{shorten(path)} is no path of a file of {table}/{folder}")
    for name, number, most in (("bytes", size, _MOST_BYTES), ("rows", rows, _MOST_ROWS)):
        if type(number) is not int or not 0 <= number < most:
            raise ValueError(f"{shorten(path)} cannot have {shorten(number)} {name}")
    if not isinstance(stats, str):
        raise ValueError(f"{shorten(path)} has no statistics")
    return DataFile(table, path, size, rows, partition, stats)  # type: ignore[arg-type]


def check_statistics(stats: str) -> None:
    """Raise ValueError for statistics of another shape than those of `statistics`."""
    found = parse_json(stats.encode())
    for key in ("minValues", "maxValues", "nullCount"):
        ends = found.get(key) if isinstance(found, dict) else None
        if not isinstance(ends, dict) or not all(type(v) in (int, float) for v in ends.values()):
            raise ValueError(f"statistics {shorten(stats)}")


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
    return read_parquet(content)


def read_path(index: str, table: str, path: str) -> pa.Table:
    """The rows of a file, without the partition column.

    Raises OSError if it cannot be read, IndexStateError if it does not hold rows of the table.
    """
    uri = storage.join(index, table, path)
    content = storage.read_bytes(uri)
    with _refusal(uri):
        rows = parse_rows(content)
        check_columns(table, rows.schema)
    return rows


def read_file(index: str, file: DataFile) -> pa.Table:
    """The same for a file that is described."""
    return read_path(index, file.table, file.path)


def read_column(index: str, file: DataFile, column: str) -> pa.ChunkedArray:
    """One column of a file, without reading the others."""
    uri = file.uri(index)
    with storage.opened(uri) as source, _refusal(uri):
        opened = open_parquet(source)
        check_columns(file.table, opened.schema_arrow)
        return opened.read(columns=[column])[column]


def read_some(index: str, file: DataFile, image_ids: Sequence[str]) -> pa.Table:
    """The rows of some images, without holding the others all at once."""
    uri, wanted = file.uri(index), pa.array(image_ids, pa.string())
    with storage.opened(uri) as source, _refusal(uri):
        opened = open_parquet(source)
        check_columns(file.table, opened.schema_arrow)
        found = [opened.schema_arrow.empty_table()]
        for group in range(opened.num_row_groups):
            ids = opened.read_row_group(group, columns=["image_id"])["image_id"]
            if (kept := pc.is_in(ids, wanted)).to_numpy().any():
                found.append(opened.read_row_group(group).filter(kept))
    return without_embedded(pa.concat_tables(found))


@contextmanager
def _refusal(uri: str) -> Iterator[None]:
    """What Arrow says of a file that is damaged, or not what it should be, as an error of ours."""
    try:
        yield
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk or the store
            raise
        raise IndexStateError(
            f"{uri}: {error}; segrec maintain verify names all files that are damaged"
        ) from error


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
    try:
        with storage.opened(file.uri(index)) as source:
            metadata = open_parquet(source).metadata.metadata or {}
    except (FileNotFoundError, PermissionError, pa.ArrowException):
        return False
    except OSError as error:
        if error.errno is not None:
            raise StorageError(f"{file.uri(index)}: {faults.describe(error)}") from error
        return False  # Arrow's, of a damaged file
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
