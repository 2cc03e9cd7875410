"""An index of two nights of synthetic street scenes, more varied than those of a small model.

The pipeline's own code makes its rows from random segmentations. The index has exact and near
copies and images without contrast; on the second night some images are deleted, changed or moved.
"""

import datetime as dt
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from segrec_batch.descriptors.inputs import DescriptorVector
from segrec_batch.index import column_values
from segrec_batch.index import snapshot as store
from segrec_batch.index.files import DataFile
from segrec_batch.index.parts import Rows, rewrite_part, write_part
from segrec_batch.model.bundle import Model
from segrec_batch.model.segmented_image import SegmentedImage
from segrec_batch.model.spec import COMMON_GRID, ModelSpec
from segrec_batch.pipeline.rows import make_descriptor_rows, make_failure_rows, make_image_rows

Row = dict[str, Any]

GRID = 16
NIGHTS = tuple(dt.datetime(2026, 3, day, 1, tzinfo=dt.UTC) for day in (2, 3))
GONE, CHANGED, MOVED = range(5), range(5, 12), range(20, 24)


def write_streets(index: str, model: Model) -> None:
    """Write the index for a model of three classes: one version for each night, 1 and 2."""
    empty, spec = store.create(index, model), model.spec
    rows = [image(i) for i in range(100)]
    first = store.commit(empty, _part(index, spec, 0, rows, [failure(i) for i in range(6)]))
    left = [image(i)["image_id"] for i in chain(GONE, CHANGED)]
    kept = rewrite_part(index, [f for f in first.all_files if f.table != "failures"], left)
    new = [image(i) for i in range(100, 130)]
    changed = [image(i, content=1000 + i) for i in CHANGED]
    moved = [image(i, folder="moved") for i in MOVED]
    add = [
        *kept,
        *_part(index, spec, 1, [*new, *changed], [*(failure(i) for i in range(6, 10)), unread(50)]),
        *_part(index, spec, 1, moved, [], segmented=0),
    ]
    store.commit(first, add, [f for f in first.all_files if f.table != "failures"])


def image(i: int, content: int | None = None, folder: str | None = None) -> Row:
    """Return the row of an image; every 20th is a copy, every 10th nearly a copy."""
    content = i - (i % 20 == 19) if content is None else content
    rng = np.random.default_rng(content - (content % 10 == 4))
    labels = _labels(rng)
    prototypes = np.random.default_rng(0).random((3, 4, 512))
    features = prototypes[rng.integers(3)] + 0.3 * rng.random((4, 512))
    features += 0.001 * np.random.default_rng(content).random((4, 512)) * (content % 10 == 4)
    counts = np.bincount(labels.ravel(), minlength=4)
    feature = (counts @ features / counts.sum() if i % 50 else np.ones(512)).astype(np.float32)
    return {
        **_source(f"/nowhere/{folder or ('north', 'south', 'it_s')[i % 3]}/{i:03}.jpg"),
        "content_hash": f"{content:032x}",
        "width": GRID,
        "height": GRID,
        "format": "JPEG",
        "grid": labels.shape,
        "labels": labels.tobytes(),
        "common": labels.repeat(COMMON_GRID // GRID, 0).repeat(COMMON_GRID // GRID, 1).tobytes(),
        "counts": counts.tolist(),
        "feature": feature,
        "region_features": features.astype(np.float32).ravel(),
        "sign_bits": column_values.pack_bitmaps(feature > feature.mean()),
        "mask_shape": labels.shape,
        "mask": labels.tobytes(),
    }


def failure(i: int) -> Row:
    """Return the failure of an image, for one of two reasons."""
    reason = "not an image" if i % 3 else "empty file"
    return {**_source(f"/nowhere/bad/{i:03}.jpg"), "stage": "decode", "reason": reason}


def unread(i: int) -> Row:
    """Return the failure of an indexed image that a later run could not read."""
    source = _source(image(i)["uri"])
    return {**source, "stage": "read", "reason": "PermissionError: not for this user"}


def _source(uri: str) -> Row:
    return {
        "uri": uri,
        "image_id": column_values.image_id(uri),
        "source_size": 1,
        "source_etag": "e",
    }


def _labels(rng: np.random.Generator) -> column_values.Labels:
    """Return classes 0 to 3 in bands, some absent, (GRID, GRID)."""
    shares = rng.dirichlet([1, 1, 1, 1]) * (rng.random(4) > 0.4)
    ends = np.cumsum(shares[[1, 2, 3]] / max(shares.sum(), 1e-9) * GRID**2).round()
    bands = np.searchsorted(ends, np.arange(GRID**2), side="right")
    return np.array([1, 2, 3, 0], np.uint8)[bands].reshape(GRID, GRID)


def _part(
    index: str,
    spec: ModelSpec,
    night: int,
    images: Sequence[Row],
    failures: Sequence[Row],
    segmented: int | None = None,
) -> list[DataFile]:
    run_id = f"{NIGHTS[night]:%Y%m%dT%H%M%S}-{night:08x}"
    named = {"run_id": run_id, "model_id": "0" * 16}
    sources = pa.Table.from_pylist([{**source_columns(row), **named} for row in images])
    contents = chain(
        make_image_rows(sources, [segmented_image(row) for row in images], spec),
        make_descriptor_rows(sources, [_vectors(row, spec) for row in images]),
        make_failure_rows(pa.Table.from_pylist([{**row, **named} for row in failures])),
    )
    return write_part(index, _at(contents, NIGHTS[night if segmented is None else segmented]))


def source_columns(row: Row) -> Row:
    """Return the columns of a row that do not come from a model."""
    names = ("image_id", "uri", "source_size", "source_etag", "content_hash")
    return {name: row[name] for name in (*names, "width", "height", "format")}


def segmented_image(row: Row) -> SegmentedImage:
    """Return the record of a row of `image`."""
    grid = row["grid"]
    return SegmentedImage(
        labels=np.frombuffer(row["labels"], np.uint8).reshape(grid),
        counts=np.array(row["counts"], np.int64),
        feature=np.asarray(row["feature"], np.float32),
        region_features=np.asarray(row["region_features"]).reshape(len(row["counts"]), -1),
        mask=np.frombuffer(row["mask"], np.uint8).reshape(row["mask_shape"]),
        common=np.frombuffer(row["common"], np.uint8).reshape(COMMON_GRID, COMMON_GRID),
        sign_bits=row["sign_bits"],
    )


def _vectors(row: Row, spec: ModelSpec) -> list[DescriptorVector]:
    """Return a vector for each descriptor of the model: some values of the feature."""
    vector = np.asarray(row["feature"][:16], np.float32)
    return [DescriptorVector(d.id, vector=vector) for d in spec.descriptors]


def _at(contents: Iterable[Rows], time: dt.datetime) -> Iterable[Rows]:
    """The same rows, with another time than now."""
    for table, partition, rows in contents:
        for name in {"indexed_at", "failed_at"} & set(rows.column_names):
            place = rows.schema.get_field_index(name)
            times = pa.array([time + dt.timedelta(minutes=5)] * rows.num_rows, rows[name].type)
            rows = rows.set_column(place, rows.schema.field(name), times)
        yield table, partition, rows
