"""Descriptors that were switched on after pictures were indexed: their vectors, and nothing else.

A part whose images lack vectors is written again with them: pictures are read once more if a
descriptor needs them, but the model is not run. A picture that cannot be read any more, or is not
the one that was indexed, keeps its row; in place of a vector it gets the reason.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from segrec_batch.model.spec import ModelSpec
from segrec_batch.pictures import Row, read_pixels, stored_rows
from segrec_batch.pipeline import chain
from segrec_batch.pipeline.rows import descriptor_rows
from segrec_batch.store.files import DataFile, by_part, read_file
from segrec_batch.store.index import Snapshot
from segrec_batch.store.parts import write_part

if TYPE_CHECKING:
    from segrec_batch.describer import Loaded  # torch

_SLICE = 128  # pictures whose pixels are in memory at once

Change = tuple[list[DataFile], list[DataFile]]  # files to remove, files to add


@dataclass(frozen=True)
class Job:
    """A part to describe: its files, and with what."""

    index: str
    files: list[DataFile]
    bundle: str
    spec: ModelSpec
    device: str
    run_id: str


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
    snapshot: Snapshot, parts: Sequence[str], device: str, run_id: str
) -> Iterator[Change]:
    """Write parts again with the vectors that they lack, on the cluster."""
    files = by_part(snapshot.all_files)
    jobs = (
        Job(snapshot.index, files[part], snapshot.model_uri, snapshot.spec, device, run_id)
        for part in parts
    )
    gpus = 1 if device == "cuda" else 0
    for job, added in chain.each(describe_part, jobs, cpus=1, gpus=gpus):
        yield job.files, added


def describe_part(job: Job) -> list[DataFile]:
    """The files of the new part."""
    from segrec_batch.describer import load

    contents = {(f.table, f.partition): [read_file(job.index, f)] for f in job.files}
    images = contents["images", None][0]
    regions = {str(name): rows[0] for (table, name), rows in contents.items() if table == "regions"}
    have = {
        d.id: {i for rows in contents.get(("descriptors", d.id), ()) for i in _ids(rows)}
        for d in job.spec.descriptors
    }
    lacking = [d for d in job.spec.descriptors if len(have[d.id]) < images.num_rows]
    loaded = load(job.bundle, tuple(d.name for d in lacking), job.device)
    for start in range(0, images.num_rows, _SLICE):
        rows = stored_rows(images.slice(start, _SLICE), regions, job.spec)
        _describe(rows, loaded, have, job)
        for table, name, found in descriptor_rows(rows):
            contents.setdefault((table, name), []).append(found)
    return write_part(job.index, ((*key, pa.concat_tables(c)) for key, c in contents.items()))


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
    read_pixels(list(seen.values()), job.spec.shapes)
    for descriptor, lacking in zip(loaded, wanted, strict=True):
        descriptor(lacking)


def _ids(rows: pa.Table) -> list[str]:
    ids: list[str] = rows["image_id"].to_pylist()
    return ids
