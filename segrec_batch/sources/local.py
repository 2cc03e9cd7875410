"""Atomic writes and listings on local disk."""

import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically, with its folders. Raises OSError."""
    if path.exists() and not path.is_file():  # /dev/stdout or a pipe: cannot be replaced
        path.write_bytes(data)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".segrec-{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def find_files(path: str, links: bool) -> Iterator[tuple[str, int, float]]:
    """Yield path, size and time of last change of files, as `storage.find_files` does."""

    def raise_unless_missing(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    for folder, folders, names in os.walk(path, onerror=raise_unless_missing):
        linked = [n for n in folders if os.path.islink(os.path.join(folder, n))] if links else []  # noqa: PTH114, PTH118
        for file in (os.path.join(folder, name) for name in (*names, *linked)):  # noqa: PTH118
            with suppress(FileNotFoundError):
                status = _follow_link(file) if links else os.lstat(file)
                if links or stat.S_ISREG(status.st_mode):
                    yield file, status.st_size, status.st_mtime


def _follow_link(path: str) -> os.stat_result:
    """Return the state of the target of a link; of the link itself if it is broken."""
    try:
        return os.stat(path)  # noqa: PTH116
    except OSError:
        return os.lstat(path)
