"""Older versions of an index: which files they need, going back to one."""

import datetime as dt
from collections.abc import Iterator

from segrec_batch import storage
from segrec_batch.errors import InputError
from segrec_batch.store import staging
from segrec_batch.store.files import files_in_place, unfinished_files
from segrec_batch.store.index import Files, Snapshot, history, open_snapshot, read_log, replace
from segrec_batch.store.schema import TABLES

SHORTEST = dt.timedelta(hours=1)  # a running job's files are published well before that


def vacuum(
    index: str, retention: dt.timedelta, dry_run: bool = False, force: bool = False
) -> list[tuple[str, int]]:
    """Delete files that no snapshot of the retention needs; their URIs and sizes.

    Files younger than the retention stay, so a running job loses none, and so do files of a rebuild
    that has gone on within it; one that has not is given up. Versions from before the retention can
    no longer be opened. Deltalake's own vacuum looks at one table at a time and does not know which
    versions of it snapshots name.
    Raises InputError for a retention under an hour without `force`.
    """
    if retention < SHORTEST and not force:
        raise InputError(
            "less than one hour may take files from a job that is running: say --force if none is"
        )
    cutoff = dt.datetime.now(dt.UTC) - retention
    keep, models = set(), set()
    for files, bundle in _retained(index, cutoff):
        keep |= {(f.table, f.path) for members in files.values() for f in members}
        models.add(bundle)
    rebuilds = staging.rebuilds(index)
    abandoned = {m for m in rebuilds if staging.last_staged(index, m) < cutoff}
    for bundle in set(rebuilds) - abandoned:
        keep |= {(f.table, f.path) for f in staging.staged_files(index, bundle)[0]}
        models.add(bundle)
    doomed = [
        (file.uri(index), file.size)
        for table in TABLES
        for file, written in files_in_place(index, table)
        if (file.table, file.path) not in keep and written < cutoff.timestamp()
    ]
    unfinished = unfinished_files(index)
    doomed += [(uri, size) for uri, size, written in unfinished if written < cutoff.timestamp()]
    doomed += _unused_models(index, models, cutoff)
    if not dry_run:
        for bundle in abandoned:
            staging.discard(index, bundle)
        storage.delete([uri for uri, _ in doomed])
    return doomed


def _retained(index: str, cutoff: dt.datetime) -> Iterator[tuple[Files, str]]:
    """Files and bundle of the snapshots that were the newest one at some time since `cutoff`.

    An earlier vacuum of a shorter retention may have taken some of them.
    """
    yield read_log(index)[1:]
    for entry in history(index):
        yield read_log(index, entry.version)[1:]
        if entry.time < cutoff:
            return


def _unused_models(index: str, used: set[str], cutoff: dt.datetime) -> list[tuple[str, int]]:
    folder = storage.join(index, "models")
    return [
        (uri, size)
        for uri, size, written in storage.find_files(folder)
        if uri.removeprefix(f"{folder}/").split("/")[0] not in used and written < cutoff.timestamp()
    ]


def rollback(index: str, version: int) -> Snapshot:
    """Publish an older version's rows and model as the newest snapshot.

    Raises IndexStateError if the version, or a file of it, is not there any more.
    """
    newest, wanted = open_snapshot(index), open_snapshot(index, version)
    return replace(newest, wanted, {"segrec": {"operation": "rollback", "to": version}})
