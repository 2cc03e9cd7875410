"""Descriptors that were switched on after pictures were indexed: their vectors, and nothing else.

Images that lack vectors move to a new part with them: pictures are read once more if a descriptor
needs them, but the model is not run. A picture that cannot be read any more, or is not the one that
was indexed, keeps its row; in place of a vector it gets the reason.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from segrec_batch.model.spec import ModelSpec
from segrec_batch.pictures import UNDEFINED, Row, read_pixels, stored_rows
from segrec_batch.pipeline.rows import descriptor_rows
from segrec_batch.pipeline.tasks import each
from segrec_batch.roots import ImageRoots
from segrec_batch.store.files import DataFile, by_part, read_column, read_some
from segrec_batch.store.index import Snapshot
from segrec_batch.store.parts import write_part

if TYPE_CHECKING:
    from segrec_batch.describer import Loaded  # torch

_STEP = 4096  # images of a task, at most: what it holds in memory, and what a crash can lose
_SLICE = 128  # pictures whose pixels are in memory at once


@dataclass(frozen=True)
class Job:
    """Images `start` to `stop` of a part, in the order of its file, and with what to describe them.

    precision: of networks. retry: whether those that could not be read are tried again. roots:
    below which pictures are read.
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
class Added:
    """files: a new part. image_ids: the images in it, which leave the old one. vectors: how many
    there are that were not there before.
    """

    files: list[DataFile]
    image_ids: list[str]
    vectors: int


def lacking(snapshot: Snapshot) -> dict[str, int]:
    """How many vectors are missing in each part that lacks any, from the log."""
    missing = {}
    for part, files in by_part(snapshot.all_files).items():
        images = sum(f.rows for f in files if f.table == "images")
        vectors = sum(f.rows for f in files if f.table == "descriptors")
        if wanted := images * len(snapshot.spec.descriptors) - vectors:
            missing[part] = wanted
    return missing


def describe(
    snapshot: Snapshot,
    parts: Sequence[str],
    device: str,
    precision: str,
    run_id: str,
    retry: bool,
    roots: ImageRoots,
) -> Iterator[tuple[str, Added]]:
    """Describe what images of some parts lack, on the cluster; the part, and what was added."""
    files = by_part(snapshot.all_files)
    shared = snapshot.model_uri, snapshot.spec, device, precision, run_id, retry, roots
    jobs = (
        Job(snapshot.index, files[part], start, *shared)
        for part in parts
        for start in range(0, sum(f.rows for f in files[part] if f.table == "images"), _STEP)
    )
    gpus = 1 if device == "cuda" else 0
    for job, added in each(describe_images, jobs, cpus=1, gpus=gpus):
        yield job.part, added


def describe_images(job: Job) -> Added:
    """Write the images that lack vectors, with them, as a new part."""
    from segrec_batch.describer import load

    (images,) = (f for f in job.files if f.table == "images")
    ids: list[str] = read_column(job.index, images, "image_id").to_pylist()
    have = {d.id: _described(job, d.id) for d in job.spec.descriptors}
    ids = [
        i
        for i in ids[job.start : job.start + _STEP]
        if not all(i in done for done in have.values())
    ]
    if not ids:
        return Added([], [], 0)
    contents = {
        (f.table, f.partition): [_kept(read_some(job.index, f, ids), have.get(str(f.partition)))]
        for f in job.files
    }
    moved = contents["images", None][0]
    regions = {str(name): rows[0] for (table, name), rows in contents.items() if table == "regions"}
    names = tuple(d.name for d in job.spec.descriptors if not have[d.id].issuperset(ids))
    loaded, vectors = load(job.bundle, names, job.device, job.precision), 0
    for start in range(0, moved.num_rows, _SLICE):
        rows = stored_rows(moved.slice(start, _SLICE), regions, job.spec)
        _describe(rows, loaded, have, job)
        for table, name, found in descriptor_rows(rows):
            contents.setdefault((table, name), []).append(found)
            vectors += found.num_rows
    files = write_part(job.index, ((*key, pa.concat_tables(c)) for key, c in contents.items()))
    return Added(files, moved["image_id"].to_pylist(), vectors)


def _described(job: Job, descriptor: str) -> set[str]:
    """The images of a part that need not be described by a descriptor."""
    found: set[str] = set()
    for file in job.files:
        if file.table == "descriptors" and file.partition == descriptor:
            ids, reasons = (read_column(job.index, file, n) for n in ("image_id", "reason"))
            if job.retry:
                final = pc.or_(
                    pc.is_null(reasons), pc.fill_null(pc.equal(reasons, UNDEFINED), False)
                )
                ids = ids.filter(final)
            found.update(ids.to_pylist())
    return found


def _kept(rows: pa.Table, done: set[str] | None) -> pa.Table:
    """Of a descriptor the rows that are not made anew, `done`; of other tables all."""
    if done is None:
        return rows
    return rows.filter(pc.is_in(rows["image_id"], pa.array(done, pa.string())))


def _describe(
    rows: Sequence[Row], loaded: "Sequence[Loaded]", have: Mapping[str, set[str]], job: Job
) -> None:
    """Add to `described` of rows what they lack."""
    for row in rows:
        row.update(shape=None, reason=None, described=[], run_id=job.run_id)
    wanted = [[row for row in rows if row["image_id"] not in have[d.id]] for d in loaded]
    seen = {
        row["image_id"]: row
        for descriptor, lacking in zip(loaded, wanted, strict=True)
        for row in lacking
        if descriptor.descriptor.reads_pixels
    }
    read_pixels(list(seen.values()), job.spec.shapes, job.roots)
    for descriptor, lacking in zip(loaded, wanted, strict=True):
        descriptor(lacking)
