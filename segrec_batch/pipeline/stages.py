"""The stages of the indexing job as plain functions and a plain class: Arrow table in and out.

Nothing here knows Ray. A row that fails in one stage passes the others untouched. Each stage adds
what it cost to `cost`.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from segrec_batch import sandbox, storage
from segrec_batch.decode import Shape, mask_shape
from segrec_batch.errors import PictureError
from segrec_batch.model.spec import ModelSpec
from segrec_batch.pipeline.rows import copied_rows, descriptor_rows, failure_rows, picture_rows
from segrec_batch.pipeline.schema import DECODED, RECEIPTS, SEGMENTED
from segrec_batch.pipeline.tally import Occupancy, Stopwatch, charge, reasons, total
from segrec_batch.store.encode import image_id
from segrec_batch.store.parts import write_part

if TYPE_CHECKING:
    from segrec_batch.model.segmenter import Segmentation

MAX_BYTES = 2**28  # of an encoded picture, and of those that are read at once

Row = dict[str, Any]


def decode_batch(sources: pa.Table, shapes: Sequence[Shape]) -> pa.Table:
    """MANIFEST rows → DECODED rows: read, hash, decode, resize; a donor stays if its hash agrees.

    Raises StorageError if the store does not answer.
    """
    whole, read = Stopwatch(), _Reading()
    rows: list[Row] = sources.to_pylist()
    for row, content in _contents(rows, read):
        problem = row.pop("problem")
        try:
            row.update(_decoded(row, problem or content, shapes))
        except PictureError as error:
            row.update(stage=error.stage, reason=error.reason, donor=None)
    decoded = pa.Table.from_pylist(rows, DECODED)
    decode = whole.lap() - read.seconds
    return charge(decoded, read=read.seconds, bytes_read=read.bytes, decode=decode)


@dataclass
class _Reading:
    """What reading has cost so far."""

    seconds: float = 0.0
    bytes: int = 0


def _contents(rows: Sequence[Row], read: _Reading) -> Iterator[tuple[Row, bytes | OSError | None]]:
    """Rows with what their sources hold; None where that is not read. Bounds what is in memory."""
    group: list[Row] = []
    size = 0
    for row in rows:
        if row["problem"] or row["source_size"] > MAX_BYTES:
            yield row, None
            continue
        if size + row["source_size"] > MAX_BYTES:
            yield from _read(group, read)
            group, size = [], 0
        group.append(row)
        size += row["source_size"]
    yield from _read(group, read)


def _read(rows: Sequence[Row], read: _Reading) -> Iterator[tuple[Row, bytes | OSError]]:
    watch = Stopwatch()
    uris = [row["uri"] for row in rows]
    contents = storage.read_many(uris, [row["source_size"] for row in rows])
    read.seconds += watch.lap()
    read.bytes += sum(len(content) for content in contents if isinstance(content, bytes))
    yield from zip(rows, contents, strict=True)


def _decoded(row: Row, content: bytes | OSError | str | None, shapes: Sequence[Shape]) -> Row:
    if content is None:
        raise PictureError("read", f"{row['source_size']} bytes are more than {MAX_BYTES}")
    if isinstance(content, str):
        raise PictureError("read", content)
    if isinstance(content, OSError):
        raise PictureError("read", f"{type(content).__name__}: {content}")
    content_hash = hashlib.blake2b(content, digest_size=16).hexdigest()
    donor = row["donor"]
    if donor and donor["content_hash"] == content_hash:
        return {"content_hash": content_hash}
    picture = sandbox.shared().decode(content, shapes)
    return {
        "donor": None,
        "content_hash": content_hash,
        "width": picture.width,
        "height": picture.height,
        "format": picture.format,
        "shape": picture.pixels.shape[:2],
        "pixels": picture.pixels.tobytes(),
    }


class SegmentBatch:
    """Runs the model, and the descriptors that are on its device, over DECODED rows. Loads them
    once.
    """

    def __init__(self, model: str, device: str, threads: int | None = None) -> None:
        import torch  # here, so that workers that only read and write do without it

        from segrec_batch import describer
        from segrec_batch.model.bundle import load_model
        from segrec_batch.model.segmenter import Segmenter

        if threads:
            torch.set_num_threads(threads)
        bundle = load_model(model)
        spec = bundle.spec
        self.segmenter = Segmenter(bundle, device)
        names = describer.on_device(spec)
        self.descriptors = describer.load(model, names, self.segmenter.device)
        self.keeps_pixels = describer.read_pixels(describer.on_host(spec))

    def __call__(self, decoded: pa.Table) -> pa.Table:
        """DECODED rows → SEGMENTED rows; pictures of one shape go through the model together."""
        rows: list[Row] = decoded.to_pylist()
        good = sorted((r for r in rows if r["shape"]), key=lambda r: tuple(r["shape"]))
        for shape, members in groupby(good, key=lambda r: tuple(r["shape"])):
            batch = list(members)
            pixels = [np.frombuffer(r["pixels"], np.uint8).reshape(*shape, 3) for r in batch]
            found = self.segmenter(np.stack(pixels))
            for i, row in enumerate(batch):
                row.update(_segmented(row, found, i), described=[])
            for descriptor in self.descriptors:
                descriptor(batch)
            if not self.keeps_pixels:
                for row in batch:
                    row["pixels"] = None
        return pa.Table.from_pylist(rows, SEGMENTED)


def _segmented(row: Row, found: "Segmentation", i: int) -> Row:
    size = mask_shape(row["height"], row["width"])
    return {
        "grid": found.labels[i].shape,
        "labels": found.labels[i].tobytes(),
        "common": found.common[i].tobytes(),
        "counts": found.counts[i],
        "feature": found.feature[i],
        "region_features": found.region_features[i].ravel(),
        "sign_bits": found.sign_bits[i],
        "mask_shape": size,
        "mask": found.mask(i, size).tobytes(),
    }


class TimedSegmentBatch:
    """SegmentBatch, or what stands for it, and the time in its calls and between them."""

    def __init__(self, stage: Callable[..., Callable[[pa.Table], pa.Table]], **given: Any) -> None:
        self._stage = stage(**given)
        self._occupancy = Occupancy()

    def __call__(self, decoded: pa.Table) -> pa.Table:
        """DECODED rows → SEGMENTED rows."""
        starved = self._occupancy.enter()
        try:
            segmented = self._stage(decoded)
        finally:
            segment = self._occupancy.leave()
        return charge(segmented, segment=segment, starved=starved)


def describe_batch(segmented: pa.Table, model: str, spec: ModelSpec) -> pa.Table:
    """SEGMENTED rows → SEGMENTED rows, described by the descriptors that need no device, too."""
    from segrec_batch import describer  # imports torch

    watch = Stopwatch()
    rows: list[Row] = segmented.to_pylist()
    fresh = [row for row in rows if row["shape"]]
    for descriptor in describer.load(model, describer.on_host(spec), "cpu"):
        descriptor(fresh)
    for row in fresh:
        row["pixels"] = None
    return charge(pa.Table.from_pylist(rows, SEGMENTED), describe=watch.lap())


def write_batch(
    segmented: pa.Table, index: str, spec: ModelSpec, model_id: str, run_id: str
) -> pa.Table:
    """SEGMENTED rows → one part, in place; returns the RECEIPTS of its files."""
    watch = Stopwatch()
    rows: list[Row] = segmented.to_pylist()
    for row in rows:
        row.update(image_id=image_id(row["uri"]), run_id=run_id, model_id=model_id)
    failed = [row for row in rows if row["stage"]]
    copied = [row for row in rows if row["donor"]]
    fresh = [row for row in rows if not row["stage"] and not row["donor"]]
    contents: dict[tuple[str, str | None], list[pa.Table]] = {}
    for found in (
        failure_rows(failed),
        picture_rows(fresh, spec),
        descriptor_rows(fresh),
        copied_rows(copied, index, spec),
    ):
        for table, partition, content in found:
            contents.setdefault((table, partition), []).append(content)
    files = write_part(index, ((*key, pa.concat_tables(c)) for key, c in contents.items()))
    receipts: list[Row] = [dict(vars(file)) for file in files]
    receipts[0]["copied"] = len(copied)
    receipts[0]["reasons"] = reasons(failed)
    receipts[0]["cost"] = total(row["cost"] for row in rows)
    receipts[0]["replaced"] = [
        {"image_id": row["image_id"], "part": row["old_part"]} for row in rows if row["old_part"]
    ]
    return charge(pa.Table.from_pylist(receipts, RECEIPTS), write=watch.lap())
