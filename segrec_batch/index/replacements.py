"""Record which files a purge has replaced, for readers of older versions.

A purge removes rows from the files of every retained version, but the log of Delta Lake cannot be
changed. So a rewritten file has a new name, and Parquet files in INDEX/purged map old files to new.
"""

from collections.abc import Iterable, Iterator, Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from segrec_batch.common.errors import IndexStateError
from segrec_batch.index.files import DataFile, check_statistics, new_part, parse_data_file
from segrec_batch.index.parquet import read_parquet
from segrec_batch.sources import storage

_FOLDER = "purged"
_SCHEMA = pa.schema(
    [
        pa.field("old_path", pa.string(), nullable=False),
        pa.field("table", pa.string(), nullable=False),
        pa.field("path", pa.string()),  # NULL if no rows were left
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
    """Store pairs of an old file and its replacement; None if no rows were left."""
    rows = [
        {**(vars(replacement) if replacement else {}), "table": old.table, "old_path": old.path}
        for old, replacement in replacements
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, _SCHEMA), sink)
    uri = storage.join(index, _FOLDER, f"{new_part()}.parquet")
    storage.write_bytes(uri, sink.getvalue().to_pybytes())


def read_replacements(index: str) -> Replacements:
    """Return the newest replacement of each purged file, by its table and path."""
    successors: dict[tuple[str, str], DataFile | None] = {}
    folder = storage.join(index, _FOLDER)
    for uri, *_ in sorted(storage.find_files(folder, ".parquet", links=True)):
        content = storage.read_bytes(uri)
        try:
            successors.update(_parse_table(content))
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise IndexStateError(f"{uri}: not what a purge has written: {error}") from error
    return {key: _follow(index, successors, replacement) for key, replacement in successors.items()}


def _parse_table(content: bytes) -> Iterator[tuple[tuple[str, str], DataFile | None]]:
    rows = read_parquet(content)
    if not rows.schema.equals(_SCHEMA):
        raise ValueError("it has other columns")
    for row in rows.to_pylist():
        key = (row["table"], row.pop("old_path"))
        replacement = parse_data_file(**row) if row["path"] is not None else None
        if replacement:
            check_statistics(replacement.stats)
        yield key, replacement


def _follow(index: str, successors: Replacements, file: DataFile | None) -> DataFile | None:
    visited: set[tuple[str, str]] = set()
    while file is not None and (key := (file.table, file.path)) in successors:
        if key in visited:
            raise IndexStateError(
                f"{storage.join(index, _FOLDER)}: {file.path} is its own successor"
            )
        visited.add(key)
        file = successors[key]
    return file
