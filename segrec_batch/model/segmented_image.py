"""The record of one segmented image, and its columns in Arrow tables."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

if TYPE_CHECKING:
    from segrec_batch.model.segmentation import Segmentation

_SHAPE = pa.list_(pa.int32(), 2)

FIELDS = (
    pa.field("grid", _SHAPE),
    pa.field("labels", pa.binary()),
    pa.field("common", pa.binary()),
    pa.field("counts", pa.list_(pa.int64())),
    pa.field("feature", pa.list_(pa.float32())),
    pa.field("region_features", pa.list_(pa.float32())),
    pa.field("sign_bits", pa.list_(pa.int64())),
    pa.field("mask_shape", _SHAPE),
    pa.field("mask", pa.binary()),
)
"""Columns of a segmented image without its pixels; all are NULL where there is none."""
PIXEL_FIELDS = (pa.field("shape", _SHAPE), pa.field("pixels", pa.binary()))
"""Columns of the decoded pixels: their shape (height, width) and the bytes of (H, W, 3) uint8."""


@dataclass(frozen=True)
class SegmentedImage:
    """Class map and features of one image; K classes, class 0 is the background.

    Attributes:
        labels: (h, w) uint8, class map on the grid of the feature layer.
        counts: (K,) int64, cells of each class in `labels`.
        feature: (C,) float32, global average of the feature layer.
        region_features: (K, C) float32, the average inside each class; zero for an absent class.
        mask: (H', W') uint8, class map at the size of the stored mask.
        common: (G, G) uint8, class map on the grid that all images share; None if the image was
            read from the index.
        sign_bits: (⌈C/64⌉,) int64, bits of `feature`; None if the image was read from the index.
        pixels: (H, W, 3) uint8 RGB as the model sees it; None if it is not needed any more.
    """

    labels: NDArray[np.uint8]
    counts: NDArray[np.int64]
    feature: NDArray[np.float32]
    region_features: NDArray[np.float32]
    mask: NDArray[np.uint8]
    common: NDArray[np.uint8] | None = None
    sign_bits: NDArray[np.int64] | None = None
    pixels: NDArray[np.uint8] | None = None

    @classmethod
    def of(
        cls, segmentation: "Segmentation", i: int, pixels: NDArray[np.uint8] | None = None
    ) -> "SegmentedImage":
        """Return image `i` of a batch."""
        return cls(
            labels=segmentation.labels[i],
            counts=segmentation.counts[i],
            feature=segmentation.feature[i],
            region_features=segmentation.region_features[i],
            mask=segmentation.masks[i],
            common=segmentation.common[i],
            sign_bits=segmentation.sign_bits[i],
            pixels=pixels,
        )

    @property
    def coverages(self) -> NDArray[np.float64]:
        """Coverage σ of each class (K,), in [0, 1]."""
        return self.counts / self.labels.size

    def with_pixels(self, pixels: NDArray[np.uint8]) -> "SegmentedImage":
        """Return the image with its pixels (H, W, 3)."""
        return replace(self, pixels=pixels)


def to_arrow(images: Sequence[SegmentedImage | None]) -> list[pa.Array]:
    """Return the columns FIELDS of images; None becomes NULL."""
    columns: list[list[Any]] = [[] for _ in FIELDS]
    for image in images:
        values: tuple[Any, ...] = (None,) * len(FIELDS)
        if image is not None and image.common is not None:
            values = (
                image.labels.shape,
                image.labels.tobytes(),
                image.common.tobytes(),
                image.counts,
                image.feature,
                image.region_features.ravel(),
                image.sign_bits,
                image.mask.shape,
                image.mask.tobytes(),
            )
        for column, value in zip(columns, values, strict=True):
            column.append(value)
    return [pa.array(column, field.type) for column, field in zip(columns, FIELDS, strict=True)]


def from_arrow(table: pa.Table) -> list[SegmentedImage | None]:
    """Return the images of a table with the columns FIELDS and PIXEL_FIELDS; None for NULL."""
    names = [field.name for field in (*FIELDS, *PIXEL_FIELDS)]
    return [
        None if row["labels"] is None else _from_row(row) for row in table.select(names).to_pylist()
    ]


def _from_row(row: dict[str, Any]) -> SegmentedImage:
    feature = np.array(row["feature"], np.float32)
    counts = np.array(row["counts"], np.int64)
    common = np.frombuffer(row["common"], np.uint8)
    side = int(len(common) ** 0.5)
    pixels = row["pixels"]
    return SegmentedImage(
        labels=np.frombuffer(row["labels"], np.uint8).reshape(row["grid"]),
        counts=counts,
        feature=feature,
        region_features=np.array(row["region_features"], np.float32).reshape(len(counts), -1),
        mask=np.frombuffer(row["mask"], np.uint8).reshape(row["mask_shape"]),
        common=common.reshape(side, side),
        sign_bits=np.array(row["sign_bits"], np.int64),
        pixels=None if pixels is None else decode_pixels(pixels, row["shape"]),
    )


def decode_pixels(content: Any, shape: Sequence[int]) -> NDArray[np.uint8]:
    """Return pixels (H, W, 3) from their bytes and the shape (height, width)."""
    return np.frombuffer(content, np.uint8).reshape(*shape, 3)
