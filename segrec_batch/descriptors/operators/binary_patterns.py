"""Local binary and local ternary patterns: each pixel beside the eight around it.

A *code* has bit p where a test of neighbour p and the centre holds. Neighbours go counter-clockwise
from the right one, on the square: those of `skimage.feature.local_binary_pattern` lie on a circle
and are interpolated, which is not the 3 × 3 block of the publications below.
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
    """Local binary patterns (B, H − 2, W − 2) of images (B, H, W), uint8 or float: bit p is 1
    where neighbour ≥ centre. Unchanged by any strictly increasing map of the grey values.

    Ojala, Pietikäinen, Harwood, "A comparative study of texture measures", Pattern Recognition 29
    (1996). With the opposite test, centre > neighbour, each code would be 255 minus this one.
    """
    return pattern_codes(grey, np.greater_equal)


def ltp(grey: NDArray[np.uint8], threshold: int) -> tuple[Codes, Codes]:
    """Local ternary patterns of images (B, H, W) uint8 as two binary ones (B, H − 2, W − 2).

    A neighbour is +1 if it is at least centre + threshold, −1 if it is at most centre − threshold,
    else 0. The upper pattern has the +1, the lower one the −1. `threshold` is 1 or more; at 0 a
    neighbour could be both.

    Tan, Triggs, "Enhanced local texture feature sets for face recognition under difficult lighting
    conditions", IEEE TIP 19 (2010), section III.
    """
    wide = grey.astype(np.int16)
    upper = pattern_codes(wide, lambda neighbour, centre: neighbour >= centre + threshold)
    lower = pattern_codes(wide, lambda neighbour, centre: neighbour <= centre - threshold)
    return upper, lower


def pattern_codes(values: NDArray[Any], test: Test) -> Codes:
    """Codes (B, H − 2, W − 2) of values (B, H, W): bit p is test(neighbour p, centre)."""
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
    """The bin (256,) of each code, 0 to 58: 58 uniform codes, with at most two changes between 0
    and 1 around the circle, by size; all others together are the last bin.

    Ojala, Pietikäinen, Mäenpää, "Multiresolution gray-scale and rotation invariant texture
    classification with local binary patterns", IEEE TPAMI 24 (2002): the patterns u2.
    """
    codes = np.arange(256, dtype=np.uint8)
    turned = (codes >> 1) | (codes << 7)
    uniform = np.bitwise_count(codes ^ turned) <= 2
    return np.where(uniform, np.cumsum(uniform) - 1, BINS - 1)


_UNIFORM = np.eye(BINS)[uniform_bins()]  # (256, 59)


def uniform_histograms(codes: Codes) -> Shares:
    """Of codes (B, h, w) the share of each uniform pattern (B, 59); a row has sum 1."""
    counts = [np.bincount(image.ravel(), minlength=256) for image in codes]
    return np.asarray(merge(np.array(counts)) / codes[0].size)


def merge(counts: NDArray[np.integer[Any]]) -> Shares:
    """Counts (…, 256) of codes as counts (…, 59) of uniform patterns."""
    return np.asarray(counts @ _UNIFORM)
