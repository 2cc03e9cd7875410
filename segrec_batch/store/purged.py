"""What purges did to older versions: which file took the place of which.

A deletion request takes rows out of files of every retained version, and the log of Delta Lake
cannot be changed. So the rewritten file has another name, a table of replacements is kept beside
the index, and whoever opens an older version looks there.
"""

from collections.abc import Iterable, Iterator, Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from segrec_batch import storage
from segrec_batch.store.files import DataFile, new_part

_FOLDER = "purged"
_SCHEMA = pa.schema(
    [
        pa.field("old_path", pa.string(), nullable=False),
        pa.field("table", pa.string(), nullable=False),
        pa.field("path", pa.string()),  # NULL: nothing was left
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
    """Remember which files took the place of which; None for a file of which nothing was left."""
    rows = [
        {**(vars(new) if new else {}), "table": old.table, "old_path": old.path}
        for old, new in replacements
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, _SCHEMA), sink)
    uri = storage.join(index, _FOLDER, f"{new_part()}.parquet")
    storage.write_bytes(uri, sink.getvalue().to_pybytes())


def read_replacements(index: str) -> Replacements:
    """By table and path of a file that a purge took away: what it became, after all purges."""
    found: dict[tuple[str, str], DataFile | None] = {}
    for uri, *_ in sorted(_tables(index)):
        for row in pq.read_table(pa.BufferReader(storage.read_bytes(uri))).to_pylist():
            key = (row["table"], row.pop("old_path"))
            found[key] = DataFile(**row) if row["path"] else None
    return {key: _last(found, new) for key, new in found.items()}


def _tables(index: str) -> Iterator[tuple[str, int, float]]:
    return storage.find_files(storage.join(index, _FOLDER), ".parquet", links=True)


def _last(found: Replacements, file: DataFile | None) -> DataFile | None:
    while file is not None and (file.table, file.path) in found:
        file = found[file.table, file.path]
    return file
