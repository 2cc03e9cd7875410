"""Rows of the index: computed from segmented images, copied from equal images, failed."""

import datetime as dt
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from segrec_batch.descriptors.inputs import UNDEFINED, DescriptorVector
from segrec_batch.index import column_values
from segrec_batch.index.files import path_in_part
from segrec_batch.index.parts import Rows, read_path
from segrec_batch.index.schema import (
    coverage_column,
    descriptors_schema,
    failures_schema,
    images_schema,
    regions_schema,
)
from segrec_batch.model.segmented_image import SegmentedImage
from segrec_batch.model.spec import ModelSpec

_SOURCE = ("image_id", "uri", "source_size", "source_etag", "run_id")  # columns of a source
_SHARED = ("image_id", "uri", "content_hash", "run_id")  # columns of companions of `images`


def failure_rows(sources: pa.Table) -> Iterator[Rows]:
    """Yield the rows of `failures` of failed sources, which have a stage and a reason."""
    if sources.num_rows:
        schema = failures_schema()
        yield "failures", None, _select(sources, schema, {"failed_at": _now(sources.num_rows)})


def image_rows(
    sources: pa.Table, images: Sequence[SegmentedImage], spec: ModelSpec
) -> Iterator[Rows]:
    """Yield the rows of `images` and `regions` of segmented images.

    Args:
        sources: the columns of `images` that do not come from the model, for each image.
    """
    if not images:
        return
    norms = column_values.inverse_norms(np.stack([image.feature for image in images]))
    coverages = np.stack([image.coverages for image in images])
    columns: dict[str, Any] = {
        **{coverage_column(n): c for n, c in zip(spec.all_classes, coverages.T, strict=True)},
        "dominant_class": [spec.all_classes[_dominant(image.counts)] for image in images],
        "grid_h": [image.labels.shape[0] for image in images],
        "grid_w": [image.labels.shape[1] for image in images],
        "mask_grid": [image.labels.tobytes() for image in images],
        "mask": [
            column_values.mask_png(image.mask, list(spec.colours.values())) for image in images
        ],
        "feature": [image.feature for image in images],
        "inv_norm": [_null_if_nan(norm) for norm in norms],
        "sign_bits": [image.sign_bits for image in images],
        "indexed_at": _now(len(images)),
    }
    yield "images", None, _select(sources, images_schema(spec.classes), columns)
    yield from _region_rows(sources, images, spec)


def _region_rows(
    sources: pa.Table, images: Sequence[SegmentedImage], spec: ModelSpec
) -> Iterator[Rows]:
    """Yield the rows of `regions`, sorted by class name."""
    norms = [column_values.inverse_norms(image.region_features) for image in images]
    schema = pa.schema([field for field in regions_schema() if field.name != "class"])
    for k, name in sorted(enumerate(spec.all_classes), key=lambda item: item[1]):
        owners = [i for i, image in enumerate(images) if image.counts[k]]
        if not owners:
            continue
        own = [images[i] for i in owners]
        columns = {
            "coverage": [image.coverages[k] for image in own],
            "cells": [image.counts[k] for image in own],
            "bbox": [_bbox(image.labels == k) for image in own],
            "feature": [image.region_features[k] for image in own],
            "inv_norm": [_null_if_nan(norms[i][k]) for i in owners],
            "mask_bits": [_bitmap(image, k) for image in own],
        }
        yield "regions", name, _select(sources.take(owners), schema, columns)


def descriptor_rows(
    sources: pa.Table, vectors: Sequence[Sequence[DescriptorVector]]
) -> Iterator[Rows]:
    """Yield the rows of `descriptors`, sorted by descriptor.

    Args:
        sources: the columns that all tables share, for each image.
        vectors: of each image.
    """
    entries = [(i, entry) for i, of_image in enumerate(vectors) for entry in of_image]
    entries.sort(key=lambda item: item[1].descriptor)
    for name, members in groupby(entries, key=lambda item: item[1].descriptor):
        group = list(members)
        owners = sources.take([i for i, _ in group])
        yield "descriptors", name, vector_table(owners, [entry for _, entry in group])


def vector_table(sources: pa.Table, vectors: Sequence[DescriptorVector]) -> pa.Table:
    """Return rows of `descriptors` of one descriptor, one for each source."""
    schema = pa.schema([field for field in descriptors_schema() if field.name != "descriptor"])
    columns = {
        "category": [entry.category for entry in vectors],
        "vector": [entry.vector for entry in vectors],
        "reason": [entry.reason for entry in vectors],
    }
    return _select(sources, schema, columns)


def copied_rows(sources: pa.Table, index: str, spec: ModelSpec) -> Iterator[Rows]:
    """Yield rows of `images`, `regions` and `descriptors` of sources with a donor.

    The donor is an image of the index with the same bytes.
    """
    parts = [str(donor["part"]) for donor in sources["donor"].to_pylist()]
    order = sorted(range(len(parts)), key=parts.__getitem__)
    for part, members in groupby(order, key=parts.__getitem__):
        copies = sources.take(list(members))
        yield from _copied_images(copies, index, part)
        yield from _copied_vectors(copies, index, part, spec)


def _copied_vectors(sources: pa.Table, index: str, part: str, spec: ModelSpec) -> Iterator[Rows]:
    for descriptor in spec.descriptors:
        path = path_in_part("descriptors", part, descriptor.id)
        with suppress(FileNotFoundError):  # the donors have no vectors yet, nor have their copies
            rows = read_path(index, "descriptors", path)
            # a donor that could not be read says nothing of its copy
            valid = pc.equal(pc.fill_null(rows["reason"], UNDEFINED), UNDEFINED)
            yield "descriptors", descriptor.id, _as_copies(rows.filter(valid), sources)


def _copied_images(sources: pa.Table, index: str, part: str) -> Iterator[Rows]:
    images = _as_copies(read_path(index, "images", path_in_part("images", part)), sources)
    yield "images", None, images
    for column in images.column_names:
        name = column.removeprefix(coverage_column(""))
        if name != column and any(images[column].to_pylist()):
            path = path_in_part("regions", part, name)
            yield "regions", name, _as_copies(read_path(index, "regions", path), sources)


def _as_copies(donors: pa.Table, sources: pa.Table) -> pa.Table:
    """Return the rows of donors as rows of the sources; a donor may have several or none."""
    places = {donor: i for i, donor in enumerate(donors["image_id"].to_pylist())}
    ids = [donor["image_id"] for donor in sources["donor"].to_pylist()]
    copies = [i for i, donor in enumerate(ids) if donor in places]
    rows = donors.take(pa.array([places[ids[i]] for i in copies], pa.int64()))
    own = sources.take(pa.array(copies, pa.int64()))
    for i, field in enumerate(rows.schema):
        if field.name in _SOURCE:
            rows = rows.set_column(i, field, own[field.name].cast(field.type))
    return rows


def _select(sources: pa.Table, schema: pa.Schema, columns: dict[str, Any]) -> pa.Table:
    """Return a table of a schema from computed columns and, for the rest, those of sources."""
    arrays = [
        pa.array(columns[field.name], field.type)
        if field.name in columns
        else sources[field.name].cast(field.type)
        for field in schema
    ]
    return pa.table(arrays, schema=schema)


def _now(count: int) -> list[dt.datetime]:
    return [dt.datetime.now(dt.UTC)] * count


def _dominant(counts: NDArray[np.int64]) -> int:
    """Return the foreground class with the most cells, the first of equals; 0 without any."""
    largest = int(counts[1:].argmax()) + 1
    return largest if counts[largest] else 0


def _null_if_nan(norm: np.floating) -> float | None:
    return None if np.isnan(norm) else float(norm)


def _bbox(cells: NDArray[np.bool_]) -> dict[str, float]:
    return dict(zip(("x0", "y0", "x1", "y1"), column_values.bounding_box(cells), strict=True))


def _bitmap(image: SegmentedImage, k: int) -> NDArray[np.int64]:
    assert image.common is not None  # noqa: S101 - images from the model have it
    return column_values.bitmap_words((image.common == k).ravel())
