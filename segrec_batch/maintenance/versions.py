"""Delete files of an index that no retained version needs, and roll back to an older version."""

import datetime as dt
import logging
import re
import time
from collections.abc import Iterator
from dataclasses import replace as copy_with

from segrec_batch.common.errors import IndexStateError, InputError
from segrec_batch.index import log_entries, staging
from segrec_batch.index.files import is_part_file, iter_files_below, make_data_file
from segrec_batch.index.history import history, newest_version
from segrec_batch.index.replacements import read_replacements
from segrec_batch.index.schema import TABLES
from segrec_batch.index.snapshot import (
    COMMIT_SECONDS,
    Snapshot,
    open_snapshot,
    replace,
)
from segrec_batch.index.snapshot_log import SnapshotLog, read_log
from segrec_batch.model.spec import BUNDLE_FILE
from segrec_batch.sources import storage

log = logging.getLogger(__name__)

MIN_RETENTION = dt.timedelta(hours=1)
"""Shortest retention without `force`: a running job publishes its files within this time."""

_BUNDLE = re.compile(rf"([0-9a-f]{{16}})/({BUNDLE_FILE})")
_RETRY_SECONDS = 1.0  # seconds

SizedFile = tuple[str, int]
"""URI and size of a file."""


def vacuum(
    index: str, retention: dt.timedelta, dry_run: bool = False, force: bool = False
) -> list[SizedFile]:
    """Delete files that no snapshot of the retention needs, and return their URIs and sizes.

    Files younger than the retention stay, so running jobs have all files. Files of a rebuild stay
    if it has made progress within the retention; otherwise the rebuild is discarded. Versions from
    before the retention can no longer be opened. deltalake's vacuum does not know which versions of
    a table the snapshots name.

    Only files of the index are deleted: those that a log, a rebuild or a purge has named, parts
    with the index's metadata (`is_part_file`), unfinished files, and bundles of commits. Files of
    other programs stay; a message counts them.

    Raises:
        InputError: The retention is under an hour, without `force`.
        IndexStateError: The newest entry of the log may be missing, without `force`.
    """
    if retention < MIN_RETENTION and not force:
        raise InputError(
            "less than one hour may delete files of a running job; add --force if none runs"
        )
    index = storage.absolute(index)
    newest = read_log(index) if force else _wait_for_commits(index)
    cutoff = dt.datetime.now(dt.UTC) - retention
    files_to_keep, bundles_to_keep = set(), set()
    for state in _iter_retained(index, newest, cutoff):
        files_to_keep |= {
            (f.table, f.path) for table_files in state.files.values() for f in table_files
        }
        bundles_to_keep.add(state.bundle)
    rebuilds = staging.list_rebuilds(index)
    abandoned = {m for m in rebuilds if staging.read_last_staged(index, m) < cutoff}
    for bundle in set(rebuilds) - abandoned:
        files_to_keep |= {(f.table, f.path) for f in staging.read_staged_files(index, bundle)[0]}
        bundles_to_keep.add(bundle)
    names = log_entries.read_names(index)
    unneeded: list[SizedFile] = []
    foreign: list[SizedFile] = []
    for is_own, file in (
        *_iter_data_files(index, files_to_keep, read_named_files(index, names), cutoff),
        *_iter_bundle_files(index, bundles_to_keep, names.bundles | set(rebuilds), cutoff),
    ):
        (unneeded if is_own else foreign).append(file)
    if foreign:
        log.info(
            f"{len(foreign):,} files are not the index's own and stay, e.g. {foreign[0][0]}",
            extra={"event": "strangers", "files": len(foreign)},
        )
    if not dry_run:
        for bundle in abandoned:
            staging.discard(index, bundle)
        storage.delete([uri for uri, _ in unneeded])
    return unneeded


def _wait_for_commits(index: str) -> SnapshotLog:
    """Wait until no commit is in progress; return the log of the newest snapshot.

    Raises IndexStateError if tables stay ahead of the snapshot for longer than a commit takes.
    """
    while (state := read_log(index)).ahead:
        if state.age > COMMIT_SECONDS:
            raise IndexStateError(
                f"{state.describe_problem(index)}; nothing was deleted (--force: no entry is lost)"
            )
        time.sleep(_RETRY_SECONDS)
    return state


def _iter_retained(index: str, newest: SnapshotLog, cutoff: dt.datetime) -> Iterator[SnapshotLog]:
    """Yield the logs of the snapshots that were the newest at some time since `cutoff`.

    An earlier vacuum may have deleted files of some of them. Raises IndexStateError if the log
    lacks an entry.
    """
    yield newest
    version = newest.versions["images"]
    for entry in history(index):
        if entry.version < version:
            raise IndexStateError(
                f"{index}: images/{log_entries.entry_name(version)} is lost: put it back (bucket "
                "versions, backup); until then nothing is deleted"
            )
        yield read_log(index, entry.version)
        if entry.time < cutoff:
            return
        version = entry.version - 1


def read_named_files(
    index: str, names: log_entries.LoggedNames | None = None
) -> set[tuple[str, str]]:
    """Return table and path of all files that a log, a rebuild or a purge has ever named.

    `names` are the names in the logs; None reads them.
    """
    known_names = set((names or log_entries.read_names(index)).files)
    for old, new in read_replacements(index).items():
        known_names |= {old, (new.table, new.path)} if new else {old}
    for bundle in staging.list_rebuilds(index):
        known_names |= staging.read_named_files(index, bundle)
    return known_names


def _iter_data_files(
    index: str,
    files_to_keep: set[tuple[str, str]],
    known_names: set[tuple[str, str]],
    cutoff: dt.datetime,
) -> Iterator[tuple[bool, SizedFile]]:
    """Yield unneeded files in the folders of tables: (belongs to the index, URI, size)."""
    for table in TABLES:
        for path, size, written in iter_files_below(index, table):
            if (table, path) in files_to_keep:
                continue
            is_own = (
                storage.is_draft(path)
                or (table, path) in known_names
                or is_part_file(index, make_data_file(table, path, size))
            )
            if not is_own or written < cutoff.timestamp():
                yield is_own, (storage.join(index, table, path), size)


def _iter_bundle_files(
    index: str, files_to_keep: set[str], known_names: frozenset[str], cutoff: dt.datetime
) -> Iterator[tuple[bool, SizedFile]]:
    """Yield unneeded files in the folder of bundles, like `_iter_data_files`."""
    for path, size, written in iter_files_below(index, "models"):
        bundle, file = path.split("/")[0], (storage.join(index, "models", path), size)
        if bundle not in known_names | files_to_keep or not (
            _BUNDLE.fullmatch(path) or storage.is_draft(path)
        ):
            yield False, file
        elif bundle not in files_to_keep and written < cutoff.timestamp():
            yield True, file


def rollback(index: str, version: int) -> Snapshot:
    """Publish an older version's rows and model as the newest snapshot.

    Raises IndexStateError if the version, or a file of it, no longer exists.
    """
    older = open_snapshot(index, version)
    newest = copy_with(older, versions={**older.versions, "images": newest_version(index)})
    return replace(newest, older, {"segrec": {"operation": "rollback", "to": version}})
