"""Make rows of the index: from segmented images, from copies, and from failures."""

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
from segrec_batch.index.parts import Rows, read_rows
from segrec_batch.index.schema import (
    coverage_column,
    descriptors_schema,
    failures_schema,
    images_schema,
    regions_schema,
)
from segrec_batch.model.segmented_image import SegmentedImage
from segrec_batch.model.spec import ModelSpec

_SOURCE = (
    "image_id",
    "uri",
    "source_size",
    "source_etag",
    "run_id",
)  # columns that describe a source


def make_failure_rows(sources: pa.Table) -> Iterator[Rows]:
    """Yield the rows of `failures` for failed sources, which have a stage and a reason."""
    if sources.num_rows:
        schema = failures_schema()
        yield (
            "failures",
            None,
            _select(sources, schema, {"failed_at": _repeat_now(sources.num_rows)}),
        )


def make_image_rows(
    sources: pa.Table, images: Sequence[SegmentedImage], spec: ModelSpec
) -> Iterator[Rows]:
    """Yield the rows of `images` and `regions` for segmented images.

    Args:
        sources: the columns of `images` that do not come from the model, for each image.
    """
    if not images:
        return
    norms = column_values.compute_inverse_norms(np.stack([image.feature for image in images]))
    coverages = np.stack([image.coverages for image in images])
    columns: dict[str, Any] = {
        **{coverage_column(n): c for n, c in zip(spec.all_classes, coverages.T, strict=True)},
        "dominant_class": [spec.all_classes[_find_dominant(image.counts)] for image in images],
        "grid_h": [image.labels.shape[0] for image in images],
        "grid_w": [image.labels.shape[1] for image in images],
        "mask_grid": [image.labels.tobytes() for image in images],
        "mask": [
            column_values.encode_mask(image.mask, list(spec.colours.values())) for image in images
        ],
        "feature": [image.feature for image in images],
        "inv_norm": [_null_if_nan(norm) for norm in norms],
        "sign_bits": [image.sign_bits for image in images],
        "indexed_at": _repeat_now(len(images)),
    }
    yield "images", None, _select(sources, images_schema(spec.classes), columns)
    yield from _make_region_rows(sources, images, spec)


def _make_region_rows(
    sources: pa.Table, images: Sequence[SegmentedImage], spec: ModelSpec
) -> Iterator[Rows]:
    """Yield the rows of `regions`, sorted by class name."""
    norms = [column_values.compute_inverse_norms(image.region_features) for image in images]
    schema = pa.schema([field for field in regions_schema() if field.name != "class"])
    for k, name in sorted(enumerate(spec.all_classes), key=lambda item: item[1]):
        positions = [i for i, image in enumerate(images) if image.counts[k]]
        if not positions:
            continue
        with_class = [images[i] for i in positions]
        columns = {
            "coverage": [image.coverages[k] for image in with_class],
            "cells": [image.counts[k] for image in with_class],
            "bbox": [_compute_bbox(image.labels == k) for image in with_class],
            "feature": [image.region_features[k] for image in with_class],
            "inv_norm": [_null_if_nan(norms[i][k]) for i in positions],
            "mask_bits": [_compute_mask_bits(image, k) for image in with_class],
        }
        yield "regions", name, _select(sources.take(positions), schema, columns)


def make_descriptor_rows(
    sources: pa.Table, vectors: Sequence[Sequence[DescriptorVector]]
) -> Iterator[Rows]:
    """Yield the rows of `descriptors`, sorted by descriptor id.

    Args:
        sources: the columns that all tables share, for each image.
        vectors: vectors of each image.
    """
    entries = [(i, entry) for i, image_vectors in enumerate(vectors) for entry in image_vectors]
    entries.sort(key=lambda item: item[1].descriptor)
    for name, members in groupby(entries, key=lambda item: item[1].descriptor):
        group = list(members)
        owners = sources.take([i for i, _ in group])
        yield "descriptors", name, _make_vector_table(owners, [entry for _, entry in group])


def _make_vector_table(sources: pa.Table, vectors: Sequence[DescriptorVector]) -> pa.Table:
    """Return the rows of one descriptor: one vector for each source."""
    schema = pa.schema([field for field in descriptors_schema() if field.name != "descriptor"])
    columns = {
        "category": [entry.category for entry in vectors],
        "vector": [entry.vector for entry in vectors],
        "reason": [entry.reason for entry in vectors],
    }
    return _select(sources, schema, columns)


def make_copied_rows(sources: pa.Table, index: str, spec: ModelSpec) -> Iterator[Rows]:
    """Yield rows of `images`, `regions` and `descriptors`, copied from the donor of each source.

    The donor is an image of the index with the same bytes.
    """
    parts = [str(donor["part"]) for donor in sources["donor"].to_pylist()]
    order = sorted(range(len(parts)), key=parts.__getitem__)
    for part, members in groupby(order, key=parts.__getitem__):
        copies = sources.take(list(members))
        yield from _copy_images(copies, index, part)
        yield from _copy_vectors(copies, index, part, spec)


def _copy_vectors(sources: pa.Table, index: str, part: str, spec: ModelSpec) -> Iterator[Rows]:
    for descriptor in spec.descriptors:
        path = path_in_part("descriptors", part, descriptor.id)
        with suppress(
            FileNotFoundError
        ):  # the part of the donors has no vectors of this descriptor
            rows = read_rows(index, "descriptors", path)
            # a donor without a vector because it could not be read gives its copy no row
            valid = pc.equal(pc.fill_null(rows["reason"], UNDEFINED), UNDEFINED)
            yield "descriptors", descriptor.id, _assign_rows(rows.filter(valid), sources)


def _copy_images(sources: pa.Table, index: str, part: str) -> Iterator[Rows]:
    images = _assign_rows(read_rows(index, "images", path_in_part("images", part)), sources)
    yield "images", None, images
    for column in images.column_names:
        name = column.removeprefix(coverage_column(""))
        if name != column and any(images[column].to_pylist()):
            path = path_in_part("regions", part, name)
            yield "regions", name, _assign_rows(read_rows(index, "regions", path), sources)


def _assign_rows(donors: pa.Table, sources: pa.Table) -> pa.Table:
    """Return the rows of donors with the columns of the sources that copy them.

    A donor may have several copies, or none; a source whose donor has no row is left out.
    """
    positions = {donor: i for i, donor in enumerate(donors["image_id"].to_pylist())}
    donor_ids = [donor["image_id"] for donor in sources["donor"].to_pylist()]
    copies = [i for i, donor in enumerate(donor_ids) if donor in positions]
    rows = donors.take(pa.array([positions[donor_ids[i]] for i in copies], pa.int64()))
    copied_to = sources.take(pa.array(copies, pa.int64()))
    for i, field in enumerate(rows.schema):
        if field.name in _SOURCE:
            rows = rows.set_column(i, field, copied_to[field.name].cast(field.type))
    return rows


def _select(sources: pa.Table, schema: pa.Schema, columns: dict[str, Any]) -> pa.Table:
    """Return a table of a schema from computed columns; the other columns come from the sources."""
    arrays = [
        pa.array(columns[field.name], field.type)
        if field.name in columns
        else sources[field.name].cast(field.type)
        for field in schema
    ]
    return pa.table(arrays, schema=schema)


def _repeat_now(count: int) -> list[dt.datetime]:
    return [dt.datetime.now(dt.UTC)] * count


def _find_dominant(counts: NDArray[np.int64]) -> int:
    """Return the foreground class with most cells, the first if several have; 0 if none has any."""
    largest = int(counts[1:].argmax()) + 1
    return largest if counts[largest] else 0


def _null_if_nan(norm: np.floating) -> float | None:
    return None if np.isnan(norm) else float(norm)


def _compute_bbox(cells: NDArray[np.bool_]) -> dict[str, float]:
    return dict(
        zip(("x0", "y0", "x1", "y1"), column_values.compute_bounding_box(cells), strict=True)
    )


def _compute_mask_bits(image: SegmentedImage, k: int) -> NDArray[np.int64]:
    assert image.common is not None  # noqa: S101 - set in images from the model
    return column_values.pack_bitmaps((image.common == k).ravel())
