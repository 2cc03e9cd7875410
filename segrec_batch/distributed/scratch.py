"""Temporary folders that later processes delete if their process was killed.

A later process deletes a folder only if it is no link, belongs to this user, has a name of
`scratch_folder`, and holds a lock file with the text of this module that no process has locked.
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

_YOUNG = 60.0  # seconds in which a new folder may be without a lock
_SUFFIX = ".segrec"
_RANDOM = r"[a-z0-9_]{8}"  # suffix by mkdtemp
_MARK = b"A temporary folder of segrec_batch; it is deleted with all that is in it.\n"


@contextmanager
def scratch_folder(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """Make a temporary folder for the block, and delete those of dead processes.

    Args:
        prefix: start of its name; folders of dead processes with this prefix are deleted.
        parent: folder to make it in (default: that for temporary files).
    """
    place = parent or Path(tempfile.gettempdir())
    name = re.compile(re.escape(prefix) + _RANDOM + re.escape(_SUFFIX))
    for old in place.glob(f"{escape(prefix)}*{_SUFFIX}"):
        if name.fullmatch(old.name):
            _remove_if_abandoned(old)
    with tempfile.TemporaryDirectory(suffix=_SUFFIX, prefix=prefix, dir=place) as path:
        folder = Path(path)
        with (folder / "lock").open("xb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.write(_MARK)
            lock.flush()
            yield folder


def _remove_if_abandoned(folder: Path) -> None:
    """Delete a folder that no process has locked; the kernel releases locks of dead processes."""
    with suppress(OSError):
        state = folder.lstat()
        if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.geteuid():
            return
        if time.time() - state.st_mtime < _YOUNG:
            return
        lock = os.open(folder / "lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if os.read(lock, len(_MARK) + 1) == _MARK:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
        finally:
            os.close(lock)
