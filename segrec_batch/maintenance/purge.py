"""Deletion requests: rows of given sources leave every retained version, and the disk.

Every file of the index is looked at, published or not, of any age. Parts that hold such rows are
written again without them; the newest snapshot gets them in one commit, older versions by a table
of replacements; then the old files are deleted. After a crash in between, run it again. Files that
are not the index's own (see `versions.vacuum`) are neither searched nor changed; a message says so.
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
from segrec_batch.distributed.tasks import each
from segrec_batch.index import staging
from segrec_batch.index.column_values import image_id
from segrec_batch.index.files import (
    DataFile,
    by_part,
    files_in_place,
    is_part_file,
    unfinished_files,
)
from segrec_batch.index.parts import read_column, rewrite_part
from segrec_batch.index.replacements import read_replacements, write_replacements
from segrec_batch.index.schema import TABLES
from segrec_batch.index.snapshot import Snapshot, commit, open_snapshot
from segrec_batch.maintenance.versions import named_files
from segrec_batch.sources import storage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Purged:
    """What a purge did: URIs found and not found, files deleted, the version that is newest now."""

    found: tuple[str, ...]
    unknown: tuple[str, ...]
    files: int
    version: int


Job = tuple[str, list[DataFile], list[str]]


def purge(index: str, uris: Collection[str], grace_seconds: float) -> Purged:
    """Remove all rows of sources. Old files stay for `grace_seconds`, for queries that are running.

    Raises InputError if no file holds any of the URIs or a rebuild is not finished, IndexStateError
    if a job publishes meanwhile, or files of the newest snapshot are not in the index's folder.
    """
    index = storage.absolute(index)
    if staging.rebuilds(index):
        raise InputError(f"{index}: a rebuild is not finished; finish it, then purge")
    ids = {image_id(uri): uri for uri in uris}
    _delete_unfinished(index, ids)
    snapshot = open_snapshot(index)
    parts = by_part(_own_files(index))
    _refuse_if_elsewhere(snapshot, parts)
    with cluster.joined():
        jobs: list[Job] = [(index, files, list(ids)) for files in parts.values()]
        hits = {}
        with ProgressMeter("parts searched", len(jobs)) as meter:
            for (_, files, _), found in each(_held, jobs, cpus=1):
                meter.advance()
                if found:
                    hits[files[0].part] = found
        if not hits:
            raise InputError(
                f"no file of {index} holds a row of {next(iter(uris))!r} or the others"
            )
        replaced = read_replacements(index)  # also by a run that was stopped while it deleted
        jobs = [
            (index, parts[part], found)
            for part, found in hits.items()
            if not any((f.table, f.path) in replaced for f in parts[part])
        ]
        rewritten = [(job[1], left) for job, left in each(_rewrite, jobs, cpus=1)]
    seen = {i for found in hits.values() for i in found}
    live = {(f.table, f.path): f for f in snapshot.all_files}
    remove = [
        live[f.table, f.path] for old, _ in rewritten for f in old if (f.table, f.path) in live
    ]
    if remove:
        add = [
            new
            for old, made in rewritten
            for file, new in _pairs(old, made)
            if new and (file.table, file.path) in live
        ]
        info = {"segrec": {"operation": "purge", "sources": len(seen)}}
        snapshot = commit(snapshot, add, remove, info)
    if rewritten:
        write_replacements(index, (pair for old, new in rewritten for pair in _pairs(old, new)))
    if grace_seconds:
        log.info(f"waiting {grace_seconds:g} s for queries on older snapshots (--grace-seconds)")
        time.sleep(grace_seconds)
    doomed = [file.uri(index) for part in hits for file in parts[part]]
    storage.delete(doomed)
    return Purged(
        found=tuple(uri for i, uri in ids.items() if i in seen),
        unknown=tuple(uri for i, uri in ids.items() if i not in seen),
        files=len(doomed),
        version=snapshot.version,
    )


def _own_files(index: str) -> list[DataFile]:
    """Return the files in place that are the index's own; say how many others there are."""
    known = named_files(index)
    own: list[DataFile] = []
    strangers: list[DataFile] = []
    for table in TABLES:
        for file, _ in files_in_place(index, table):
            is_ours = (table, file.path) in known or is_part_file(index, file)
            (own if is_ours else strangers).append(file)
    if strangers:
        log.warning(
            f"{len(strangers):,} files are not the index's own and were not searched, e.g. "
            f"{strangers[0].uri(index)}"
        )
    return own


def _refuse_if_elsewhere(snapshot: Snapshot, parts: Mapping[str, Sequence[DataFile]]) -> None:
    there = {(f.table, f.path) for files in parts.values() for f in files}
    missing = [f for f in snapshot.all_files if (f.table, f.path) not in there]
    if missing:
        raise IndexStateError(
            f"{missing[0].uri(snapshot.index)} is gone, or lies behind a symbolic link, where "
            "nothing is purged: put the file itself there, then purge"
        )


def _delete_unfinished(index: str, ids: Iterable[str]) -> None:
    """What killed processes left of files, if it holds rows; image_id is the first column."""
    for uri, *_ in unfinished_files(index):
        with suppress(FileNotFoundError):  # it is finished by now
            content = storage.read_bytes(uri)
            if any(i.encode() in content for i in ids):
                storage.delete([uri])


def _held(job: Job) -> list[str]:
    """Which of some image_ids the files of a part hold."""
    index, files, ids = job
    wanted = pa.array(ids, pa.string())
    found: set[str] = set()
    for file in files:
        column = read_column(index, file, "image_id")
        found.update(pc.filter(column, pc.is_in(column, wanted)).to_pylist())
    return sorted(found)


def _rewrite(job: Job) -> list[DataFile]:
    index, files, ids = job
    return rewrite_part(index, files, ids, ids)


def _pairs(
    old: Sequence[DataFile], new: Sequence[DataFile]
) -> list[tuple[DataFile, DataFile | None]]:
    by_place = {(file.table, file.partition): file for file in new}
    return [(file, by_place.get((file.table, file.partition))) for file in old]
