"""The stages of the indexing job as plain functions and a plain class: Arrow table in and out.

Nothing here knows Ray. A row that fails in one stage carries `stage` and `reason` from then on and
passes the others untouched.
"""

import datetime as dt
import hashlib
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segrec_batch import storage
from segrec_batch.decode import Shape, decode, mask_shape
from segrec_batch.errors import PictureError
from segrec_batch.listing import SOURCES
from segrec_batch.model.bundle import ModelSpec, load_model
from segrec_batch.model.segmenter import COMMON_GRID, Segmentation, Segmenter
from segrec_batch.store import encode
from segrec_batch.store.files import write_file
from segrec_batch.store.schema import (
    coverage_column,
    failures_schema,
    images_schema,
    regions_schema,
)

MAX_BYTES = 2**28  # of an encoded picture

Row = dict[str, Any]

MANIFEST = pa.schema([*SOURCES, pa.field("known", pa.bool_(), nullable=False)])
_FAILURE = [pa.field("stage", pa.string()), pa.field("reason", pa.string())]
_PICTURE = [
    pa.field("content_hash", pa.string()),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("format", pa.string()),
]
DECODED = pa.schema(
    [
        *MANIFEST,
        *_FAILURE,
        *_PICTURE,
        pa.field("shape", pa.list_(pa.int32(), 2)),
        pa.field("pixels", pa.binary()),
    ]
)
SEGMENTED = pa.schema(
    [
        *MANIFEST,
        *_FAILURE,
        *_PICTURE,
        pa.field("grid", pa.list_(pa.int32(), 2)),
        pa.field("labels", pa.binary()),
        pa.field("common", pa.binary()),
        pa.field("counts", pa.list_(pa.int64())),
        pa.field("feature", pa.list_(pa.float32())),
        pa.field("region_features", pa.list_(pa.float32())),
        pa.field("signature", pa.list_(pa.int64())),
        pa.field("mask_shape", pa.list_(pa.int32(), 2)),
        pa.field("mask", pa.binary()),
    ]
)
RECEIPTS = pa.schema(
    [
        pa.field("table", pa.string()),
        pa.field("path", pa.string()),
        pa.field("size", pa.int64()),
        pa.field("rows", pa.int64()),
        pa.field("partition", pa.string()),
        pa.field("stats", pa.string()),
        pa.field("replaced", pa.list_(pa.string())),
    ]
)


def image_id(uri: str) -> str:
    """128 bits of a URI, in hex."""
    return hashlib.blake2b(uri.encode(), digest_size=16).hexdigest()


def decode_batch(sources: pa.Table, shapes: Sequence[Shape]) -> pa.Table:
    """MANIFEST rows → DECODED rows: read, hash, decode, resize."""
    rows: list[Row] = sources.to_pylist()
    small = [row for row in rows if row["source_size"] <= MAX_BYTES]
    contents = dict(
        zip((r["uri"] for r in small), storage.read_many([r["uri"] for r in small]), strict=True)
    )
    for row in rows:
        try:
            row.update(_decoded(row, contents.get(row["uri"]), shapes))
        except PictureError as error:
            row.update(stage=error.stage, reason=error.reason)
    return pa.Table.from_pylist(rows, DECODED)


def _decoded(row: Row, content: bytes | Exception | None, shapes: Sequence[Shape]) -> Row:
    if content is None:
        raise PictureError("read", f"{row['source_size']} bytes are more than {MAX_BYTES}")
    if isinstance(content, Exception):
        raise PictureError("read", f"{type(content).__name__}: {content}")
    picture = decode(content, shapes)
    return {
        "content_hash": hashlib.blake2b(content, digest_size=16).hexdigest(),
        "width": picture.width,
        "height": picture.height,
        "format": picture.format,
        "shape": picture.pixels.shape[:2],
        "pixels": picture.pixels.tobytes(),
    }


class SegmentBatch:
    """Runs the model over DECODED rows. Loads it once."""

    def __init__(self, model: str, device: str, threads: int | None = None) -> None:
        import torch

        if threads:
            torch.set_num_threads(threads)
        self.segmenter = Segmenter(load_model(model), device)

    def __call__(self, decoded: pa.Table) -> pa.Table:
        """DECODED rows → SEGMENTED rows; pictures of one shape go through the model together."""
        rows: list[Row] = decoded.to_pylist()
        good = sorted((r for r in rows if r["stage"] is None), key=lambda r: tuple(r["shape"]))
        for shape, members in groupby(good, key=lambda r: tuple(r["shape"])):
            batch = list(members)
            pixels = [np.frombuffer(r.pop("pixels"), np.uint8).reshape(*shape, 3) for r in batch]
            found = self.segmenter(np.stack(pixels))
            for i, row in enumerate(batch):
                row.update(_segmented(row, found, i))
        return pa.Table.from_pylist(rows, SEGMENTED)


def _segmented(row: Row, found: Segmentation, i: int) -> Row:
    size = mask_shape(row["height"], row["width"])
    return {
        "grid": found.labels[i].shape,
        "labels": found.labels[i].tobytes(),
        "common": found.common[i].tobytes(),
        "counts": found.counts[i],
        "feature": found.feature[i],
        "region_features": found.region_features[i].ravel(),
        "signature": found.signature[i],
        "mask_shape": size,
        "mask": found.mask(i, size).tobytes(),
    }


def write_batch(
    segmented: pa.Table, index: str, spec: ModelSpec, model_id: str, run_id: str
) -> pa.Table:
    """SEGMENTED rows → Parquet files of the three tables, in place; returns their RECEIPTS."""
    rows: list[Row] = segmented.to_pylist()
    for row in rows:
        row["image_id"] = image_id(row["uri"])
        row["run_id"] = run_id
    stamp = dt.datetime.now(dt.UTC)
    receipts = [
        *_write_failures([r for r in rows if r["stage"] is not None], index, stamp),
        *_write_pictures([r for r in rows if r["stage"] is None], index, spec, model_id, stamp),
    ]
    receipts[0]["replaced"] = [r["image_id"] for r in rows if r["known"]]
    return pa.Table.from_pylist(receipts, RECEIPTS)


def _write_failures(rows: list[Row], index: str, stamp: dt.datetime) -> list[Row]:
    if not rows:
        return []
    failed = [{**row, "failed_at": stamp} for row in rows]
    return [vars(write_file(index, "failures", pa.Table.from_pylist(failed, failures_schema())))]


def _write_pictures(
    rows: list[Row], index: str, spec: ModelSpec, model_id: str, stamp: dt.datetime
) -> list[Row]:
    if not rows:
        return []
    for row in rows:
        row.update(_image_columns(row, spec), model_id=model_id, indexed_at=stamp)
    norms = encode.inverse_norms(np.array([row["feature"] for row in rows], np.float32))
    for row, norm in zip(rows, norms, strict=True):
        row["inv_norm"] = _or_null(norm)
    coverages = [[row[coverage_column(name)] for name in spec.classes] for row in rows]
    order = encode.z_order(np.array(coverages, np.float32))
    images = pa.Table.from_pylist([rows[i] for i in order], images_schema(spec.classes))
    receipts = [vars(write_file(index, "images", images))]
    regions = [region for row in rows for region in _region_rows(row, spec)]
    regions.sort(key=lambda r: (r["class"], r["coverage"], r["image_id"]))
    for name, members in groupby(regions, key=lambda r: str(r["class"])):
        table = pa.Table.from_pylist(list(members), regions_schema()).drop_columns("class")
        receipts.append(vars(write_file(index, "regions", table, name)))
    return receipts


def _or_null(norm: np.float32) -> float | None:
    return None if np.isnan(norm) else float(norm)


def _image_columns(row: Row, spec: ModelSpec) -> Row:
    counts, (grid_h, grid_w) = row["counts"], row["grid"]
    coverage = [count / (grid_h * grid_w) for count in counts]
    largest = max(range(1, len(counts)), key=counts.__getitem__)
    labels = np.frombuffer(row["mask"], np.uint8).reshape(row["mask_shape"])
    return {
        **{coverage_column(n): c for n, c in zip(spec.all_classes, coverage, strict=True)},
        "dominant_class": spec.all_classes[largest if counts[largest] else 0],
        "grid_h": grid_h,
        "grid_w": grid_w,
        "mask_grid": row["labels"],
        "mask": encode.mask_png(labels, list(spec.colours.values())),
    }


def _region_rows(row: Row, spec: ModelSpec) -> list[Row]:
    """One row for each class that is present, with the class's own columns."""
    labels = np.frombuffer(row["labels"], np.uint8).reshape(row["grid"])
    common = np.frombuffer(row["common"], np.uint8).reshape(COMMON_GRID**2)
    features = np.array(row["region_features"], np.float32).reshape(len(spec.all_classes), -1)
    norms = encode.inverse_norms(features)
    shared: Mapping[str, Any] = {k: row[k] for k in ("image_id", "uri", "content_hash", "run_id")}
    regions = []
    for k, name in enumerate(spec.all_classes):
        if row["counts"][k] == 0:
            continue
        box = encode.bounding_box(labels == k)
        regions.append(
            {
                **shared,
                "class": name,
                "coverage": row[coverage_column(name)],
                "cells": row["counts"][k],
                "bbox": dict(zip(("x0", "y0", "x1", "y1"), box, strict=True)),
                "feature": features[k],
                "inv_norm": _or_null(norms[k]),
                "mask_bits": encode.bitmap_words(common == k),
            }
        )
    return regions


def without(rows: pa.Table, image_ids: Sequence[str]) -> pa.Table:
    """Rows of other images than these."""
    return rows.filter(pc.invert(pc.is_in(rows["image_id"], pa.array(image_ids, pa.string()))))
