"""Coarseness, contrast and directionality after Tamura et al.

Source: Tamura, Mori, Yamawaki, "Textural features corresponding to visual perception", IEEE SMC 8
(1978). Images are (B, H, W), uint8 or float, with values from 0 to 255.
"""

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Bins = NDArray[np.intp]

SIZES = 5  # number of window sizes: 2, 4, … 32
BINS = 16  # bins of half a circle
STEEP = 12.0  # minimum length of a gradient
PROMINENCE = 0.2  # minimum prominence of a peak, as a share of the highest bin
_LARGEST = 2**SIZES


def contrast(grey: NDArray[Any]) -> Values:
    """Return contrast (B,): σ / α₄^¼ with the kurtosis α₄ = μ₄ / σ⁴; 0 for a constant image.

    Contrast is proportional to the grey values; adding a constant does not change it.
    """
    return np.array([_contrast(image.astype(np.float64)) for image in grey])


def _contrast(image: Values) -> float:
    squares = (image - image.mean()) ** 2
    variance = float(squares.mean())
    if variance == 0:
        return 0.0
    return float(variance / np.mean(squares**2) ** 0.25)  # σ / (μ₄/σ⁴)^¼ = σ² / μ₄^¼


def coarseness(grey: NDArray[np.uint8]) -> Values:
    """Return coarseness (B,), 2 to 32 pixels, of uint8 images.

    It is the mean over all positions of the window size 2ᵏ, k = 1 … 5, at which the means of two
    adjacent windows differ most. A_k(x, y) is the mean of the 2ᵏ × 2ᵏ window at a point; E_k is the
    larger of |A_k(x + 2ᵏ⁻¹, y) − A_k(x − 2ᵏ⁻¹, y)| and the same along y. If several E_k are equal,
    the smallest size counts. Images are mirrored at their edges.
    """
    return np.array([_coarseness(image) for image in grey])


def _coarseness(image: NDArray[np.uint8]) -> float:
    wide = np.pad(image, _LARGEST, "symmetric")
    sums = wide.cumsum(0, dtype=np.int32).cumsum(1, dtype=np.int32)
    sums = np.pad(sums, ((1, 0), (1, 0)))  # [y, x]: sum of all values above y and left of x
    best = _difference(sums, 2)
    sizes = np.full(best.shape, 2)
    for k in range(2, SIZES + 1):
        difference = _difference(sums, 2**k)
        sizes = np.where(difference > best, 2**k, sizes)
        best = np.maximum(difference, best)
    return float(np.mean(sizes))


def _difference(sums: NDArray[np.int32], size: int) -> NDArray[np.int32]:
    """Return 32² · E_k at each position for windows of `size`; 32² makes it an integer."""
    height, width = (side - 1 - 2 * _LARGEST for side in sums.shape)

    def at(y: int, x: int) -> NDArray[np.int32]:
        top, left = _LARGEST + y, _LARGEST + x
        return sums[top : top + height, left : left + width]

    def second(y: int, x: int, dy: int, dx: int) -> NDArray[np.int32]:
        return at(y - dy, x - dx) - 2 * at(y, x) + at(y + dy, x + dx)

    half = size // 2
    across = second(half, 0, 0, size) - second(-half, 0, 0, size)
    down = second(0, half, size, 0) - second(0, -half, size, 0)
    larger = np.maximum(np.abs(across), np.abs(down))
    return np.asarray(larger * (_LARGEST // size) ** 2)


def directionality(grey: NDArray[Any]) -> Values:
    """Return directionality (B,); 1 if all gradients are in one bin, 0 for a flat histogram.

    It is 1 − r n_p Σ_p Σ_φ (φ − φ_p)² H(φ), where H is the histogram of angles, n_p its number of
    peaks, φ_p a peak, and φ the bins from the valley before the peak to the valley behind it; r
    makes it 0 for a flat histogram with one peak. It is 0 if no gradient is steep and can be
    negative for unequal peaks.

    H has 16 circular bins of the half circle and counts angles arctan(Δ_V / Δ_H) of 3 × 3 Prewitt
    differences with (|Δ_H| + |Δ_V|) / 2 ≥ 12. A peak rises above its valleys by at least a fifth of
    the highest bin; the highest bin is always a peak.
    """
    return np.array([sharpness(histogram) for histogram in angles(grey)])


def angles(grey: NDArray[Any]) -> Values:
    """Return shares (B, 16) of angles of steep gradients; bin k is centred on kπ/16."""
    counts = np.array([_angles(image) for image in grey], np.float64)
    return np.asarray(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))


def _angles(image: NDArray[Any]) -> Bins:
    wide = image.astype(np.int16) if image.dtype == np.uint8 else image
    columns = wide[:-2] + wide[1:-1] + wide[2:]
    rows = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
    along, up = columns[:, 2:] - columns[:, :-2], rows[:-2] - rows[2:]
    steep = np.abs(along) + np.abs(up) >= 2 * STEEP
    angle = np.arctan2(up[steep], along[steep], dtype=np.float64)
    bins = np.rint(angle * (BINS / np.pi)).astype(np.intp) % BINS
    return np.bincount(bins, minlength=BINS)


def sharpness(histogram: Values) -> float:
    """Return the directionality of one histogram (16,), see `directionality`."""
    if not histogram.any():
        return 0.0
    peaks = _find_peaks(histogram)
    peak = peaks[_assign_bins(histogram, peaks)]
    spread = float(_square_distances(np.arange(BINS) - peak) @ histogram)
    flat = float(_square_distances(np.arange(BINS)).mean())
    return 1 - len(peaks) * spread / flat


def _square_distances(bins: Bins) -> Bins:
    """Return squared circular distances of bins."""
    return ((bins + BINS // 2) % BINS - BINS // 2) ** 2


def _find_peaks(histogram: Values) -> Bins:
    """Return the peaks of a histogram, see `directionality`; a plateau counts as its first bin."""
    start = int(histogram.argmin())
    around = np.roll(histogram, -start)
    closed = np.append(around, around[0])
    rises = np.flatnonzero((closed[1:-1] > closed[:-2]) & (closed[1:-1] >= closed[2:])) + 1
    minimum = PROMINENCE * closed.max()
    peaks = np.array([at for at in rises.tolist() if _prominence(closed, at) >= minimum], np.intp)
    highest = np.array([around.argmax()])
    return np.asarray(((peaks if len(peaks) else highest) + start) % BINS)


def _prominence(closed: Values, at: int) -> float:
    """Return the height of a peak above the higher of its valleys, which end at higher bins."""
    higher = np.flatnonzero(closed > closed[at])
    before = higher[higher < at].max(initial=0)
    behind = higher[higher > at].min(initial=len(closed) - 1)
    return float(closed[at] - max(closed[before : at + 1].min(), closed[at : behind + 1].min()))


def _assign_bins(histogram: Values, peaks: Bins) -> Bins:
    """Return the number of the peak that each bin belongs to."""
    first = peaks[0]
    around = np.roll(histogram, -first)
    ends = [*((peaks - first) % BINS), BINS]
    closed = np.append(around, around[0])
    valleys = [a + int(closed[a : b + 1].argmin()) for a, b in pairwise(ends)]
    numbers = np.searchsorted(valleys, np.arange(BINS)) % len(peaks)
    return np.roll(numbers, first)
