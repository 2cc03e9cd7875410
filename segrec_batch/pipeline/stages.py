"""Stages of the indexing job as plain functions with Arrow tables in and out; see also `segment`.

They are independent of Ray. A row that fails in a stage passes the later stages unchanged. Each
stage adds its costs to `cost`.
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
from segrec_batch.pipeline.rows import (
    make_copied_rows,
    make_descriptor_rows,
    make_failure_rows,
    make_image_rows,
)
from segrec_batch.pipeline.stage_schema import (
    DECODED,
    RECEIPTS,
    SEGMENTED,
    decode_vectors,
    encode_vectors,
)
from segrec_batch.pipeline.tally import Stopwatch, add_cost, count_reasons, sum_costs
from segrec_batch.sources import storage
from segrec_batch.sources.listing import NAME_PROBLEMS
from segrec_batch.sources.roots import MAX_IMAGE_BYTES

_ROWS_AT_ONCE = 128  # rows that are converted to Python objects at once; a mask takes a megabyte

Row = dict[str, Any]


def decode_batch(sources: pa.Table, shapes: Sequence[Shape]) -> pa.Table:
    """Read, hash, decode and resize the sources of MANIFEST rows; return DECODED rows.

    A donor whose hash differs from that of the source is removed from the row.

    Raises:
        StorageError: the store does not answer.
    """
    watch, read = Stopwatch(), _ReadCost()
    rows: list[Row] = sources.to_pylist()
    for row, content in _iter_contents(rows, read):
        problem = row.pop("problem")
        try:
            row.update(_decode(row, problem or content, shapes))
        except ImageError as error:
            row.update(stage=error.stage, reason=error.reason, donor=None)
    decoded = pa.Table.from_pylist(rows, DECODED)
    decode = watch.lap() - read.seconds
    return add_cost(decoded, read=read.seconds, bytes_read=read.bytes, decode=decode)


@dataclass
class _ReadCost:
    """Seconds and bytes of reading so far."""

    seconds: float = 0.0
    bytes: int = 0


def _iter_contents(
    rows: Sequence[Row], read: _ReadCost
) -> Iterator[tuple[Row, bytes | OSError | None]]:
    """Yield rows with the bytes of their sources; None if a source is too large or has a problem.

    At most `MAX_IMAGE_BYTES` are in memory.
    """
    group: list[Row] = []
    size = 0
    for row in rows:
        if row["problem"] or row["source_size"] > MAX_IMAGE_BYTES:
            yield row, None
            continue
        if size + row["source_size"] > MAX_IMAGE_BYTES:
            yield from _read_group(group, read)
            group, size = [], 0
        group.append(row)
        size += row["source_size"]
    yield from _read_group(group, read)


def _read_group(rows: Sequence[Row], read: _ReadCost) -> Iterator[tuple[Row, bytes | OSError]]:
    watch = Stopwatch()
    uris = [row["uri"] for row in rows]
    # read one byte more than listed, to detect a file that has grown
    sizes = [row["source_size"] + bool(row["source_size"]) for row in rows]
    contents = storage.read_many(uris, sizes)
    read.seconds += watch.lap()
    read.bytes += sum(len(content) for content in contents if isinstance(content, bytes))
    yield from zip(rows, contents, strict=True)


def _decode(row: Row, content: bytes | OSError | str | None, shapes: Sequence[Shape]) -> Row:
    if content is None:
        raise ImageError("decode", f"{row['source_size']} bytes are more than {MAX_IMAGE_BYTES}")
    if isinstance(content, str):
        raise ImageError("name" if content in NAME_PROBLEMS else "read", content)
    if isinstance(content, OSError):
        raise ImageError("read", f"{type(content).__name__}: {content}")
    if len(content) != row["source_size"]:  # truncated, or still being written
        change = "shorter" if len(content) < row["source_size"] else "longer"
        raise ImageError("read", f"{change} than the {row['source_size']} bytes that were listed")
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
    """Add to SEGMENTED rows the vectors of descriptors that compute on the host."""
    from segrec_batch.descriptors import runtime  # imports torch

    watch = Stopwatch()
    images = {i: image for i, image in enumerate(from_arrow(segmented)) if image is not None}
    vectors = decode_vectors(segmented["described"])
    for descriptor in runtime.load(model, runtime.on_host(spec), "cpu"):
        for i, vector in zip(images, descriptor(list(images.values())), strict=True):
            vectors[i] = [*(vectors[i] or []), vector]
    pixels = pa.nulls(segmented.num_rows, pa.binary())
    for name, column in (("described", encode_vectors(vectors)), ("pixels", pixels)):
        segmented = segmented.set_column(
            SEGMENTED.get_field_index(name), SEGMENTED.field(name), column
        )
    return add_cost(segmented, describe=watch.lap())


def write_batch(
    segmented: pa.Table, index: str, spec: ModelSpec, model_id: str, run_id: str
) -> pa.Table:
    """Write SEGMENTED rows as a part of images and a part of failures; return their RECEIPTS.

    A source that could not be read keeps its row in `images`.
    """
    watch = Stopwatch()
    segmented = _add_run_columns(segmented, model_id, run_id)
    contents: dict[tuple[str, str | None], list[pa.Table]] = {}
    for start in range(0, segmented.num_rows, _ROWS_AT_ONCE):
        _gather(contents, _iter_rows(segmented.slice(start, _ROWS_AT_ONCE), spec))
    copied = segmented.filter(segmented["donor"].is_valid())
    _gather(contents, make_copied_rows(copied, index, spec))
    files = write_part(index, ((*key, pa.concat_tables(c)) for key, c in contents.items()))
    receipts: list[dict[str, Any]] = [dict(vars(file)) for file in files]
    is_stale = _find_stale(segmented)
    failed = segmented.filter(segmented["stage"].is_valid()).select(["stage", "reason"])
    receipts[0].update(
        copied=copied.num_rows,
        stale=sum(is_stale),
        replaced=list(_iter_replaced(segmented, is_stale)),
        reasons=count_reasons(failed.to_pylist()),
        cost=sum_costs(segmented["cost"].to_pylist()),
    )
    return add_cost(pa.Table.from_pylist(receipts, RECEIPTS), write=watch.lap())


def _add_run_columns(segmented: pa.Table, model_id: str, run_id: str) -> pa.Table:
    """Add the columns `image_id`, `run_id` and `model_id`."""
    ids = [image_id(uri) for uri in segmented["uri"].to_pylist()]
    for name, values in (
        ("image_id", ids),
        ("run_id", [run_id] * len(ids)),
        ("model_id", [model_id] * len(ids)),
    ):
        segmented = segmented.append_column(name, pa.array(values, pa.string()))
    return segmented


def _find_stale(segmented: pa.Table) -> list[bool]:
    """Return whether each source could not be read but has a row in `images`, which stays."""
    columns = (segmented[name].to_pylist() for name in ("stage", "old_part"))
    return [stage == "read" and part is not None for stage, part in zip(*columns, strict=True)]


def _iter_replaced(segmented: pa.Table, is_stale: Sequence[bool]) -> Iterator[dict[str, str]]:
    """Yield image id, table and part of the old rows that the new part replaces."""
    columns = (segmented[name].to_pylist() for name in ("image_id", "old_part", "failed_part"))
    for stale, identifier, old_part, failed_part in zip(is_stale, *columns, strict=True):
        for table, part in (("images", None if stale else old_part), ("failures", failed_part)):
            if part is not None:
                yield {"image_id": identifier, "table": table, "part": part}


def _iter_rows(segmented: pa.Table, spec: ModelSpec) -> Iterator[Rows]:
    """Yield the rows of failed sources, and of images that are not copies."""
    yield from make_failure_rows(segmented.filter(segmented["stage"].is_valid()))
    computed = segmented.filter(segmented["labels"].is_valid())
    images = [image for image in from_arrow(computed) if image is not None]
    yield from make_image_rows(computed, images, spec)
    vectors = [v or [] for v in decode_vectors(computed["described"])]
    yield from make_descriptor_rows(computed, vectors)


def _gather(contents: dict[tuple[str, str | None], list[pa.Table]], rows: Iterator[Rows]) -> None:
    for table, partition, content in rows:
        contents.setdefault((table, partition), []).append(content)
