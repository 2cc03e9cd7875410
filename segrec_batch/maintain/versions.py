"""Older versions of an index: which files they need, going back to one."""

import datetime as dt
from collections.abc import Iterator

from segrec_batch import storage
from segrec_batch.errors import IndexStateError, InputError
from segrec_batch.store import staging
from segrec_batch.store.files import DataFile, files_in_place
from segrec_batch.store.index import Snapshot, history, open_snapshot, replace
from segrec_batch.store.schema import TABLES

SHORTEST = dt.timedelta(hours=1)  # a running job's files are published well before that


def vacuum(
    index: str, retention: dt.timedelta, dry_run: bool = False, force: bool = False
) -> list[tuple[str, int]]:
    """Delete files that no snapshot of the retention needs; their URIs and sizes.

    Files younger than the retention stay, so a running job loses none, and files that a rebuild has
    staged stay. Versions from before the retention can no longer be opened. Deltalake's own vacuum
    looks at one table at a time and does not know which versions of it snapshots name.
    Raises InputError for a retention under an hour without `force`.
    """
    if retention < SHORTEST and not force:
        raise InputError(
            "less than one hour may take files from a job that is running: say --force if none is"
        )
    cutoff = dt.datetime.now(dt.UTC) - retention
    snapshots = list(_retained(index, cutoff))
    keep = {(f.table, f.path) for snapshot in snapshots for f in snapshot.all_files}
    models = {snapshot.model_id for snapshot in snapshots}
    for model_id in staging.rebuilds(index):
        keep |= {(f.table, f.path) for f in staging.staged_files(index, model_id)[0]}
        models.add(model_id)
    doomed = [
        (file.uri(index), file.size)
        for table in TABLES
        for file, written in files_in_place(index, table)
        if (file.table, file.path) not in keep and written < cutoff.timestamp()
    ]
    doomed += _unused_models(index, models, cutoff)
    if not dry_run:
        storage.delete([uri for uri, _ in doomed])
    return doomed


def _retained(index: str, cutoff: dt.datetime) -> Iterator[Snapshot]:
    """The snapshots that were the newest one at some time since `cutoff`."""
    yield open_snapshot(index)
    for entry in history(index):
        yield open_snapshot(index, entry.version)
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
    missing = _missing(wanted)
    if missing:
        raise IndexStateError(
            f"version {version} cannot come back: {len(missing)} of its files are gone, e.g. "
            f"{missing[0].uri(index)}; vacuum keeps those of its retention only"
        )
    return replace(newest, wanted, {"segrec": {"operation": "rollback", "to": version}})


def _missing(snapshot: Snapshot) -> list[DataFile]:
    there = {
        (file.table, file.path)
        for table in TABLES
        for file, _ in files_in_place(snapshot.index, table)
    }
    return [file for file in snapshot.all_files if (file.table, file.path) not in there]
