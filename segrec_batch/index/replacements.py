"""Replacements of files by purges, for readers of older versions.

A deletion request removes rows from files of every retained version, but the log of Delta Lake
cannot be changed. So the rewritten file has a new name, and a table of replacements beside the
index leads from the old file to it.
"""

from collections.abc import Iterable, Iterator, Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from segrec_batch.common.errors import IndexStateError
from segrec_batch.index.files import DataFile, check_statistics, described_file, new_part
from segrec_batch.index.parquet import read_parquet
from segrec_batch.sources import storage

_FOLDER = "purged"
_SCHEMA = pa.schema(
    [
        pa.field("old_path", pa.string(), nullable=False),
        pa.field("table", pa.string(), nullable=False),
        pa.field("path", pa.string()),  # NULL: no rows were left
        pa.field("size", pa.int64()),
        pa.field("rows", pa.int64()),
        pa.field("partition", pa.string()),
        pa.field("stats", pa.string()),
    ]
)

Replacements = Mapping[tuple[str, str], DataFile | None]


def write_replacements(
    index: str, replacements: Iterable[tuple[DataFile, DataFile | None]]
) -> None:
    """Store pairs of an old file and its successor; None for a file without rows left."""
    rows = [
        {**(vars(new) if new else {}), "table": old.table, "old_path": old.path}
        for old, new in replacements
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, _SCHEMA), sink)
    uri = storage.join(index, _FOLDER, f"{new_part()}.parquet")
    storage.write_bytes(uri, sink.getvalue().to_pybytes())


def read_replacements(index: str) -> Replacements:
    """Return the successor after all purges by table and path of a purged file."""
    successors: dict[tuple[str, str], DataFile | None] = {}
    for uri, *_ in sorted(_tables(index)):
        content = storage.read_bytes(uri)
        try:
            successors.update(_parse(content))
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise IndexStateError(f"{uri}: not what a purge has written: {error}") from error
    return {key: _last(index, successors, new) for key, new in successors.items()}


def _parse(content: bytes) -> Iterator[tuple[tuple[str, str], DataFile | None]]:
    rows = read_parquet(content)
    if not rows.schema.equals(_SCHEMA):
        raise ValueError("it has other columns")
    for row in rows.to_pylist():
        key = (row["table"], row.pop("old_path"))
        new = described_file(**row) if row["path"] is not None else None
        if new:
            check_statistics(new.stats)
        yield key, new


def _tables(index: str) -> Iterator[tuple[str, int, float]]:
    return storage.find_files(storage.join(index, _FOLDER), ".parquet", links=True)


def _last(index: str, successors: Replacements, file: DataFile | None) -> DataFile | None:
    visited: set[tuple[str, str]] = set()
    while file is not None and (key := (file.table, file.path)) in successors:
        if key in visited:
            raise IndexStateError(
                f"{storage.join(index, _FOLDER)}: {file.path} is its own successor"
            )
        visited.add(key)
        file = successors[key]
    return file
