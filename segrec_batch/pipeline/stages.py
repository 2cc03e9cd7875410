"""Stages of the indexing job as plain functions with Arrow tables in and out; see also `segment`.

They are independent of Ray. A row that fails in one stage passes the others unchanged. Each stage
adds its costs to `cost`.
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
from segrec_batch.model.segmented_image import from_arrow
from segrec_batch.model.spec import ModelSpec
from segrec_batch.pipeline.rows import copied_rows, descriptor_rows, failure_rows, image_rows
from segrec_batch.pipeline.stage_schema import (
    DECODED,
    RECEIPTS,
    SEGMENTED,
    from_described,
    to_described,
)
from segrec_batch.pipeline.tally import Stopwatch, charge, count_reasons, sum_costs
from segrec_batch.sources import storage
from segrec_batch.sources.listing import NAME_PROBLEMS
from segrec_batch.sources.roots import MAX_IMAGE_BYTES

MAX_BYTES = MAX_IMAGE_BYTES  # maximum size of an encoded image, and of all that are read at once
_SLICE = 128  # rows that are Python objects at once; a mask takes a megabyte

Row = dict[str, Any]


def decode_batch(sources: pa.Table, shapes: Sequence[Shape]) -> pa.Table:
    """Read, hash, decode and resize the sources of MANIFEST rows; return DECODED rows.

    A donor stays if its hash equals that of the source.

    Raises:
        StorageError: the store does not answer.
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
    """Seconds and bytes of reading so far."""

    seconds: float = 0.0
    bytes: int = 0


def _contents(rows: Sequence[Row], read: _Reading) -> Iterator[tuple[Row, bytes | OSError | None]]:
    """Yield rows with the bytes of their sources, None if not read; bounds the bytes in memory."""
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
    # one byte more than listed shows that a file has grown
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
    """Add the vectors of descriptors that compute on the host to SEGMENTED rows."""
    from segrec_batch.descriptors import runtime  # imports torch

    watch = Stopwatch()
    images = from_arrow(segmented)
    rows = [i for i, image in enumerate(images) if image is not None]
    fresh = [image for image in images if image is not None]
    vectors = from_described(segmented["described"])
    for descriptor in runtime.load(model, runtime.on_host(spec), "cpu"):
        for i, vector in zip(rows, descriptor(fresh), strict=True):
            vectors[i] = [*(vectors[i] or []), vector]
    columns: dict[str, Any] = {
        "described": to_described(vectors),
        "pixels": pa.nulls(segmented.num_rows, pa.binary()),
    }
    for name, column in columns.items():
        segmented = segmented.set_column(
            SEGMENTED.get_field_index(name), SEGMENTED.field(name), column
        )
    return charge(segmented, describe=watch.lap())


def write_batch(
    segmented: pa.Table, index: str, spec: ModelSpec, model_id: str, run_id: str
) -> pa.Table:
    """Write SEGMENTED rows as one part, and one of failures; return the RECEIPTS of their files.

    A source that could not be read keeps its row in `images`.
    """
    watch = Stopwatch()
    segmented = _with_run(segmented, model_id, run_id)
    contents: dict[tuple[str, str | None], list[pa.Table]] = {}
    for start in range(0, segmented.num_rows, _SLICE):
        _gather(contents, _rows(segmented.slice(start, _SLICE), spec))
    copied = segmented.filter(segmented["donor"].is_valid())
    _gather(contents, copied_rows(copied, index, spec))
    files = write_part(index, ((*key, pa.concat_tables(c)) for key, c in contents.items()))
    receipts: list[dict[str, Any]] = [dict(vars(file)) for file in files]
    keeps = _keeps_row(segmented)
    failed = segmented.filter(segmented["stage"].is_valid()).select(["stage", "reason"])
    receipts[0].update(
        copied=copied.num_rows,
        stale=sum(keeps),
        replaced=list(_replaced_rows(segmented, keeps)),
        reasons=count_reasons(failed.to_pylist()),
        cost=sum_costs(segmented["cost"].to_pylist()),
    )
    return charge(pa.Table.from_pylist(receipts, RECEIPTS), write=watch.lap())


def _with_run(segmented: pa.Table, model_id: str, run_id: str) -> pa.Table:
    """Add the columns that rows of the index have of their image id, run and model."""
    ids = [image_id(uri) for uri in segmented["uri"].to_pylist()]
    for name, values in (
        ("image_id", ids),
        ("run_id", [run_id] * len(ids)),
        ("model_id", [model_id] * len(ids)),
    ):
        segmented = segmented.append_column(name, pa.array(values, pa.string()))
    return segmented


def _keeps_row(segmented: pa.Table) -> list[bool]:
    """Return whether each source could not be read and has a row in `images`, which stays."""
    columns = (segmented[name].to_pylist() for name in ("stage", "old_part"))
    return [stage == "read" and part is not None for stage, part in zip(*columns, strict=True)]


def _replaced_rows(segmented: pa.Table, keeps: Sequence[bool]) -> Iterator[dict[str, str]]:
    """Yield the rows that leave the index with this part: their table and their part."""
    columns = (segmented[name].to_pylist() for name in ("image_id", "old_part", "failed_part"))
    for keep, identifier, old_part, failed_part in zip(keeps, *columns, strict=True):
        for table, part in (("images", None if keep else old_part), ("failures", failed_part)):
            if part is not None:
                yield {"image_id": identifier, "table": table, "part": part}


def _rows(segmented: pa.Table, spec: ModelSpec) -> Iterator[Rows]:
    """Yield the rows of sources that failed and of images that are not copies."""
    yield from failure_rows(segmented.filter(segmented["stage"].is_valid()))
    fresh = segmented.filter(segmented["labels"].is_valid())
    images = [image for image in from_arrow(fresh) if image is not None]
    yield from image_rows(fresh, images, spec)
    yield from descriptor_rows(fresh, [v or [] for v in from_described(fresh["described"])])


def _gather(contents: dict[tuple[str, str | None], list[pa.Table]], rows: Iterator[Rows]) -> None:
    for table, partition, content in rows:
        contents.setdefault((table, partition), []).append(content)
