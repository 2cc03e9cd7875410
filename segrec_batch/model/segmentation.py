"""What a model finds in images, and what every engine offers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from segrec_batch.images.decode import Shape
from segrec_batch.model.bundle import Model


@dataclass(frozen=True)
class Segmentation:
    """Class maps and features of B images of one shape; K classes, class 0 is the background.

    labels: (B, h, w) uint8, the class map on the grid of the backbone's feature layer.
    common: (B, 32, 32) uint8, the class map on the common grid.
    counts: (B, K) int64, cells of each class on the feature grid; their sum is h·w.
    feature: (B, C) float32, global average of the feature layer.
    region_features: (B, K, C) float32, the same average inside each class.
    sign_bits: (B, ⌈C/64⌉) int64, bits of `feature`.
    masks: the class map of each image at the size that was asked for it: (H, W) uint8.
    """

    labels: NDArray[np.uint8]
    common: NDArray[np.uint8]
    counts: NDArray[np.int64]
    feature: NDArray[np.float32]
    region_features: NDArray[np.float32]
    sign_bits: NDArray[np.int64]
    masks: list[NDArray[np.uint8]]


class PendingSegmentation(Protocol):
    """Work that an engine was given; a GPU may still be at it."""

    def result(self) -> Segmentation:
        """Return what was found; waits for it."""


class Segmenter(Protocol):
    """A model in an engine, on a device. Call it with uint8 images of one shape."""

    model: Model
    device: str

    def __call__(self, pixels: NDArray[np.uint8], masks: Sequence[Shape] = ()) -> Segmentation:
        """Segment and describe images, uint8 (B, H, W, 3) RGB.

        masks: the sizes (height, width) of their masks, for each image or for none.
        """

    def launch(self, pixels: NDArray[np.uint8], masks: Sequence[Shape] = ()) -> PendingSegmentation:
        """Start what a call does; more can be launched before the result is taken.

        Raises RuntimeError where the device lacks memory, see `engines.lacks_memory`.
        """
