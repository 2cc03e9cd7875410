"""Local binary and local ternary patterns of 3 × 3 blocks.

Bit p of a *code* is the result of a test of neighbour p against the centre. Neighbours are numbered
counter-clockwise from the right one and lie on the square. (`skimage.feature.local_binary_pattern`
interpolates neighbours on a circle, unlike the publications below.)
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint8]
Shares = NDArray[np.float64]
Test = Callable[[NDArray[Any], NDArray[Any]], NDArray[np.bool_]]

NEIGHBOURS = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))  # rows, columns
BINS = 59


def lbp(grey: NDArray[Any]) -> Codes:
    """Return local binary patterns (B, H − 2, W − 2) of images (B, H, W), uint8 or float.

    Bit p is 1 where neighbour ≥ centre. Strictly increasing maps of the grey values do not change
    the result.

    Source: Ojala, Pietikäinen, Harwood, "A comparative study of texture measures", Pattern
    Recognition 29 (1996). The opposite test, centre > neighbour, gives 255 minus this code.
    """
    return pattern_codes(grey, np.greater_equal)


def ltp(grey: NDArray[np.uint8], threshold: int) -> tuple[Codes, Codes]:
    """Return the upper and lower pattern (B, H − 2, W − 2) of images (B, H, W) uint8.

    A neighbour is +1 if it is at least centre + threshold, −1 if it is at most centre − threshold,
    else 0. The upper pattern marks +1, the lower pattern −1. `threshold` is at least 1, since with
    0 a neighbour could be both.

    Source: Tan, Triggs, "Enhanced local texture feature sets for face recognition under difficult
    lighting conditions", IEEE TIP 19 (2010), section III.
    """
    wide = grey.astype(np.int16)
    upper = pattern_codes(wide, lambda neighbour, centre: neighbour >= centre + threshold)
    lower = pattern_codes(wide, lambda neighbour, centre: neighbour <= centre - threshold)
    return upper, lower


def pattern_codes(values: NDArray[Any], test: Test) -> Codes:
    """Return codes (B, H − 2, W − 2) of values (B, H, W): bit p is test(neighbour p, centre)."""
    centre = values[:, 1:-1, 1:-1]
    codes = np.zeros(centre.shape, np.uint8)
    for p, neighbour in enumerate(_neighbours(values)):
        codes |= test(neighbour, centre).view(np.uint8) << p
    return codes


def _neighbours(values: NDArray[Any]) -> Iterator[NDArray[Any]]:
    height, width = values.shape[1] - 2, values.shape[2] - 2
    for y, x in NEIGHBOURS:
        yield values[:, 1 + y : 1 + y + height, 1 + x : 1 + x + width]


def uniform_bins() -> NDArray[np.intp]:
    """Return the bin (256,) of each code, 0 to 58.

    The 58 uniform codes have at most two changes between 0 and 1 around the circle and get bins in
    ascending order. All other codes share the last bin.

    Source: Ojala, Pietikäinen, Mäenpää, "Multiresolution gray-scale and rotation invariant texture
    classification with local binary patterns", IEEE TPAMI 24 (2002): the patterns u2.
    """
    codes = np.arange(256, dtype=np.uint8)
    rotated = (codes >> 1) | (codes << 7)
    uniform = np.bitwise_count(codes ^ rotated) <= 2
    return np.where(uniform, np.cumsum(uniform) - 1, BINS - 1)


_UNIFORM = np.eye(BINS)[uniform_bins()]  # (256, 59)


def uniform_histograms(codes: Codes) -> Shares:
    """Return the share of each uniform pattern (B, 59) of codes (B, h, w); rows sum to 1."""
    counts = [np.bincount(image.ravel(), minlength=256) for image in codes]
    return np.asarray(merge_codes(np.array(counts)) / codes[0].size)


def merge_codes(counts: NDArray[np.integer[Any]]) -> Shares:
    """Convert counts of codes (…, 256) to counts of uniform patterns (…, 59)."""
    return np.asarray(counts @ _UNIFORM)
