"""Purge an index: remove rows of sources from every retained version and from the disk.

All files of the index are searched, published or not. Parts with such rows are rewritten without
them. One commit replaces them in the newest snapshot, and a table of replacements in older
versions; then the old files are deleted. After a crash, run the purge again. Files of other
programs (see `versions.vacuum`) are neither searched nor changed; a message counts them.
"""

import logging
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from segrec_batch.common.console import ProgressMeter
from segrec_batch.common.errors import IndexStateError, InputError
from segrec_batch.distributed import cluster
from segrec_batch.distributed.tasks import run_tasks
from segrec_batch.index import staging
from segrec_batch.index.column_values import image_id
from segrec_batch.index.files import (
    DataFile,
    group_by_part,
    is_part_file,
    iter_parquet_files,
    iter_unfinished_files,
)
from segrec_batch.index.parts import read_column, rewrite_part
from segrec_batch.index.replacements import read_replacements, write_replacements
from segrec_batch.index.schema import TABLES
from segrec_batch.index.snapshot import Snapshot, commit, open_snapshot
from segrec_batch.maintenance.versions import read_named_files
from segrec_batch.sources import storage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PurgeReport:
    """Result of a purge.

    Attributes:
        purged: URIs whose rows were removed.
        unknown: URIs without a row in any file.
        files: number of deleted files.
        version: the newest version after the purge.
    """

    purged: tuple[str, ...]
    unknown: tuple[str, ...]
    files: int
    version: int


PurgeTask = tuple[str, list[DataFile], list[str]]


def purge(index: str, uris: Collection[str], grace_seconds: float) -> PurgeReport:
    """Remove all rows of sources; old files stay for `grace_seconds`, for running queries.

    Raises:
        InputError: No file has rows of the URIs, or a rebuild is unfinished.
        IndexStateError: Another job published meanwhile, or files of the newest snapshot are not in
            the folder of the index.
    """
    index = storage.absolute(index)
    if staging.list_rebuilds(index):
        raise InputError(f"{index}: a rebuild is not finished; finish it, then purge")
    ids = {image_id(uri): uri for uri in uris}
    _delete_unfinished(index, ids)
    snapshot = open_snapshot(index)
    parts = group_by_part(_list_own_files(index))
    _check_in_folder(snapshot, parts)
    with cluster.join():
        tasks: list[PurgeTask] = [(index, files, list(ids)) for files in parts.values()]
        ids_by_part = {}
        with ProgressMeter("parts searched", len(tasks)) as meter:
            for (_, files, _), found_ids in run_tasks(_find_rows, tasks, cpus=1):
                meter.advance()
                if found_ids:
                    ids_by_part[files[0].part] = found_ids
        if not ids_by_part:
            raise InputError(
                f"no file of {index} has a row of any of the URIs, e.g. {next(iter(uris))!r}"
            )
        # includes those of a purge that was interrupted before it deleted the old files
        replaced = read_replacements(index)
        tasks = [
            (index, parts[part], found_ids)
            for part, found_ids in ids_by_part.items()
            if not any((f.table, f.path) in replaced for f in parts[part])
        ]
        rewritten = [(task[1], files) for task, files in run_tasks(_rewrite_part, tasks, cpus=1)]
    purged = {image_id for found_ids in ids_by_part.values() for image_id in found_ids}
    published = {(f.table, f.path): f for f in snapshot.all_files}
    remove = [
        published[f.table, f.path]
        for old, _ in rewritten
        for f in old
        if (f.table, f.path) in published
    ]
    if remove:
        add = [
            new
            for old, successors in rewritten
            for file, new in _pair_files(old, successors)
            if new and (file.table, file.path) in published
        ]
        info = {"segrec": {"operation": "purge", "sources": len(purged)}}
        snapshot = commit(snapshot, add, remove, info)
    if rewritten:
        write_replacements(
            index, (pair for old, new in rewritten for pair in _pair_files(old, new))
        )
    if grace_seconds:
        log.info(f"waiting {grace_seconds:g} s for queries on older snapshots (--grace-seconds)")
        time.sleep(grace_seconds)
    uris_to_delete = [file.uri(index) for part in ids_by_part for file in parts[part]]
    storage.delete(uris_to_delete)
    return PurgeReport(
        purged=tuple(uri for i, uri in ids.items() if i in purged),
        unknown=tuple(uri for i, uri in ids.items() if i not in purged),
        files=len(uris_to_delete),
        version=snapshot.version,
    )


def _list_own_files(index: str) -> list[DataFile]:
    """Return the files of the index in its folders; log the number of files of other programs."""
    known = read_named_files(index)
    own_files: list[DataFile] = []
    foreign: list[DataFile] = []
    for table in TABLES:
        for file, _ in iter_parquet_files(index, table):
            is_own = (table, file.path) in known or is_part_file(index, file)
            (own_files if is_own else foreign).append(file)
    if foreign:
        log.warning(
            f"{len(foreign):,} files are not the index's own and were not searched, e.g. "
            f"{foreign[0].uri(index)}"
        )
    return own_files


def _check_in_folder(snapshot: Snapshot, parts: Mapping[str, Sequence[DataFile]]) -> None:
    present = {(f.table, f.path) for files in parts.values() for f in files}
    missing = [f for f in snapshot.all_files if (f.table, f.path) not in present]
    if missing:
        raise IndexStateError(
            f"{missing[0].uri(snapshot.index)} is gone, or lies behind a symbolic link, where "
            "nothing is purged: put the file itself there, then purge"
        )


def _delete_unfinished(index: str, ids: Iterable[str]) -> None:
    """Delete unfinished files of killed processes that hold rows of the images."""
    for uri, *_ in iter_unfinished_files(index):
        with suppress(FileNotFoundError):  # its process has completed and renamed it
            content = storage.read_bytes(uri)
            if any(i.encode() in content for i in ids):
                storage.delete([uri])


def _find_rows(task: PurgeTask) -> list[str]:
    """Return those `image_id`s of a task that have rows in the files of its part."""
    index, files, ids = task
    searched = pa.array(ids, pa.string())
    found_ids: set[str] = set()
    for file in files:
        column = read_column(index, file, "image_id")
        found_ids.update(pc.filter(column, pc.is_in(column, searched)).to_pylist())
    return sorted(found_ids)


def _rewrite_part(task: PurgeTask) -> list[DataFile]:
    index, files, ids = task
    return rewrite_part(index, files, ids, ids)


def _pair_files(
    old: Sequence[DataFile], new: Sequence[DataFile]
) -> list[tuple[DataFile, DataFile | None]]:
    by_partition = {(file.table, file.partition): file for file in new}
    return [(file, by_partition.get((file.table, file.partition))) for file in old]
