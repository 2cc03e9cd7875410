"""Describe, name and list the Parquet files of the index.

Files are immutable, named by UUID, and invisible until they are committed. A *part* is the set of
files, at most one for each table and partition, that were written together under one name. All rows
of an image are in one part. Jobs drop, merge and verify whole parts.
"""

import re
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from segrec_batch.common.errors import StorageError
from segrec_batch.index.parquet import open_parquet
from segrec_batch.index.schema import PARTITION, TABLES
from segrec_batch.model.names import is_descriptor_id, is_name
from segrec_batch.sources import storage, store_errors
from segrec_batch.sources.strict_json import parse_json, shorten

OWNER = b"segrec.part"
"""Metadata key of a file; the value is its table and part, see `owner`."""

_FILE_NAME = re.compile(r"[0-9A-Za-z_-]{1,128}\.parquet")
_PART = re.compile(r"[0-9a-f]{32}")
_MAX_BYTES, _MAX_ROWS = 2**44, 2**31  # of a file


@dataclass(frozen=True)
class DataFile:
    """A Parquet file of a table.

    Attributes:
        table: name of the table.
        path: path below the table's folder.
        size: bytes.
        rows: number of rows.
        partition: value of the partition column; None if the table has none.
        stats: statistics in Delta Lake's JSON format.
    """

    table: str
    path: str
    size: int
    rows: int
    partition: str | None
    stats: str

    @property
    def part(self) -> str:
        """The name of the part."""
        return storage.stem(self.path)

    def uri(self, index: str) -> str:
        """Return the URI of the file in an index."""
        return storage.join(index, self.table, self.path)


def parse_data_file(
    table: str, path: object, size: object, rows: object, partition: object, stats: object
) -> DataFile:
    """Return the file that an entry of a log or manifest describes.

    Raises ValueError if its path is not in the folder of its table and partition, or a number is
    impossible.
    """
    if table not in TABLES:
        raise ValueError(f"there is no table {shorten(table)}")
    is_valid = {"descriptor": is_descriptor_id, "class": is_name}
    if not is_valid[PARTITION[table]](partition) if table in PARTITION else partition is not None:
        raise ValueError(f"{table} has no partition {shorten(partition)}")
    folder = f"{PARTITION[table]}={partition}/" if table in PARTITION else ""
    if (
        not isinstance(path, str)
        or not path.startswith(folder)
        or not _FILE_NAME.fullmatch(path.removeprefix(folder))
    ):
        raise ValueError(f"{shorten(path)} is no path of a file of {table}/{folder}")
    for name, number, limit in (("bytes", size, _MAX_BYTES), ("rows", rows, _MAX_ROWS)):
        if type(number) is not int or not 0 <= number < limit:
            raise ValueError(f"{shorten(path)} cannot have {shorten(number)} {name}")
    if not isinstance(stats, str):
        raise ValueError(f"{shorten(path)} has no statistics")
    return DataFile(table, path, size, rows, partition, stats)  # type: ignore[arg-type]


def check_statistics(stats: str) -> None:
    """Raise ValueError unless statistics have the form of `parts.statistics`."""
    values = parse_json(stats.encode())
    for key in ("minValues", "maxValues", "nullCount"):
        ends = values.get(key) if isinstance(values, dict) else None
        if not isinstance(ends, dict) or not all(type(v) in (int, float) for v in ends.values()):
            raise ValueError(f"statistics {shorten(stats)}")


def count_rows(files: Iterable[DataFile], table: str) -> int:
    """Return the number of rows of a table in some files."""
    return sum(file.rows for file in files if file.table == table)


def group_by_part(files: Iterable[DataFile]) -> dict[str, list[DataFile]]:
    """Group files by part."""
    parts: dict[str, list[DataFile]] = {}
    for file in files:
        parts.setdefault(file.part, []).append(file)
    return parts


def new_part() -> str:
    """Return a unique name for a part."""
    return uuid.uuid4().hex


def path_in_part(table: str, part: str, partition: str | None = None) -> str:
    """Return the path of a part's file below the table's folder."""
    folder = f"{PARTITION[table]}={partition}/" if partition is not None else ""
    return f"{folder}{part}.parquet"


def owner(table: str, part: str) -> bytes:
    """Return the value that the file of a table and part has for the key OWNER."""
    return f"{table}/{part}".encode()


def is_part_file(index: str, file: DataFile) -> bool:
    """Return True if the metadata of a file name its table and part.

    No log names the parts of a run that stopped before its commit; the metadata distinguish them
    from files of other programs.
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
            raise StorageError(f"{file.uri(index)}: {store_errors.describe(error)}") from error
        return False  # Arrow's error for a damaged file
    return bool(metadata.get(OWNER) == owner(file.table, file.part))


def make_data_file(table: str, path: str, size: int) -> DataFile:
    """Return a description of the file at a path; its rows are 0 and its statistics empty."""
    parent, _, _ = path.rpartition("/")
    return DataFile(table, path, size, 0, parent.partition("=")[2] or None, "")


def iter_parquet_files(index: str, table: str) -> Iterator[tuple[DataFile, float]]:
    """Yield all Parquet files in a table's folder, and the times when they were written.

    They may be files of other programs; their rows are not counted. Times are in seconds since
    1970.
    """
    for path, size, written in iter_files_below(index, table):
        if path.endswith(".parquet"):
            yield make_data_file(table, path, size), written


def iter_unfinished_files(index: str) -> Iterator[tuple[str, int, float]]:
    """Yield URI, size and time of incomplete files, left by a process that writes or was killed.

    Only local disks have such files; object stores list complete objects only.
    """
    for table in TABLES:
        for path, size, written in iter_files_below(index, table):
            if storage.is_draft(path):
                yield storage.join(index, table, path), size, written


def iter_files_below(index: str, folder: str) -> Iterator[tuple[str, int, float]]:
    """Yield path, size and time of the files in a folder of the index, except its Delta log.

    Files behind symbolic links are omitted, also if the folder itself is a link.
    """
    uri = storage.join(index, folder)
    if storage.is_link(uri):
        return
    for file, size, written in storage.find_files(uri):
        path = file.removeprefix(f"{uri}/")
        if not path.startswith("_delta_log/"):
            yield path, size, written
