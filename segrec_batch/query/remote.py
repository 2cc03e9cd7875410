"""Files of snapshots in a remote store as a file system for DuckDB.

DuckDB asks for a file's name, size and time each time that it plans a query, some hundred times for
a query that uses macros and views. Files of an index never change, and the log knows them. So
nothing is asked of the store here but the bytes, and those once for each read of DuckDB.
"""

import datetime as dt
from collections.abc import Sequence
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.spec import AbstractBufferedFile

from segrec_batch import storage
from segrec_batch.store.files import DataFile
from segrec_batch.store.index import Snapshot

_WRITTEN = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)  # all the same, as files never change


class SnapshotFiles(AbstractFileSystem):  # type: ignore[misc]
    """The files of some snapshots of one index, to read: `snapshot://TABLE/PATH`."""

    protocol = "snapshot"
    cachable = False

    def __init__(self, snapshots: Sequence[Snapshot]) -> None:
        super().__init__()
        self.index = snapshots[0].index
        self._files = {f"{f.table}/{f.path}": f for s in snapshots for f in s.all_files}

    @classmethod
    def uri(cls, file: DataFile) -> str:
        """How DuckDB names a file."""
        return f"{cls.protocol}://{file.table}/{file.path}"

    def glob(self, path: str, maxdepth: int | None = None, **_: Any) -> list[str]:
        """The file itself: names of data files have no pattern in them."""
        name = self._strip_protocol(path)
        return [name] if name in self._files else []

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Name and bytes, from the log."""
        name = self._strip_protocol(path)
        return {"name": name, "size": self._files[name].size, "type": "file"}

    def modified(self, path: str) -> dt.datetime:
        """The same time always."""
        return _WRITTEN

    def _open(self, path: str, mode: str = "rb", **_: Any) -> "_File":
        return _File(self, path, mode, cache_type="none")


class _File(AbstractBufferedFile):  # type: ignore[misc]
    def _fetch_range(self, start: int, end: int) -> bytes:
        return storage.read_range(storage.join(self.fs.index, self.path), start, end)
