"""Temporary folders; if a process is killed, a later process deletes the folders that it left.

A folder is deleted only if it is no link, belongs to this user, has a name that `scratch_folder`
gives, and holds a lock file with the text of this module that no process has locked.
"""

import fcntl
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

_MIN_AGE = 60.0  # seconds; a younger folder may not hold its lock yet
_SUFFIX = ".segrec"
_RANDOM_PART = r"[a-z0-9_]{8}"  # what mkdtemp appends to the prefix
_LOCK_TEXT = b"A temporary folder of segrec_batch; it is deleted with all that is in it.\n"


@contextmanager
def scratch_folder(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """Make a temporary folder for the block, and delete folders of dead processes.

    Args:
        prefix: start of the folder's name; only folders with this prefix are deleted.
        parent: folder to make it in; None is the system's folder for temporary files.
    """
    parent_folder = parent or Path(tempfile.gettempdir())
    name_pattern = re.compile(re.escape(prefix) + _RANDOM_PART + re.escape(_SUFFIX))
    for candidate in parent_folder.glob(f"{escape(prefix)}*{_SUFFIX}"):
        if name_pattern.fullmatch(candidate.name):
            _remove_if_abandoned(candidate)
    with tempfile.TemporaryDirectory(suffix=_SUFFIX, prefix=prefix, dir=parent_folder) as path:
        folder = Path(path)
        with (folder / "lock").open("xb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.write(_LOCK_TEXT)
            lock.flush()
            yield folder


def _remove_if_abandoned(folder: Path) -> None:
    """Delete a folder that no process has locked; the kernel releases locks of dead processes."""
    with suppress(OSError):
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            return
        if time.time() - status.st_mtime < _MIN_AGE:
            return
        lock = os.open(folder / "lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if os.read(lock, len(_LOCK_TEXT) + 1) == _LOCK_TEXT:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
        finally:
            os.close(lock)
