"""Older versions of an index: which files they need, going back to one."""

import datetime as dt
import logging
import re
import time
from collections.abc import Iterator
from dataclasses import replace as replaced

from segrec_batch.common.errors import IndexStateError, InputError
from segrec_batch.index import log_entries, staging
from segrec_batch.index.files import file_at, files_below, is_part_file
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

SHORTEST = dt.timedelta(hours=1)  # a running job's files are published well before that

_BUNDLE = re.compile(rf"([0-9a-f]{{16}})/({BUNDLE_FILE})")
_RETRY = 1.0  # seconds

Found = tuple[str, int]  # URI and size of a file


def vacuum(
    index: str, retention: dt.timedelta, dry_run: bool = False, force: bool = False
) -> list[Found]:
    """Delete files that no snapshot of the retention needs; their URIs and sizes.

    Files younger than the retention stay, so a running job loses none, and so do files of a rebuild
    that has gone on within it; one that has not is given up. Versions from before the retention can
    no longer be opened. Deltalake's own vacuum looks at one table at a time and does not know which
    versions of it snapshots name.

    Only files of the index are deleted: such as a log, a rebuild or a purge has named, parts that
    say so of themselves (`is_part_file`), what was left of unfinished ones, and the bundles of
    commits. Others stay, and a message says how many there are.

    Raises InputError for a retention under an hour, and IndexStateError if the newest entry of the
    log may be lost, both without `force`.
    """
    if retention < SHORTEST and not force:
        raise InputError(
            "less than one hour may take files from a job that is running: say --force if none is"
        )
    index = storage.absolute(index)
    newest = read_log(index) if force else _settled(index)
    cutoff = dt.datetime.now(dt.UTC) - retention
    keep, models = set(), set()
    for found in _retained(index, newest, cutoff):
        keep |= {(f.table, f.path) for members in found.files.values() for f in members}
        models.add(found.bundle)
    rebuilds = staging.rebuilds(index)
    abandoned = {m for m in rebuilds if staging.last_staged(index, m) < cutoff}
    for bundle in set(rebuilds) - abandoned:
        keep |= {(f.table, f.path) for f in staging.staged_files(index, bundle)[0]}
        models.add(bundle)
    names = log_entries.names(index)
    doomed: list[Found] = []
    strangers: list[Found] = []
    for is_ours, file in (
        *_data_files(index, keep, named_files(index, names), cutoff),
        *_bundle_files(index, models, names.bundles | set(rebuilds), cutoff),
    ):
        (doomed if is_ours else strangers).append(file)
    if strangers:
        log.info(
            f"{len(strangers):,} files are not the index's own and stay, e.g. {strangers[0][0]}",
            extra={"event": "strangers", "files": len(strangers)},
        )
    if not dry_run:
        for bundle in abandoned:
            staging.discard(index, bundle)
        storage.delete([uri for uri, _ in doomed])
    return doomed


def _settled(index: str) -> SnapshotLog:
    """Return the newest snapshot's log, once no commit is going on.

    Raises IndexStateError if tables stay ahead of it.
    """
    while (found := read_log(index)).ahead:
        if found.age > COMMIT_SECONDS:
            raise IndexStateError(
                f"{found.problem(index)}; nothing was deleted (--force: no entry is lost)"
            )
        time.sleep(_RETRY)
    return found


def _retained(index: str, newest: SnapshotLog, cutoff: dt.datetime) -> Iterator[SnapshotLog]:
    """Yield the logs of the snapshots that were the newest one at some time since `cutoff`.

    An earlier vacuum of a shorter retention may have taken some of them. Raises IndexStateError if
    the log lacks the entry of one.
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


def named_files(index: str, names: log_entries.Names | None = None) -> set[tuple[str, str]]:
    """Return table and path of all files that a log, a rebuild or a purge has ever named.

    names: what the logs name, if they have been read.
    """
    known = set((names or log_entries.names(index)).files)
    for old, new in read_replacements(index).items():
        known |= {old, (new.table, new.path)} if new else {old}
    for bundle in staging.rebuilds(index):
        known |= staging.named_files(index, bundle)
    return known


def _data_files(
    index: str, keep: set[tuple[str, str]], known: set[tuple[str, str]], cutoff: dt.datetime
) -> Iterator[tuple[bool, Found]]:
    """Yield whether it is ours, URI and size of what lies in tables' folders, needed by nothing."""
    for table in TABLES:
        for path, size, written in files_below(index, table):
            if (table, path) in keep:
                continue
            is_ours = (
                storage.is_draft(path)
                or (table, path) in known
                or is_part_file(index, file_at(table, path, size))
            )
            if not is_ours or written < cutoff.timestamp():
                yield is_ours, (storage.join(index, table, path), size)


def _bundle_files(
    index: str, keep: set[str], known: frozenset[str], cutoff: dt.datetime
) -> Iterator[tuple[bool, Found]]:
    """The same of the folder of bundles."""
    for path, size, written in files_below(index, "models"):
        bundle, file = path.split("/")[0], (storage.join(index, "models", path), size)
        if bundle not in known | keep or not (_BUNDLE.fullmatch(path) or storage.is_draft(path)):
            yield False, file
        elif bundle not in keep and written < cutoff.timestamp():
            yield True, file


def rollback(index: str, version: int) -> Snapshot:
    """Publish an older version's rows and model as the newest snapshot.

    Raises IndexStateError if the version, or a file of it, is not there any more.
    """
    wanted = open_snapshot(index, version)
    newest = replaced(wanted, versions={**wanted.versions, "images": newest_version(index)})
    return replace(newest, wanted, {"segrec": {"operation": "rollback", "to": version}})
