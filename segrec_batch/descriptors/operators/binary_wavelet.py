"""In-place binary wavelet transform and histograms of its coefficients in three image planes.

Source: Law, Liu, Siu, "In-place binary wavelet transform" (2006). The low pass of a binary signal
is its samples 1, 3, 5, …; the high pass is these samples XOR samples 2, 4, 6, …. XOR works on all
bits of a number at once, so all bit planes are transformed together.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint8]

LEVELS = 3
PLANES = (0b00000111, 0b00111000, 0b11000000)  # bits 0–2, 3–5 and 6–7 of a grey value
STATES = 2 ** len(PLANES)

_SET = np.arange(256)[:, np.newaxis] & PLANES > 0  # (256, 3), by value and plane
_STATE = (_SET @ (1 << np.arange(len(PLANES)))).astype(np.uint8)
_IN_STATE = np.eye(STATES)[_STATE]  # (256, 8)


class SubBands(NamedTuple):
    """Sub-bands of one level, each (B, ⌈H/2⌉ or ⌊H/2⌋, ⌈W/2⌉ or ⌊W/2⌋) uint8.

    The first letter is the filter of the columns, the second that of the rows: l low, h high pass.
    """

    ll: Bits
    lh: Bits
    hl: Bits
    hh: Bits


def transform(bits: Bits) -> SubBands:
    """Transform (B, H, W) uint8 by one level: columns, then rows.

    The last sample of an odd side has no partner and is in the low pass only.
    """
    low, high = _split(bits.swapaxes(1, 2))
    return SubBands(*_split(low.swapaxes(1, 2)), *_split(high.swapaxes(1, 2)))


def inverse(bands: SubBands) -> Bits:
    """Return the exact input of `transform`."""
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
    """Return for each uint8 coefficient the planes with a bit set: bit p for plane p, 0 to 7.

    For a high pass, these are the planes in which the samples differ.
    """
    return np.asarray(_STATE[coefficients])


def wavelet_histograms(grey: Bits) -> NDArray[np.float64]:
    """Return shares of plane states (B, 3 levels, 4 sub-bands, 8 states) of uint8 images.

    Images are (B, H, W) with sides of at least 8. The last axis sums to 1.
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
