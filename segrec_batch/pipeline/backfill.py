"""Backfill: vectors of descriptors that were switched on after images were indexed.

Images that lack vectors move to a new part with their vectors. Images are read again if a
descriptor reads pixels, but the model does not run. An image that cannot be read, or has changed,
keeps its row and gets a reason in place of a vector.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from segrec_batch.descriptors.inputs import (
    READ,
    UNDEFINED,
    DescriptorVector,
    StoredImage,
    is_outside,
    is_unread,
    read_pixels,
    stored_images,
)
from segrec_batch.distributed.tasks import run_tasks
from segrec_batch.index.files import DataFile, by_part
from segrec_batch.index.parts import Rows, read_column, read_some, write_part
from segrec_batch.index.snapshot import Snapshot
from segrec_batch.model.spec import ModelSpec
from segrec_batch.pipeline.rows import descriptor_rows
from segrec_batch.search.database import open_database, reading
from segrec_batch.search.sql.views import PART, select
from segrec_batch.sources.roots import ImageRoots

if TYPE_CHECKING:
    from segrec_batch.descriptors.runtime import LoadedDescriptor  # torch

_STEP = 4096  # maximum images of a task: bounds its memory and the loss by a crash
_SLICE = 128  # images with pixels in memory


@dataclass(frozen=True)
class Job:
    """A task: up to `_STEP` images of a part from `start` on, in the order of its file.

    Attributes:
        precision: arithmetic of networks.
        retry: try images again that were read and have no vector.
        roots: images below them may be read.
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
        """Part of the images."""
        return self.files[0].part


@dataclass(frozen=True)
class BackfillResult:
    """Result of a task.

    Attributes:
        files: of the new part.
        image_ids: images in it, which leave the old part.
        vectors: number of new rows of `descriptors`.
        read: number of images to read; `unread` of them could not be read.
        outside: number of images that lie below no root and were not read.
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
        if count := images * len(snapshot.spec.descriptors) - vectors:
            missing[part] = count
    return missing


def unread_parts(snapshot: Snapshot) -> set[str]:
    """Return the parts with images that the last backfill could not read."""
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
    """Compute missing vectors of parts on the cluster; yield each part with its result."""
    files = by_part(f for f in snapshot.all_files if f.table != "failures")
    shared = snapshot.model_uri, snapshot.spec, device, precision, run_id, retry, roots
    jobs = (
        Job(snapshot.index, files[part], start, *shared)
        for part in parts
        for start in range(0, sum(f.rows for f in files[part] if f.table == "images"), _STEP)
    )
    gpus = 1 if device == "cuda" else 0
    for job, result in run_tasks(backfill_images, jobs, cpus=1, gpus=gpus):
        yield job.part, result


def backfill_images(job: Job) -> BackfillResult:
    """Write the images that lack vectors, with all vectors, as a new part."""
    from segrec_batch.descriptors.runtime import load

    (images,) = (f for f in job.files if f.table == "images")
    ids: list[str] = read_column(job.index, images, "image_id").to_pylist()
    ids = ids[job.start : job.start + _STEP]
    known = {d.id: _known_rows(job, d.id) for d in job.spec.descriptors}
    ids = [i for i in ids if not all(i in rows.final for rows in known.values())]
    if not ids:
        return BackfillResult([], [], 0)
    old = {(f.table, f.partition): read_some(job.index, f, ids) for f in job.files}
    regions = {str(name): rows for (table, name), rows in old.items() if table == "regions"}
    names = tuple(d.name for d in job.spec.descriptors if not known[d.id].final.issuperset(ids))
    loaded = load(job.bundle, names, job.device, job.precision)
    fresh: list[Rows] = []
    moved: list[str] = []  # ids of the images that leave their part
    read = unread = outside = 0
    for start in range(0, old["images", None].num_rows, _SLICE):
        rows = old["images", None].slice(start, _SLICE)
        stored = stored_images(rows, regions, job.spec)
        vectors, tried = _describe(stored, loaded, known, job)
        read += tried
        outside += sum(any(is_outside(v.reason) for v in of_image) for of_image in vectors)
        unread += sum(
            any(is_unread(v.reason) for v in of_image)
            and not any(is_outside(v.reason) for v in of_image)
            for of_image in vectors
        )
        # an image that has a row for each descriptor and gains no vector stays in its part
        better = [
            i
            for i, image in enumerate(stored)
            if not all(image.image_id in rows_.present for rows_ in known.values())
            or not all(is_unread(v.reason) for v in vectors[i])
        ]
        moved += [stored[i].image_id for i in better]
        fresh += descriptor_rows(
            _with_run_id(rows.take(pa.array(better, pa.int64())), job.run_id),
            [vectors[i] for i in better],
        )
    contents: dict[tuple[str, str | None], list[pa.Table]] = {}
    for (table, name), rows_of_table in old.items():
        stays = set(moved)
        if table == "descriptors":
            stays &= known[name].final if name in known else set()
        selected = pc.is_in(rows_of_table["image_id"], pa.array(stays, pa.string()))
        contents[table, name] = [rows_of_table.filter(selected)]
    for table, name, content in fresh:
        contents.setdefault((table, name), []).append(content)
    files = write_part(job.index, ((*key, pa.concat_tables(c)) for key, c in contents.items()))
    count = sum(content.num_rows for _, _, content in fresh)
    return BackfillResult(files, moved, count, read, unread, outside)


def _with_run_id(images: pa.Table, run_id: str) -> pa.Table:
    column = images.schema.get_field_index("run_id")
    values = pa.array([run_id] * images.num_rows, pa.string())
    return images.set_column(column, images.schema.field(column), values)


@dataclass(frozen=True)
class KnownRows:
    """Ids of the images of a part that have a row of a descriptor.

    Attributes:
        present: all of them.
        final: those whose row stays.
    """

    present: set[str]
    final: set[str]


def _known_rows(job: Job, descriptor: str) -> KnownRows:
    known = KnownRows(set(), set())
    for file in job.files:
        if file.table == "descriptors" and file.partition == descriptor:
            ids, reasons = (read_column(job.index, file, n) for n in ("image_id", "reason"))
            for image_id, reason in zip(ids.to_pylist(), reasons.to_pylist(), strict=True):
                known.present.add(image_id)
                again = reason not in (None, UNDEFINED) if job.retry else is_unread(reason)
                if not again:
                    known.final.add(image_id)
    return known


def _describe(
    images: Sequence[StoredImage],
    loaded: "Sequence[LoadedDescriptor]",
    known: Mapping[str, KnownRows],
    job: Job,
) -> tuple[list[list[DescriptorVector]], int]:
    """Return the missing vectors of each image, and the number of images to read for them."""
    missing = {
        descriptor.id: [
            i for i, image in enumerate(images) if image.image_id not in known[descriptor.id].final
        ]
        for descriptor in loaded
    }
    to_read = sorted({i for d in loaded if d.descriptor.reads_pixels for i in missing[d.id]})
    current = list(images)
    read = read_pixels([images[i] for i in to_read], job.spec.shapes, job.roots)
    for i, image in zip(to_read, read, strict=True):
        current[i] = image
    vectors: list[list[DescriptorVector]] = [[] for _ in images]
    for descriptor in loaded:
        reads = descriptor.descriptor.reads_pixels
        usable = [i for i in missing[descriptor.id] if not (reads and current[i].reason)]
        results = descriptor([current[i].image for i in usable])
        for i, vector in zip(usable, results, strict=True):
            vectors[i].append(vector)
        for i in set(missing[descriptor.id]) - set(usable):
            vectors[i].append(descriptor.without_image(current[i].reason))
    return vectors, len(to_read)
