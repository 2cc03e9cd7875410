"""Temporary folders that a killed process does not leave behind for good."""

import fcntl
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_YOUNG = 60.0  # seconds; such a folder may not be locked yet


@contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """A temporary folder for the time of the block; what dead processes left of its kind goes."""
    for old in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        _remove_if_abandoned(old)
    with tempfile.TemporaryDirectory(prefix=prefix) as name:
        folder = Path(name)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder


def _remove_if_abandoned(folder: Path) -> None:
    """The kernel gives up a process's locks when it dies."""
    with suppress(OSError), (folder / "lock").open() as lock:
        if time.time() - folder.stat().st_mtime > _YOUNG:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
