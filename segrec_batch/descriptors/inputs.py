"""Inputs and outputs of descriptors: segmented images, new or read from the index; vectors.

The labels of pixels come from the stored mask, so that a descriptor has the same input when an
image is indexed and when a backfill adds its vectors later.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image

from segrec_batch.common.errors import ImageError, IndexStateError
from segrec_batch.descriptors import ImageBatch
from segrec_batch.images import sandbox
from segrec_batch.images.decode import Shape, mask_shape
from segrec_batch.model.segmented_image import SegmentedImage
from segrec_batch.model.spec import ModelSpec
from segrec_batch.sources.roots import ImageRoots, OutsideRootsError, fetch_images

UNDEFINED = "the descriptor is not defined for this image"
"""Reason of a row of `descriptors` that another attempt would not change."""
CHANGED = "the image is not the one that was indexed"
OUTSIDE = "the image lies below no folder that the index was made from"
READ = "read: "
"""Prefix of the reasons of rows of `descriptors` whose images could not be read."""


@dataclass(frozen=True)
class StoredImage:
    """An image of the index; `reason` says why its pixels could not be read."""

    image_id: str
    uri: str
    content_hash: str
    image: SegmentedImage
    reason: str | None = None


@dataclass(frozen=True)
class DescriptorVector:
    """The vector of one image by one descriptor, or the reason why it has none.

    Attributes:
        descriptor: `DescriptorSpec.id`.
        category: value by which a search can be restricted, or None.
        vector: (length,) float32, or None.
        reason: None if there is a vector.
    """

    descriptor: str
    category: str | None = None
    vector: NDArray[np.float32] | None = None
    reason: str | None = None


def assemble(images: Sequence[SegmentedImage], pixels: bool) -> ImageBatch:
    """Join images into a batch; with `pixels`, all must have pixels of one shape."""
    n = len(images)
    batch = [image.pixels for image in images if pixels and image.pixels is not None]
    return ImageBatch(
        pixels=np.stack(batch) if pixels else np.zeros((n, 0, 0, 3), np.uint8),
        labels=np.stack([_pixel_labels(image) for image in images])
        if pixels
        else np.zeros((n, 0, 0), np.uint8),
        feature=np.stack([image.feature for image in images]),
        region_features=np.stack([image.region_features for image in images]),
        counts=np.stack([image.counts for image in images]),
    )


def group_by_shape(images: Sequence[SegmentedImage], size: int) -> Iterator[list[int]]:
    """Yield the positions of images with pixels, at most `size` of one shape at a time."""

    def shape(i: int) -> tuple[int, ...]:
        pixels = images[i].pixels
        return () if pixels is None else pixels.shape

    positions = sorted((i for i in range(len(images)) if shape(i)), key=shape)
    for _, members in groupby(positions, key=shape):
        group = list(members)
        yield from (group[i : i + size] for i in range(0, len(group), size))


def stored_images(
    images: pa.Table, regions: Mapping[str, pa.Table], spec: ModelSpec
) -> list[StoredImage]:
    """Return the images of rows of the table `images`, without pixels.

    Args:
        images: at least one row.
        regions: rows of the table `regions` by class; rows of other images are ignored.

    Raises:
        IndexStateError: a mask cannot be read.
    """
    rows: list[dict[str, Any]] = images.to_pylist()
    zeros = np.zeros((len(spec.all_classes), len(rows[0]["feature"])), np.float32)
    features = {row["image_id"]: zeros.copy() for row in rows}
    for k, name in enumerate(spec.all_classes):
        if name not in regions:
            continue
        is_listed = pc.is_in(regions[name]["image_id"], images["image_id"].combine_chunks())
        for region in regions[name].filter(is_listed).select(["image_id", "feature"]).to_pylist():
            features[region["image_id"]][k] = region["feature"]
    return [_stored_image(row, features[row["image_id"]], spec) for row in rows]


def _stored_image(
    row: dict[str, Any], region_features: NDArray[np.float32], spec: ModelSpec
) -> StoredImage:
    labels = np.frombuffer(row["mask_grid"], np.uint8)
    image = SegmentedImage(
        labels=labels.reshape(row["grid_h"], row["grid_w"]),
        counts=np.bincount(labels, minlength=len(spec.all_classes)),
        feature=np.array(row["feature"], np.float32),
        region_features=region_features,
        mask=_decode_mask(row),
    )
    return StoredImage(row["image_id"], row["uri"], row["content_hash"], image)


def _decode_mask(row: dict[str, Any]) -> NDArray[np.uint8]:
    """Return the stored class map of an image. Raises IndexStateError if it cannot be read."""
    try:
        labels = sandbox.shared().decode_mask(row["mask"])
        if labels.shape != mask_shape(row["height"], row["width"]):
            raise ImageError("decode", f"{labels.shape[1]} × {labels.shape[0]} pixels")
    except ImageError as error:
        raise IndexStateError(
            f"{row['uri']}: its mask in the index is damaged ({error.reason}); run "
            "`segrec maintain verify` for a list of all damage"
        ) from error
    return labels.astype(np.uint8, copy=False)


def read_pixels(
    images: Sequence[StoredImage], shapes: Sequence[Shape], roots: ImageRoots
) -> list[StoredImage]:
    """Read and decode stored images; return each with pixels or a reason.

    Images outside the roots are not read.

    Raises:
        StorageError: the store does not answer.
    """
    contents = fetch_images([image.uri for image in images], roots)
    return [
        _add_pixels(image, content, shapes) for image, content in zip(images, contents, strict=True)
    ]


def _add_pixels(
    stored: StoredImage, content: bytes | OSError, shapes: Sequence[Shape]
) -> StoredImage:
    try:
        pixels = _decode(stored, content, shapes)
    except ImageError as error:
        return replace(stored, reason=f"{error.stage}: {error.reason}")
    return replace(stored, image=stored.image.with_pixels(pixels))


def _decode(
    stored: StoredImage, content: bytes | OSError, shapes: Sequence[Shape]
) -> NDArray[np.uint8]:
    if isinstance(content, OutsideRootsError):
        raise ImageError("read", OUTSIDE)
    if isinstance(content, OSError):
        raise ImageError("read", f"{type(content).__name__}: {content}")
    if hashlib.blake2b(content, digest_size=16).hexdigest() != stored.content_hash:
        raise ImageError("read", CHANGED)
    return sandbox.shared().decode(content, shapes).pixels


def is_unread(reason: str | None) -> bool:
    """Return True if the image could not be read, so that the next run tries again."""
    return bool(reason and reason.startswith(READ) and reason != f"{READ}{CHANGED}")


def is_outside(reason: str | None) -> bool:
    """Return True if the image is below no root of its index."""
    return reason == f"{READ}{OUTSIDE}"


def _pixel_labels(image: SegmentedImage) -> NDArray[np.uint8]:
    """Return the mask resized to the pixels of the image; each pixel has the nearest label."""
    assert image.pixels is not None  # noqa: S101 - of images with pixels only
    height, width, _ = image.pixels.shape
    mask = Image.fromarray(image.mask)
    return np.asarray(mask.resize((width, height), Image.Resampling.NEAREST))
