"""The in-place binary wavelet transform, and a histogram of what it finds in three image planes.

Law, Liu, Siu, "In-place binary wavelet transform" (2006): of a binary signal, the low pass is its
samples 1, 3, 5, …, the high pass those XOR samples 2, 4, 6, …. XOR takes all bits of a number at
once, and so the planes of an image need not be taken apart to be transformed.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint8]

LEVELS = 3
PLANES = (0b00000111, 0b00111000, 0b11000000)  # bits 0–2, 3–5 and 6–7 of a grey value
STATES = 2 ** len(PLANES)

_SET = np.arange(256)[:, np.newaxis] & PLANES > 0  # (256, 3), of each value each plane
_STATE = (_SET @ (1 << np.arange(len(PLANES)))).astype(np.uint8)
_IN_STATE = np.eye(STATES)[_STATE]  # (256, 8)


class SubBands(NamedTuple):
    """One level of the transform, each (B, ⌈H/2⌉ or ⌊H/2⌋, ⌈W/2⌉ or ⌊W/2⌋) uint8. The first letter
    is what was done to columns, the second to rows: L low, H high pass.
    """

    ll: Bits
    lh: Bits
    hl: Bits
    hh: Bits


def transform(bits: Bits) -> SubBands:
    """One level of the transform of (B, H, W) uint8: columns, then rows. A last sample of an odd
    side has no partner and is in the low pass alone.
    """
    low, high = _split(bits.swapaxes(1, 2))
    return SubBands(*_split(low.swapaxes(1, 2)), *_split(high.swapaxes(1, 2)))


def inverse(bands: SubBands) -> Bits:
    """What was transformed, exactly."""
    low, high = _join(bands.ll, bands.lh), _join(bands.hl, bands.hh)
    return _join(low.swapaxes(1, 2), high.swapaxes(1, 2)).swapaxes(1, 2)


def _split(bits: Bits) -> tuple[Bits, Bits]:
    low, even = bits[..., 0::2], bits[..., 1::2]
    return low, low[..., : even.shape[-1]] ^ even


def _join(low: Bits, high: Bits) -> Bits:
    size = high.shape[-1]
    bits = np.empty((*low.shape[:-1], low.shape[-1] + size), np.uint8)
    bits[..., 0::2] = low
    bits[..., 1::2] = low[..., :size] ^ high
    return bits


def plane_states(coefficients: Bits) -> Bits:
    """Of coefficients uint8 which planes have any bit set: bit p for plane p, 0 to 7.

    Of a high pass: in which planes the samples differ.
    """
    return np.asarray(_STATE[coefficients])


def wavelet_histograms(grey: Bits) -> NDArray[np.float64]:
    """Of images (B, H, W) uint8, sides at least 8, the share of each of 8 plane states in each of
    4 sub-bands at each of 3 levels: (B, 3, 4, 8); the last axis has sum 1.
    """
    levels = []
    for _ in range(LEVELS):
        bands = transform(grey)
        levels.append([_shares(band) for band in bands])
        grey = bands.ll
    return np.moveaxis(np.array(levels), 2, 0)


def _shares(band: Bits) -> NDArray[np.float64]:
    counts = np.array([np.bincount(image.ravel(), minlength=256) for image in band])
    return np.asarray(counts @ _IN_STATE / band[0].size)
