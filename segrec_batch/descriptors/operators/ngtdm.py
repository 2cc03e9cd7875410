"""Busyness of the neighbourhood grey-tone difference matrix.

Source: Amadasun, King, "Textural features corresponding to textural properties", IEEE SMC 19
(1989).
"""

import numpy as np
from numpy.typing import NDArray

TONES = 256


def busyness(grey: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return busyness (B,) of images (B, H, W) uint8 with sides of at least 3.

    Busyness is Σ p(i) s(i) / Σ Σ |i p(i) − j p(j)| over tones i, j with p > 0 (eq. 7, with absolute
    values in the denominator; without them it is 0). p(i) is the share of tone i; s(i) is the
    sum (eq. 2) of |i − mean of the 8 neighbours| over its pixels. Pixels at the border are left
    out. Since s is a sum, busyness is proportional to the number of pixels.

    It is 0 if no pixel differs from its neighbours, and infinite if only the denominator is 0.
    """
    return np.array([_busyness(p, s) for p, s in map(_matrix, grey)])


def _matrix(image: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    wide = image.astype(np.int32)
    rows = wide[:-2] + wide[1:-1] + wide[2:]
    nine = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    tones = wide[1:-1, 1:-1]
    eighths = np.abs(9 * tones - nine).ravel()  # 8 × |tone − mean|, whole numbers
    shares = np.bincount(tones.ravel(), minlength=TONES) / tones.size
    return shares, np.bincount(tones.ravel(), eighths, TONES) / 8


def _busyness(shares: NDArray[np.float64], differences: NDArray[np.float64]) -> float:
    changes = float(shares @ differences)
    if changes == 0:
        return 0.0
    present = shares > 0
    weighted = (np.arange(TONES) * shares)[present]
    total = float(np.abs(weighted[:, np.newaxis] - weighted).sum())
    return changes / total if total else np.inf
