"""Read-only file system for DuckDB with only the files of snapshots.

DuckDB reads a remote index always through it, a local one for untrusted SQL.

DuckDB asks for a file's name, size and time each time that it plans a query, some hundred times for
a query with macros and views. Files of an index never change, and the log has their sizes, so only
reads of bytes reach the store, one request each.
"""

import datetime as dt
import io
import os
import stat
from collections.abc import Sequence
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.spec import AbstractBufferedFile

from segrec_batch.index.files import DataFile
from segrec_batch.index.snapshot import Snapshot
from segrec_batch.sources import storage

_WRITTEN = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)  # one time for all files, since they never change


class SnapshotFiles(AbstractFileSystem):  # type: ignore[misc]
    """Read-only files of some snapshots of one index: `snapshot://TABLE/PATH`."""

    protocol = "snapshot"
    cachable = False

    def __init__(self, snapshots: Sequence[Snapshot]) -> None:
        super().__init__()
        self.index = snapshots[0].index
        self._files = {f"{f.table}/{f.path}": f for s in snapshots for f in s.all_files}

    @classmethod
    def uri(cls, file: DataFile) -> str:
        """Return the name of a file for DuckDB."""
        return f"{cls.protocol}://{file.table}/{file.path}"

    def glob(self, path: str, maxdepth: int | None = None, **_: Any) -> list[str]:
        """Return the file itself: names of data files are no patterns."""
        name = self._strip_protocol(path)
        return [name] if name in self._files else []

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Return name and size, from the log."""
        name = self._strip_protocol(path)
        return {"name": name, "size": self._files[name].size, "type": "file"}

    def modified(self, path: str) -> dt.datetime:
        """Return a constant time."""
        return _WRITTEN

    def _open(self, path: str, mode: str = "rb", **_: Any) -> "_File | _LocalFile":
        name = self._strip_protocol(path)
        if mode != "rb":
            raise PermissionError(f"{name}: files of an index are read only")
        if name not in self._files:
            raise FileNotFoundError(f"{name}: no file of this snapshot")
        uri = self._files[name].uri(self.index)
        if storage.is_remote(self.index):
            return _File(self, name, mode, cache_type="none")
        return _LocalFile(uri)


class _File(AbstractBufferedFile):  # type: ignore[misc]
    def _fetch_range(self, start: int, end: int) -> bytes:
        return storage.read_range(storage.join(self.fs.index, self.path), start, end)


class _LocalFile(io.RawIOBase):
    """A regular file of the local disk, read-only and unbuffered."""

    def __init__(self, path: str) -> None:
        # O_NONBLOCK: opening a pipe would wait for a writer
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        state = os.fstat(self._descriptor)
        self._position, self.size = 0, state.st_size
        if not stat.S_ISREG(state.st_mode):
            self.close()
            raise FileNotFoundError(f"{path}: not a regular file")

    def read(self, size: int = -1, /) -> bytes:
        """Return the next `size` bytes, fewer at the end of the file."""
        count = self.size - self._position if size < 0 else size
        content = os.pread(self._descriptor, max(count, 0), self._position)
        self._position += len(content)
        return content

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go to a position and return it."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        """Return the position of the next byte."""
        return self._position

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            os.close(self._descriptor)
        super().close()
