"""Results of a model, and the interface of all engines."""

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
    masks: (H, W) uint8, the class map of each image at the requested size.
    """

    labels: NDArray[np.uint8]
    common: NDArray[np.uint8]
    counts: NDArray[np.int64]
    feature: NDArray[np.float32]
    region_features: NDArray[np.float32]
    sign_bits: NDArray[np.int64]
    masks: list[NDArray[np.uint8]]


class PendingSegmentation(Protocol):
    """A segmentation that a GPU may not have finished."""

    def result(self) -> Segmentation:
        """Wait for the segmentation and return it."""


class Segmenter(Protocol):
    """A model in an engine, on a device. Call it with uint8 images of one shape."""

    model: Model
    device: str

    def __call__(self, pixels: NDArray[np.uint8], masks: Sequence[Shape] = ()) -> Segmentation:
        """Segment images.

        Args:
            pixels: uint8 (B, H, W, 3) RGB.
            masks: Sizes (height, width) of masks, one for each image or none.
        """

    def launch(self, pixels: NDArray[np.uint8], masks: Sequence[Shape] = ()) -> PendingSegmentation:
        """Start the segmentation of images; more can be launched before the result is read.

        Raises RuntimeError if the device lacks memory, see `engines.is_memory_error`.
        """
