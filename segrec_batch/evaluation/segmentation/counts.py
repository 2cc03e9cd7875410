"""Counts of the segmentation report: one row per image, method and split."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from segrec_batch.labels.labelled import VOID
from segrec_batch.model.names import BACKGROUND
from segrec_batch.sources.strict_json import parse_json

SEGREC = "segrec"
"""Name of the proposed method: a model bundle run by an engine."""

Confusion = NDArray[np.int64]
Shares = NDArray[np.float64]

SCHEMA = pa.schema([
    pa.field("split", pa.string(), nullable=False),
    pa.field("method", pa.string(), nullable=False),
    pa.field("image", pa.string(), nullable=False),  # file name
    pa.field("group", pa.string(), nullable=False),
    pa.field("luminance", pa.float64(), nullable=False),  # mean over the image, 0 to 1
    # K × K pixels without void, rows true, columns predicted, background first
    pa.field("confusion", pa.list_(pa.int64()), nullable=False),
    # cells of each class on the feature grid; null for a method without one
    pa.field("cells", pa.list_(pa.int64())),
])  # fmt: skip


def count_pixels(truth: NDArray[np.int16], predicted: NDArray[np.uint8], n: int) -> Confusion:
    """Return the (n, n) confusion matrix of two class maps of one shape, without void pixels."""
    known = truth != VOID
    pairs = truth[known].astype(np.int64) * n + predicted[known]
    return np.bincount(pairs, minlength=n * n).reshape(n, n)


def counts_table(rows: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> pa.Table:
    """Return rows of `SCHEMA` as a table with the names of the foreground classes in its schema."""
    names = json.dumps([BACKGROUND, *classes])
    return pa.Table.from_pylist(list(rows), SCHEMA.with_metadata({"classes": names}))


def class_names(counts: pa.Table) -> list[str]:
    """Return the names of the K classes, background first."""
    return [str(name) for name in parse_json((counts.schema.metadata or {})[b"classes"])]


@dataclass(frozen=True)
class MethodCounts:
    """Counts of one method on one split.

    images: n names, sorted. confusion: (n, K, K) pixels, rows true. cells: (n, K) float64; for a
    method without a feature grid the predicted pixels that are not void. luminance: (n,).
    """

    split: str
    method: str
    images: tuple[str, ...]
    confusion: Confusion
    cells: NDArray[np.float64]
    luminance: NDArray[np.float64]

    @property
    def labelled(self) -> Confusion:
        """Labelled pixels of each class, (n, K)."""
        return np.asarray(self.confusion.sum(axis=2))


def counts_by_method(counts: pa.Table) -> Iterator[MethodCounts]:
    """Yield the counts of each split and method in order of their first occurrence."""
    k = len(class_names(counts))
    parts: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in counts.to_pylist():
        parts.setdefault((row["split"], row["method"]), []).append(row)
    for (split, method), rows in parts.items():
        rows.sort(key=lambda row: row["image"])
        images = tuple(row["image"] for row in rows)
        confusion = np.array([row["confusion"] for row in rows], np.int64).reshape(-1, k, k)
        cells = confusion.sum(axis=1).astype(np.float64)
        for i, row in enumerate(rows):
            if row["cells"] is not None:
                cells[i] = row["cells"]
        luminance = np.array([row["luminance"] for row in rows])
        yield MethodCounts(split, method, images, confusion, cells, luminance)


def shares(counts: NDArray[np.int64] | Shares) -> Shares:
    """Return counts (n, K) divided by the sum of their row; NaN where the sum is 0."""
    total = counts.sum(axis=1, keepdims=True).astype(np.float64)
    return np.asarray(np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0))
