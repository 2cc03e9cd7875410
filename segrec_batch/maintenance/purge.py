"""Deletion requests: remove rows of sources from every retained version and from the disk.

All files of the index are searched, published or not. Parts with such rows are written again
without them; one commit puts them into the newest snapshot, and a table of replacements into older
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

    purged: URIs whose rows were removed.
    unknown: URIs without a row in any file.
    files: number of deleted files.
    version: the newest version afterwards.
    """

    purged: tuple[str, ...]
    unknown: tuple[str, ...]
    files: int
    version: int


Job = tuple[str, list[DataFile], list[str]]


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
    parts = group_by_part(_own_files(index))
    _refuse_if_elsewhere(snapshot, parts)
    with cluster.join():
        jobs: list[Job] = [(index, files, list(ids)) for files in parts.values()]
        hits = {}
        with ProgressMeter("parts searched", len(jobs)) as meter:
            for (_, files, _), held in run_tasks(_held, jobs, cpus=1):
                meter.advance()
                if held:
                    hits[files[0].part] = held
        if not hits:
            raise InputError(
                f"no file of {index} holds a row of {next(iter(uris))!r} or the others"
            )
        replaced = read_replacements(index)  # also those of a purge that stopped while it deleted
        jobs = [
            (index, parts[part], held)
            for part, held in hits.items()
            if not any((f.table, f.path) in replaced for f in parts[part])
        ]
        rewritten = [(job[1], files) for job, files in run_tasks(_rewrite, jobs, cpus=1)]
    purged = {image_id for held in hits.values() for image_id in held}
    live = {(f.table, f.path): f for f in snapshot.all_files}
    remove = [
        live[f.table, f.path] for old, _ in rewritten for f in old if (f.table, f.path) in live
    ]
    if remove:
        add = [
            new
            for old, successors in rewritten
            for file, new in _pairs(old, successors)
            if new and (file.table, file.path) in live
        ]
        info = {"segrec": {"operation": "purge", "sources": len(purged)}}
        snapshot = commit(snapshot, add, remove, info)
    if rewritten:
        write_replacements(index, (pair for old, new in rewritten for pair in _pairs(old, new)))
    if grace_seconds:
        log.info(f"waiting {grace_seconds:g} s for queries on older snapshots (--grace-seconds)")
        time.sleep(grace_seconds)
    doomed = [file.uri(index) for part in hits for file in parts[part]]
    storage.delete(doomed)
    return PurgeReport(
        purged=tuple(uri for i, uri in ids.items() if i in purged),
        unknown=tuple(uri for i, uri in ids.items() if i not in purged),
        files=len(doomed),
        version=snapshot.version,
    )


def _own_files(index: str) -> list[DataFile]:
    """Return the files of the index in its folders; log the number of files of other programs."""
    known = read_named_files(index)
    own: list[DataFile] = []
    foreign: list[DataFile] = []
    for table in TABLES:
        for file, _ in iter_parquet_files(index, table):
            is_own = (table, file.path) in known or is_part_file(index, file)
            (own if is_own else foreign).append(file)
    if foreign:
        log.warning(
            f"{len(foreign):,} files are not the index's own and were not searched, e.g. "
            f"{foreign[0].uri(index)}"
        )
    return own


def _refuse_if_elsewhere(snapshot: Snapshot, parts: Mapping[str, Sequence[DataFile]]) -> None:
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
        with suppress(FileNotFoundError):  # its process has finished it
            content = storage.read_bytes(uri)
            if any(i.encode() in content for i in ids):
                storage.delete([uri])


def _held(job: Job) -> list[str]:
    """Return the image_ids of a job that have rows in the files of its part."""
    index, files, ids = job
    wanted = pa.array(ids, pa.string())
    held: set[str] = set()
    for file in files:
        column = read_column(index, file, "image_id")
        held.update(pc.filter(column, pc.is_in(column, wanted)).to_pylist())
    return sorted(held)


def _rewrite(job: Job) -> list[DataFile]:
    index, files, ids = job
    return rewrite_part(index, files, ids, ids)


def _pairs(
    old: Sequence[DataFile], new: Sequence[DataFile]
) -> list[tuple[DataFile, DataFile | None]]:
    by_place = {(file.table, file.partition): file for file in new}
    return [(file, by_place.get((file.table, file.partition))) for file in old]
