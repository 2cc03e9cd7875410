"""Rows of the index out of what the stages found: computed, copied from an equal image, failed."""

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segrec_batch.descriptors.inputs import UNDEFINED
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
from segrec_batch.model.spec import COMMON_GRID, ModelSpec

Row = dict[str, Any]

_SOURCE = ("image_id", "uri", "source_size", "source_etag", "run_id")  # not of the content


def failure_rows(rows: Sequence[Row]) -> Iterator[Rows]:
    """Rows of `failures` for those that failed."""
    stamp = dt.datetime.now(dt.UTC)
    failed = [{**row, "failed_at": stamp} for row in rows]
    if failed:
        yield "failures", None, pa.Table.from_pylist(failed, failures_schema())


def image_rows(rows: Sequence[Row], spec: ModelSpec) -> Iterator[Rows]:
    """Rows of `images` and `regions` for images that were segmented."""
    if not rows:
        return
    stamp = dt.datetime.now(dt.UTC)
    for row in rows:
        row.update(_image_columns(row, spec), indexed_at=stamp)
    norms = column_values.inverse_norms(np.array([row["feature"] for row in rows], np.float32))
    for row, norm in zip(rows, norms, strict=True):
        row["inv_norm"] = _or_null(norm)
    yield "images", None, pa.Table.from_pylist(rows, images_schema(spec.classes))
    regions = [region for row in rows for region in _region_rows(row, spec)]
    regions.sort(key=lambda r: str(r["class"]))
    for name, members in groupby(regions, key=lambda r: str(r["class"])):
        table = pa.Table.from_pylist(list(members), regions_schema())
        yield "regions", name, table.drop_columns("class")


def descriptor_rows(rows: Sequence[Row]) -> Iterator[Rows]:
    """Rows of `descriptors` for images that were described."""
    entries = [{**entry, **_shared(row)} for row in rows for entry in row["described"]]
    entries.sort(key=lambda entry: str(entry["descriptor"]))
    for name, members in groupby(entries, key=lambda entry: str(entry["descriptor"])):
        yield "descriptors", name, vector_table(list(members))


def vector_table(entries: Sequence[Row]) -> pa.Table:
    """Rows of `descriptors`, all of one: entries of DESCRIBED with the columns of their images."""
    vectors = [
        None if e["vector"] is None else np.frombuffer(e["vector"], np.float32) for e in entries
    ]
    fields = [field for field in descriptors_schema() if field.name != "descriptor"]
    columns = [
        pa.array(vectors if f.name == "vector" else [e[f.name] for e in entries], f.type)
        for f in fields
    ]
    return pa.table(columns, schema=pa.schema(fields))


def copied_rows(rows: Sequence[Row], index: str, spec: ModelSpec) -> Iterator[Rows]:
    """Rows of `images`, `regions` and `descriptors` for sources with the bytes of images in the
    index.
    """
    by_part = sorted(rows, key=lambda row: str(row["donor"]["part"]))
    for part, members in groupby(by_part, key=lambda row: str(row["donor"]["part"])):
        alike = list(members)
        yield from _copied(alike, index, part)
        yield from _copied_vectors(alike, index, part, spec)


def _copied_vectors(rows: Sequence[Row], index: str, part: str, spec: ModelSpec) -> Iterator[Rows]:
    for descriptor in spec.descriptors:
        path = path_in_part("descriptors", part, descriptor.id)
        with suppress(FileNotFoundError):  # the part is to be described later; so is the copy
            found = read_path(index, "descriptors", path)
            # that another file could not be read again says nothing of this one
            own = pc.equal(pc.fill_null(found["reason"], UNDEFINED), UNDEFINED)
            yield "descriptors", descriptor.id, _as_source(found.filter(own), rows)


def _copied(rows: Sequence[Row], index: str, part: str) -> Iterator[Rows]:
    images = _as_source(read_path(index, "images", path_in_part("images", part)), rows)
    yield "images", None, images
    for column in images.column_names:
        name = column.removeprefix(coverage_column(""))
        if name != column and any(images[column].to_pylist()):
            path = path_in_part("regions", part, name)
            yield "regions", name, _as_source(read_path(index, "regions", path), rows)


def _as_source(donors: pa.Table, rows: Sequence[Row]) -> pa.Table:
    """The donors' rows as rows of those that copy them; a donor may have several or none here."""
    places = {donor: i for i, donor in enumerate(donors["image_id"].to_pylist())}
    pairs = [(places[d], row) for row in rows if (d := row["donor"]["image_id"]) in places]
    copied = donors.take(pa.array([place for place, _ in pairs], pa.int64()))
    for i, field in enumerate(copied.schema):
        if field.name in _SOURCE:
            values = pa.array([row[field.name] for _, row in pairs], field.type)
            copied = copied.set_column(i, field, values)
    return copied


def _shared(row: Row) -> Mapping[str, Any]:
    """What rows of other tables have of their image's."""
    return {k: row[k] for k in ("image_id", "uri", "content_hash", "run_id")}


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
        "mask": column_values.mask_png(labels, list(spec.colours.values())),
    }


def _region_rows(row: Row, spec: ModelSpec) -> list[Row]:
    """One row for each class that is present, with the class's own columns."""
    labels = np.frombuffer(row["labels"], np.uint8).reshape(row["grid"])
    common = np.frombuffer(row["common"], np.uint8).reshape(COMMON_GRID**2)
    features = np.array(row["region_features"], np.float32).reshape(len(spec.all_classes), -1)
    norms = column_values.inverse_norms(features)
    shared = _shared(row)
    regions = []
    for k, name in enumerate(spec.all_classes):
        if row["counts"][k] == 0:
            continue
        box = column_values.bounding_box(labels == k)
        regions.append(
            {
                **shared,
                "class": name,
                "coverage": row[coverage_column(name)],
                "cells": row["counts"][k],
                "bbox": dict(zip(("x0", "y0", "x1", "y1"), box, strict=True)),
                "feature": features[k],
                "inv_norm": _or_null(norms[k]),
                "mask_bits": column_values.bitmap_words(common == k),
            }
        )
    return regions
