"""The stages of the indexing job as plain functions: Arrow table in and out. See also `segment`.

Nothing here knows Ray. A row that fails in one stage passes the others untouched. Each stage adds
what it cost to `cost`.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from segrec_batch.common.errors import ImageError
from segrec_batch.images import sandbox
from segrec_batch.images.decode import Shape
from segrec_batch.index.column_values import image_id
from segrec_batch.index.parts import Rows, write_part
from segrec_batch.model.spec import ModelSpec
from segrec_batch.pipeline.rows import copied_rows, descriptor_rows, failure_rows, image_rows
from segrec_batch.pipeline.stage_schema import DECODED, RECEIPTS, SEGMENTED
from segrec_batch.pipeline.tally import Stopwatch, charge, reasons, total
from segrec_batch.sources import storage
from segrec_batch.sources.listing import NAME_PROBLEMS
from segrec_batch.sources.roots import MAX_IMAGE_BYTES

MAX_BYTES = MAX_IMAGE_BYTES  # of an encoded image, and of those that are read at once
_SLICE = 128  # rows that are Python objects at once: a mask takes a megabyte

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
        except ImageError as error:
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
    # a byte more than listed shows that a file has grown since
    sizes = [row["source_size"] + bool(row["source_size"]) for row in rows]
    contents = storage.read_many(uris, sizes)
    read.seconds += watch.lap()
    read.bytes += sum(len(content) for content in contents if isinstance(content, bytes))
    yield from zip(rows, contents, strict=True)


def _decoded(row: Row, content: bytes | OSError | str | None, shapes: Sequence[Shape]) -> Row:
    if content is None:
        raise ImageError("decode", f"{row['source_size']} bytes are more than {MAX_BYTES}")
    if isinstance(content, str):
        raise ImageError("name" if content in NAME_PROBLEMS else "read", content)
    if isinstance(content, OSError):
        raise ImageError("read", f"{type(content).__name__}: {content}")
    if len(content) != row["source_size"]:  # cut off, or being written
        other = "shorter" if len(content) < row["source_size"] else "longer"
        raise ImageError("read", f"{other} than the {row['source_size']} bytes that were listed")
    content_hash = hashlib.blake2b(content, digest_size=16).hexdigest()
    donor = row["donor"]
    if donor and donor["content_hash"] == content_hash:
        return {"content_hash": content_hash}
    image = sandbox.shared().decode(content, shapes)
    return {
        "donor": None,
        "content_hash": content_hash,
        "width": image.width,
        "height": image.height,
        "format": image.format,
        "shape": image.pixels.shape[:2],
        "pixels": image.pixels.tobytes(),
    }


def describe_batch(segmented: pa.Table, model: str, spec: ModelSpec) -> pa.Table:
    """SEGMENTED rows → SEGMENTED rows, described by the descriptors that need no device, too."""
    from segrec_batch.descriptors import runtime as describer  # imports torch

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
    """SEGMENTED rows → one part, and one of failures, in place; the RECEIPTS of their files.

    A source that could not be read keeps the row of `images` that it has: it says nothing of that.
    """
    watch = Stopwatch()
    contents: dict[tuple[str, str | None], list[pa.Table]] = {}
    copied: list[Row] = []
    replaced: list[Row] = []
    stale = 0
    for start in range(0, segmented.num_rows, _SLICE):
        rows: list[Row] = segmented.slice(start, _SLICE).to_pylist()
        for row in rows:
            row.update(image_id=image_id(row["uri"]), run_id=run_id, model_id=model_id)
            keeps = row["stage"] == "read" and row["old_part"] is not None
            stale += keeps
            replaced += _leaving(row, keeps)
        copied += [row for row in rows if row["donor"]]
        _gather(contents, _rows_of(rows, spec))
    _gather(contents, copied_rows(copied, index, spec))
    failed = segmented.filter(segmented["stage"].is_valid()).select(["stage", "reason"]).to_pylist()
    files = write_part(index, ((*key, pa.concat_tables(c)) for key, c in contents.items()))
    receipts: list[Row] = [dict(vars(file)) for file in files]
    receipts[0].update(
        copied=len(copied),
        stale=stale,
        replaced=replaced,
        reasons=reasons(failed),
        cost=total(segmented["cost"].to_pylist()),
    )
    return charge(pa.Table.from_pylist(receipts, RECEIPTS), write=watch.lap())


def _leaving(row: Row, keeps: bool) -> Iterator[Row]:
    """The rows of a source that leave the index, once it has others."""
    parts = {"images": None if keeps else row["old_part"], "failures": row["failed_part"]}
    for table, part in parts.items():
        if part is not None:
            yield {"image_id": row["image_id"], "table": table, "part": part}


def _rows_of(rows: Sequence[Row], spec: ModelSpec) -> Iterator[Rows]:
    """Of images that failed, and of those that are not copies."""
    fresh = [row for row in rows if not row["stage"] and not row["donor"]]
    yield from failure_rows([row for row in rows if row["stage"]])
    yield from image_rows(fresh, spec)
    yield from descriptor_rows(fresh)


def _gather(contents: dict[tuple[str, str | None], list[pa.Table]], found: Iterator[Rows]) -> None:
    for table, partition, content in found:
        contents.setdefault((table, partition), []).append(content)
