"""Formulas of texture by loops over pixels, to compare operators with."""

import numpy as np
from numpy.typing import NDArray

from segrec_batch.descriptors.operators.binary_patterns import NEIGHBOURS


def code(image: NDArray[np.generic], y: int, x: int, threshold: int, sign: int) -> int:
    """Σ 2^p [sign (g_p − g_c) ≥ T]: Ojala 1996 with T = 0, Tan and Triggs 2010 with both signs."""
    total = 0
    for p, (dy, dx) in enumerate(NEIGHBOURS):
        if sign * (int(image[y + dy, x + dx]) - int(image[y, x])) >= threshold:
            total += 2**p
    return total


def codes(image: NDArray[np.generic], threshold: int = 0, sign: int = 1) -> NDArray[np.int64]:
    inner = [range(1, side - 1) for side in image.shape]
    return np.array([[code(image, y, x, threshold, sign) for x in inner[1]] for y in inner[0]])


def one_dimensional(samples: list[int]) -> tuple[list[int], list[int]]:
    """Law, Liu, Siu 2006: odd positions, counted from 1; odd XOR even ones."""
    low = [samples[i] for i in range(0, len(samples), 2)]
    high = [samples[i] ^ samples[i + 1] for i in range(0, len(samples) - 1, 2)]
    return low, high


def slow_transform(image: list[list[int]]) -> list[list[list[int]]]:
    """Columns, then rows: LL, LH, HL, HH."""
    columns = [one_dimensional(list(column)) for column in zip(*image, strict=True)]
    bands = []
    for part in (0, 1):
        rows = zip(*(column[part] for column in columns), strict=True)
        halves = [one_dimensional(list(row)) for row in rows]
        bands += [[half[0] for half in halves], [half[1] for half in halves]]
    return bands


def slow_histograms(image: list[list[int]]) -> list[list[float]]:
    """Return the planes that are not 0 in each level and sub-band, by two loops."""
    rows = []
    for _ in range(3):
        bands = slow_transform(image)
        for band in bands:
            values = [value for row in band for value in row]
            states = [(v % 8 > 0) + 2 * (v // 8 % 8 > 0) + 4 * (v // 64 > 0) for v in values]
            rows.append([states.count(s) / len(states) for s in range(8)])
        image = bands[0]
    return rows
