"""Backfill: compute the vectors of descriptors that were added after images were indexed.

Images that lack vectors move to a new part, together with their vectors. Images are read again if a
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
from segrec_batch.index.files import DataFile, group_by_part
from segrec_batch.index.parts import Rows, read_column, read_images, write_part
from segrec_batch.index.snapshot import Snapshot
from segrec_batch.model.spec import ModelSpec
from segrec_batch.pipeline.rows import make_descriptor_rows
from segrec_batch.search.database import open_database, translate_errors
from segrec_batch.search.sql.views import PART, select
from segrec_batch.sources.roots import ImageRoots

if TYPE_CHECKING:
    from segrec_batch.descriptors.runtime import LoadedDescriptor  # torch

_TASK_IMAGES = 4096  # maximum images of a task; limits its memory and the work that a crash loses
_IMAGES_WITH_PIXELS = 128  # images whose pixels are in memory at once


@dataclass(frozen=True)
class BackfillTask:
    """Up to `_TASK_IMAGES` images of a part, from row `start` of its file of `images` on.

    Attributes:
        files: all files of the part.
        precision: arithmetic of networks.
        retry: also try images again whose pixels could be read but gave no vector.
        roots: folders below which images may be read.
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
        """Name of the part that holds the images."""
        return self.files[0].part


@dataclass(frozen=True)
class BackfillResult:
    """Result of a task.

    Attributes:
        files: files of the new part.
        image_ids: images in the new part; their rows leave the old part.
        vectors: number of new rows of `descriptors`.
        read: number of images whose pixels a descriptor needs.
        unread: images of these that could not be read.
        outside: images of these that were not read, because they lie below no root.
    """

    files: list[DataFile]
    image_ids: list[str]
    vectors: int
    read: int = 0
    unread: int = 0
    outside: int = 0


def missing_vectors(snapshot: Snapshot) -> dict[str, int]:
    """Return the number of missing vectors of each part that lacks some; opens no data file."""
    missing = {}
    for part, files in group_by_part(snapshot.all_files).items():
        images = sum(f.rows for f in files if f.table == "images")
        vectors = sum(f.rows for f in files if f.table == "descriptors")
        if count := images * len(snapshot.spec.descriptors) - vectors:
            missing[part] = count
    return missing


def unread_parts(snapshot: Snapshot) -> set[str]:
    """Return the parts with images that the last backfill could not read."""
    descriptor_ids = {d.id for d in snapshot.spec.descriptors}
    files = tuple(f for f in snapshot.files["descriptors"] if f.partition in descriptor_ids)
    scan = select(
        replace(snapshot, files={**snapshot.files, "descriptors": files}), "descriptors", PART
    )
    if scan is None:
        return set()
    sql = f"SELECT DISTINCT part, reason FROM ({scan}) WHERE starts_with(reason, '{READ}')"  # noqa: S608
    with translate_errors(snapshot), open_database(":memory:", [snapshot]) as connection:
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
    files = group_by_part(f for f in snapshot.all_files if f.table != "failures")
    shared = snapshot.model_uri, snapshot.spec, device, precision, run_id, retry, roots
    tasks = (
        BackfillTask(snapshot.index, files[part], start, *shared)
        for part in parts
        for start in range(0, sum(f.rows for f in files[part] if f.table == "images"), _TASK_IMAGES)
    )
    gpus = 1 if device == "cuda" else 0
    for task, result in run_tasks(backfill_images, tasks, cpus=1, gpus=gpus):
        yield task.part, result


def backfill_images(task: BackfillTask) -> BackfillResult:
    """Write the images that lack vectors, with all vectors, as a new part."""
    from segrec_batch.descriptors.runtime import load

    descriptors = task.spec.descriptors
    (images,) = (f for f in task.files if f.table == "images")
    ids: list[str] = read_column(task.index, images, "image_id").to_pylist()
    ids = ids[task.start : task.start + _TASK_IMAGES]
    indexed = {d.id: _read_indexed_ids(task, d.id) for d in descriptors}
    ids = [i for i in ids if not all(i in rows.final for rows in indexed.values())]
    if not ids:
        return BackfillResult([], [], 0)
    old_rows = {(f.table, f.partition): read_images(task.index, f, ids) for f in task.files}
    regions = {str(name): rows for (table, name), rows in old_rows.items() if table == "regions"}
    names = tuple(d.name for d in descriptors if not indexed[d.id].final.issuperset(ids))
    loaded = load(task.bundle, names, task.device, task.precision)
    new_rows: list[Rows] = []
    moved_ids: list[str] = []
    read = unread = outside = 0
    for start in range(0, old_rows["images", None].num_rows, _IMAGES_WITH_PIXELS):
        rows = old_rows["images", None].slice(start, _IMAGES_WITH_PIXELS)
        stored = stored_images(rows, regions, task.spec)
        vectors, to_read = _compute_missing(stored, loaded, indexed, task)
        read += to_read
        for image_vectors in vectors:
            if any(is_outside(v.reason) for v in image_vectors):
                outside += 1
            elif any(is_unread(v.reason) for v in image_vectors):
                unread += 1
        # an image that has a row for each descriptor and gains no vector stays in its part
        moved = [
            i
            for i, image in enumerate(stored)
            if not all(image.image_id in rows_.all_ids for rows_ in indexed.values())
            or not all(is_unread(v.reason) for v in vectors[i])
        ]
        moved_ids += [stored[i].image_id for i in moved]
        new_rows += make_descriptor_rows(
            _set_run_id(rows.take(pa.array(moved, pa.int64())), task.run_id),
            [vectors[i] for i in moved],
        )
    contents: dict[tuple[str, str | None], list[pa.Table]] = {}
    for (table, name), content in old_rows.items():
        copied_ids = set(moved_ids)
        if table == "descriptors":
            copied_ids &= indexed[name].final if name in indexed else set()
        is_copied = pc.is_in(content["image_id"], pa.array(copied_ids, pa.string()))
        contents[table, name] = [content.filter(is_copied)]
    for table, name, content in new_rows:
        contents.setdefault((table, name), []).append(content)
    files = write_part(task.index, ((*key, pa.concat_tables(c)) for key, c in contents.items()))
    count = sum(content.num_rows for _, _, content in new_rows)
    return BackfillResult(files, moved_ids, count, read, unread, outside)


def _set_run_id(images: pa.Table, run_id: str) -> pa.Table:
    column = images.schema.get_field_index("run_id")
    values = pa.array([run_id] * images.num_rows, pa.string())
    return images.set_column(column, images.schema.field(column), values)


@dataclass(frozen=True)
class IndexedIds:
    """Ids of the images of a part that have a row of one descriptor.

    Attributes:
        all_ids: ids of all images with a row.
        final: ids whose row stays; the others are computed again.
    """

    all_ids: set[str]
    final: set[str]


def _read_indexed_ids(task: BackfillTask, descriptor: str) -> IndexedIds:
    indexed = IndexedIds(set(), set())
    for file in task.files:
        if file.table == "descriptors" and file.partition == descriptor:
            ids, reasons = (read_column(task.index, file, n) for n in ("image_id", "reason"))
            for image_id, reason in zip(ids.to_pylist(), reasons.to_pylist(), strict=True):
                indexed.all_ids.add(image_id)
                has_failed = reason not in (None, UNDEFINED)
                if not (has_failed if task.retry else is_unread(reason)):
                    indexed.final.add(image_id)
    return indexed


def _compute_missing(
    images: Sequence[StoredImage],
    descriptors: "Sequence[LoadedDescriptor]",
    indexed: Mapping[str, IndexedIds],
    task: BackfillTask,
) -> tuple[list[list[DescriptorVector]], int]:
    """Return the missing vectors of each image, and the number of images to read for them."""
    missing = {
        d.id: [i for i, image in enumerate(images) if image.image_id not in indexed[d.id].final]
        for d in descriptors
    }
    to_read = sorted({i for d in descriptors if d.descriptor.reads_pixels for i in missing[d.id]})
    inputs = list(images)
    with_pixels = read_pixels([images[i] for i in to_read], task.spec.shapes, task.roots)
    for i, image in zip(to_read, with_pixels, strict=True):
        inputs[i] = image
    vectors: list[list[DescriptorVector]] = [[] for _ in images]
    for descriptor in descriptors:
        reads_pixels = descriptor.descriptor.reads_pixels
        usable = [i for i in missing[descriptor.id] if not (reads_pixels and inputs[i].reason)]
        results = descriptor([inputs[i].image for i in usable])
        for i, vector in zip(usable, results, strict=True):
            vectors[i].append(vector)
        for i in set(missing[descriptor.id]) - set(usable):
            vectors[i].append(descriptor.without_image(inputs[i].reason))
    return vectors, len(to_read)
