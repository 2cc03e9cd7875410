"""Descriptors that were switched on after images were indexed: their vectors, and nothing else.

Images that lack vectors move to a new part with them: images are read once more if a descriptor
needs them, but the model is not run. An image that cannot be read any more, or is not the one that
was indexed, keeps its row; in place of a vector it gets the reason.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from segrec_batch.descriptors.inputs import (
    READ,
    UNDEFINED,
    Row,
    is_outside,
    is_unread,
    read_pixels,
    stored_rows,
)
from segrec_batch.distributed.tasks import each
from segrec_batch.index.files import DataFile, by_part
from segrec_batch.index.parts import Rows, read_column, read_some, write_part
from segrec_batch.index.snapshot import Snapshot
from segrec_batch.model.spec import ModelSpec
from segrec_batch.pipeline.rows import descriptor_rows
from segrec_batch.search.database import open_database, reading
from segrec_batch.search.sql.views import PART, select
from segrec_batch.sources.roots import ImageRoots

if TYPE_CHECKING:
    from segrec_batch.descriptors.runtime import Loaded  # torch

_STEP = 4096  # images of a task, at most: what it holds in memory, and what a crash can lose
_SLICE = 128  # images whose pixels are in memory at once


@dataclass(frozen=True)
class Job:
    """Images `start` to `stop` of a part, in the order of its file, and with what to describe them.

    precision: of networks. retry: whether those that were read and have no vector are tried again,
    too. roots: below which images are read.
    """

    index: str
    files: list[DataFile]
    start: int
    bundle: str
    spec: ModelSpec
    device: str
    precision: str
    run_id: str
    retry: bool
    roots: ImageRoots

    @property
    def part(self) -> str:
        """Where the images are now."""
        return self.files[0].part


@dataclass(frozen=True)
class BackfillResult:
    """files: a new part. image_ids: the images in it, which leave the old one. vectors: how many
    there are that were not there before. read: how many images were to be read; unread: of these,
    how many could not be; outside: how many were not tried, since they lie below no root.
    """

    files: list[DataFile]
    image_ids: list[str]
    vectors: int
    read: int = 0
    unread: int = 0
    outside: int = 0


def missing_vectors(snapshot: Snapshot) -> dict[str, int]:
    """Return the number of missing vectors of each part that lacks any, from the log."""
    missing = {}
    for part, files in by_part(snapshot.all_files).items():
        images = sum(f.rows for f in files if f.table == "images")
        vectors = sum(f.rows for f in files if f.table == "descriptors")
        if wanted := images * len(snapshot.spec.descriptors) - vectors:
            missing[part] = wanted
    return missing


def unread_parts(snapshot: Snapshot) -> set[str]:
    """Return the parts with images that could not be read when they were to be described."""
    known = {d.id for d in snapshot.spec.descriptors}
    files = tuple(f for f in snapshot.files["descriptors"] if f.partition in known)
    scan = select(
        replace(snapshot, files={**snapshot.files, "descriptors": files}), "descriptors", PART
    )
    if scan is None:
        return set()
    sql = f"SELECT DISTINCT part, reason FROM ({scan}) WHERE starts_with(reason, '{READ}')"  # noqa: S608
    with reading(snapshot), open_database(":memory:", [snapshot]) as connection:
        rows = connection.execute(sql).fetchall()
    return {part for part, reason in rows if is_unread(reason)}


def backfill_parts(
    snapshot: Snapshot,
    parts: Sequence[str],
    device: str,
    precision: str,
    run_id: str,
    retry: bool,
    roots: ImageRoots,
) -> Iterator[tuple[str, BackfillResult]]:
    """Describe what images of some parts lack, on the cluster; the part, and what was added."""
    files = by_part(f for f in snapshot.all_files if f.table != "failures")
    shared = snapshot.model_uri, snapshot.spec, device, precision, run_id, retry, roots
    jobs = (
        Job(snapshot.index, files[part], start, *shared)
        for part in parts
        for start in range(0, sum(f.rows for f in files[part] if f.table == "images"), _STEP)
    )
    gpus = 1 if device == "cuda" else 0
    for job, added in each(backfill_images, jobs, cpus=1, gpus=gpus):
        yield job.part, added


def backfill_images(job: Job) -> BackfillResult:
    """Write the images that lack vectors, with them, as a new part."""
    from segrec_batch.descriptors.runtime import load

    (images,) = (f for f in job.files if f.table == "images")
    ids: list[str] = read_column(job.index, images, "image_id").to_pylist()
    ids = ids[job.start : job.start + _STEP]
    have = {d.id: _described(job, d.id) for d in job.spec.descriptors}
    ids = [i for i in ids if not all(i in done.final for done in have.values())]
    if not ids:
        return BackfillResult([], [], 0)
    old = {(f.table, f.partition): read_some(job.index, f, ids) for f in job.files}
    moved = old["images", None]
    regions = {str(name): rows for (table, name), rows in old.items() if table == "regions"}
    names = tuple(d.name for d in job.spec.descriptors if not have[d.id].final.issuperset(ids))
    loaded = load(job.bundle, names, job.device, job.precision)
    fresh: list[Rows] = []
    leaving: list[str] = []  # their old part
    read = unread = outside = 0
    for start in range(0, moved.num_rows, _SLICE):
        rows = stored_rows(moved.slice(start, _SLICE), regions, job.spec)
        read += _describe(rows, loaded, have, job)
        outside += sum(_is_outside(row) for row in rows)
        unread += sum(_is_unread(row) and not _is_outside(row) for row in rows)
        # what has a row for each descriptor and is no better off stays where it is
        better = [
            row
            for row in rows
            if not all(row["image_id"] in done.there for done in have.values())
            or not all(is_unread(entry["reason"]) for entry in row["described"])
        ]
        leaving += [row["image_id"] for row in better]
        fresh += descriptor_rows(better)
    contents: dict[tuple[str, str | None], list[pa.Table]] = {}
    for (table, name), rows_of_table in old.items():
        kept = set(leaving)
        if table == "descriptors":
            kept &= have[name].final if name in have else set()
        kept_rows = pc.is_in(rows_of_table["image_id"], pa.array(kept, pa.string()))
        contents[table, name] = [rows_of_table.filter(kept_rows)]
    for table, name, found in fresh:
        contents.setdefault((table, name), []).append(found)
    files = write_part(job.index, ((*key, pa.concat_tables(c)) for key, c in contents.items()))
    vectors = sum(found.num_rows for _, _, found in fresh)
    return BackfillResult(files, leaving, vectors, read, unread, outside)


@dataclass(frozen=True)
class KnownRows:
    """image_ids of a part that have rows of a descriptor: all of them, and those that stay."""

    there: set[str]
    final: set[str]


def _is_outside(row: Row) -> bool:
    return any(is_outside(entry["reason"]) for entry in row["described"])


def _is_unread(row: Row) -> bool:
    return any(is_unread(entry["reason"]) for entry in row["described"])


def _described(job: Job, descriptor: str) -> KnownRows:
    """The images of a part that have rows of a descriptor."""
    found = KnownRows(set(), set())
    for file in job.files:
        if file.table == "descriptors" and file.partition == descriptor:
            ids, reasons = (read_column(job.index, file, n) for n in ("image_id", "reason"))
            for image_id, reason in zip(ids.to_pylist(), reasons.to_pylist(), strict=True):
                found.there.add(image_id)
                again = reason not in (None, UNDEFINED) if job.retry else is_unread(reason)
                if not again:
                    found.final.add(image_id)
    return found


def _describe(
    rows: Sequence[Row], loaded: "Sequence[Loaded]", have: Mapping[str, KnownRows], job: Job
) -> int:
    """Add to `described` of rows what they lack; how many images were to be read for that."""
    for row in rows:
        row.update(shape=None, reason=None, described=[], run_id=job.run_id)
    wanted = [[row for row in rows if row["image_id"] not in have[d.id].final] for d in loaded]
    seen = {
        row["image_id"]: row
        for descriptor, lacking in zip(loaded, wanted, strict=True)
        for row in lacking
        if descriptor.descriptor.reads_pixels
    }
    read_pixels(list(seen.values()), job.spec.shapes, job.roots)
    for descriptor, lacking in zip(loaded, wanted, strict=True):
        descriptor(lacking)
    return len(seen)
