"""Temporary folders that a killed process does not leave behind for good.

Such a folder is deleted by a later process only if it proves to be one: it is a folder, not a link,
of this user, its name has the form that `scratch_folder` gives, and in it lies a lock file with the
text that `scratch_folder` writes, whose lock nobody holds.
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

_YOUNG = 60.0  # seconds; such a folder may not be locked yet
_SUFFIX = ".segrec"
_RANDOM = r"[a-z0-9_]{8}"  # what mkdtemp puts in between
_MARK = b"A temporary folder of segrec_batch; it is deleted with all that is in it.\n"


@contextmanager
def scratch_folder(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """Make a temporary folder for the time of the block; delete what dead processes left of its
    kind.

    Args:
        prefix: what its name begins with; folders of one prefix are of one kind.
        parent: the folder that it is made in (default: that for temporary files).
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
    """Delete a folder whose lock nobody holds: the kernel gives up the locks of a dead process."""
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
