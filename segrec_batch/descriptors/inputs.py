"""What descriptors see: images with what the model finds in them, or found when it indexed them.

A *row* here has `shape` and `pixels` of the decoded image and, as in SEGMENTED, `mask`,
`mask_shape`, `counts`, `feature` and `region_features`. The labels of an image's pixels are those
of its stored mask, so that a descriptor that is switched on later sees what it would have seen in
the first place.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
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
from segrec_batch.model.spec import ModelSpec
from segrec_batch.sources.roots import ImageRoots, OutsideRootsError, fetch_images

Row = dict[str, Any]

UNDEFINED = "the descriptor is not defined for this image"
"""The reason of a row of `descriptors` that trying again would not change."""
CHANGED = "the image is not the one that was indexed"
OUTSIDE = "the image lies below no folder that the index was made from"
READ = "read: "
"""How the reasons of rows of `descriptors` begin whose images could not be read."""


def assemble(rows: Sequence[Row], classes: int, pixels: bool) -> ImageBatch:
    """Rows of one shape as an ImageBatch; `classes` counts the background."""
    n = len(rows)
    height, width = rows[0]["shape"] if pixels else (0, 0)
    images = [_bytes(row["pixels"], (height, width, 3)) for row in rows if pixels]
    labels = [_labels(row, (height, width)) for row in rows if pixels]
    return ImageBatch(
        pixels=np.stack(images) if pixels else np.zeros((n, 0, 0, 3), np.uint8),
        labels=np.stack(labels) if pixels else np.zeros((n, 0, 0), np.uint8),
        feature=np.array([row["feature"] for row in rows], np.float32),
        region_features=np.array([row["region_features"] for row in rows], np.float32).reshape(
            n, classes, -1
        ),
        counts=np.array([row["counts"] for row in rows], np.int64),
    )


def by_shape(rows: Sequence[Row], size: int) -> Iterator[list[Row]]:
    """Rows that have pixels, those of one shape together, at most `size` at a time."""
    good = sorted((row for row in rows if row["shape"]), key=lambda row: tuple(row["shape"]))
    for _, members in groupby(good, key=lambda row: tuple(row["shape"])):
        alike = list(members)
        yield from (alike[i : i + size] for i in range(0, len(alike), size))


def stored_rows(images: pa.Table, regions: Mapping[str, pa.Table], spec: ModelSpec) -> list[Row]:
    """Rows of the table `images` without pixels; `regions` has theirs, by class, and maybe others.

    Beside the columns of `images` a row has what the model found, as it was stored. There is at
    least one. Raises IndexStateError for a mask that cannot be read.
    """
    rows: list[Row] = images.to_pylist()
    blank = np.zeros((len(spec.all_classes), len(rows[0]["feature"])), np.float32)
    found = {row["image_id"]: blank.copy() for row in rows}
    for k, name in enumerate(spec.all_classes):
        if name not in regions:
            continue
        own = pc.is_in(regions[name]["image_id"], images["image_id"].combine_chunks())
        for region in regions[name].filter(own).select(["image_id", "feature"]).to_pylist():
            found[region["image_id"]][k] = region["feature"]
    for row in rows:
        mask = _stored_mask(row)
        labels = np.frombuffer(row["mask_grid"], np.uint8)
        row["mask"], row["mask_shape"] = mask.tobytes(), mask.shape
        row["counts"] = np.bincount(labels, minlength=len(spec.all_classes))
        row["region_features"] = found[row["image_id"]].ravel()
    return rows


def _stored_mask(row: Row) -> NDArray[np.integer[Any]]:
    """The class map of an image at its stored size. Raises IndexStateError if there is none."""
    try:
        labels = sandbox.shared().decode_mask(row["mask"])
        if labels.shape != mask_shape(row["height"], row["width"]):
            raise ImageError("decode", f"{labels.shape[1]} × {labels.shape[0]} pixels")
    except ImageError as error:
        raise IndexStateError(
            f"{row['uri']}: its mask in the index is damaged ({error.reason}); segrec maintain "
            "verify names all that is"
        ) from error
    return labels


def read_pixels(rows: Sequence[Row], shapes: Sequence[Shape], roots: ImageRoots) -> None:
    """Read and decode the images of stored rows: `shape` and `pixels`, or None and a `reason`.

    Those that do not lie below the roots are not read. Raises StorageError if the store does not
    answer.
    """
    contents = fetch_images([row["uri"] for row in rows], roots)
    for row, content in zip(rows, contents, strict=True):
        row.update(shape=None, pixels=None, reason=None)
        try:
            image = _decoded(row, content, shapes)
            row.update(shape=image.shape[:2], pixels=image.tobytes())
        except ImageError as error:
            row["reason"] = f"{error.stage}: {error.reason}"


def is_unread(reason: str | None) -> bool:
    """Return whether a reason says nothing of the image, so that the next run tries again."""
    return bool(reason and reason.startswith(READ) and reason != f"{READ}{CHANGED}")


def is_outside(reason: str | None) -> bool:
    """Return whether a reason is that the image lies below no root of its index."""
    return reason == f"{READ}{OUTSIDE}"


def _decoded(row: Row, content: bytes | OSError, shapes: Sequence[Shape]) -> NDArray[np.uint8]:
    if isinstance(content, OutsideRootsError):
        raise ImageError("read", OUTSIDE)
    if isinstance(content, OSError):
        raise ImageError("read", f"{type(content).__name__}: {content}")
    if hashlib.blake2b(content, digest_size=16).hexdigest() != row["content_hash"]:
        raise ImageError("read", CHANGED)
    return sandbox.shared().decode(content, shapes).pixels


def _bytes(content: bytes, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    return np.frombuffer(content, np.uint8).reshape(shape)


def _labels(row: Row, shape: Shape) -> NDArray[np.uint8]:
    """The mask, resized to the image as the model saw it; of each pixel the nearest label."""
    mask = Image.fromarray(_bytes(row["mask"], tuple(row["mask_shape"])))
    return np.asarray(mask.resize((shape[1], shape[0]), Image.Resampling.NEAREST))
