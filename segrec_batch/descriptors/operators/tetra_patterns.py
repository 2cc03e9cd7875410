"""Local tetra patterns of second order: directions of the gradients around each pixel.

Source: Murala, Maheshwari, Balasubramanian, "Local tetra patterns: a new feature descriptor for
content-based image retrieval", IEEE TIP 21 (2012).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from segrec_batch.descriptors.operators.binary_patterns import (
    BINS,
    merge_codes,
    pattern_codes,
    uniform_histograms,
)

PATTERNS = 13
_DIRECTIONS = 4


def derivatives(grey: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return first-order derivatives along 0° and 90°, (B, H − 1, W − 1), of images (B, H, W).

    They are the right neighbour minus the pixel and the upper neighbour minus the pixel; int32 for
    uint8 images.
    """
    wide = grey.astype(np.int32) if grey.dtype == np.uint8 else grey
    pixel = wide[:, 1:, :-1]
    return wide[:, 1:, 1:] - pixel, wide[:, :-1, :-1] - pixel


def directions(along: NDArray[Any], up: NDArray[Any]) -> NDArray[np.uint8]:
    """Return 0 to 3, the quadrants I to IV of (along, up); zero counts as positive."""
    left, down = along < 0, up < 0
    return np.where(down, 3 - left, left).astype(np.uint8)


def tetra_histograms(grey: NDArray[Any]) -> NDArray[np.float64]:
    """Return histograms (B, 13, 59) of uniform patterns of images (B, H, W), sides at least 4.

    Patterns 0 to 11: for a pixel with direction d and each other direction e in order, the
    neighbours with direction e; pattern 3 d + i is counted over the pixels of direction d, as a
    share of all pixels. Pattern 12: the neighbours whose gradient is at least as long.

    Strictly increasing maps of the grey values do not change patterns 0 to 11; linear maps do not
    change pattern 12.
    """
    along, up = derivatives(grey)
    direction = directions(along, up)
    length = uniform_histograms(pattern_codes(along**2 + up**2, np.greater_equal))
    return np.concatenate([_split(direction), length[:, np.newaxis]], axis=1)


def _split(direction: NDArray[np.uint8]) -> NDArray[np.float64]:
    batch = len(direction)
    centre = direction[:, 1:-1, 1:-1].astype(np.intp) << 8
    counts = np.zeros((batch, _DIRECTIONS, _DIRECTIONS, 256), np.intp)
    for e in range(_DIRECTIONS):
        keys = centre | pattern_codes(direction == e, lambda neighbour, _: neighbour)
        for i, image in enumerate(keys):
            flat = np.bincount(image.ravel(), minlength=_DIRECTIONS << 8)
            counts[i, :, e] = flat.reshape(_DIRECTIONS, 256)
    others = ~np.eye(_DIRECTIONS, dtype=bool)
    return np.asarray(merge_codes(counts[:, others]).reshape(batch, -1, BINS) / centre[0].size)
