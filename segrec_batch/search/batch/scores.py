"""Pearson correlation of many pairs: exact in float64, and fast in float32 with a proved error.

`pearson` is the number that the SQL macro of this name gives, bit for bit, wherever in a block the
two vectors lie. `unit_vectors` makes of it one float32 dot product (Abdullah 2026, eq. 6, of
centred vectors of length 1), and `error_bounds` says how far that can be from the other.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from segrec_batch.search.similarity import PAIR_PLACES, rounded

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_PAIRS = 2048  # that are multiplied at once: 3 × 8 bytes × C each
_U32, _U64 = 2.0**-24, 2.0**-53  # unit roundoff
_SCALE = 1e-30, 1e30  # norms for which float32 neither underflows nor overflows
_SECOND_ORDER = 1.05  # products of errors, each below 0.01
LARGEST_BOUND = 64 * _U32  # of a vector; met by norms above 1.6 % of the vector's length


@dataclass(frozen=True)
class Vectors:
    """features: (N, C) float32, raw. totals: (N,) float64, their sums. norms: (N,) float64,
    sqrt(C · Σx² − (Σx)²), above 0; both as DuckDB computes them.
    """

    features: NDArray[np.float32]
    totals: Floats
    norms: Floats

    def __len__(self) -> int:
        return len(self.totals)


def pearson(a: Vectors, i: Ints, b: Vectors, j: Ints) -> Floats:
    """Pearson of rows i (P,) of `a` with rows j (P,) of `b`: (P,) float64 in [-1, 1], 14 places.

    A product of two float32 is exact in float64; they are added one after the other, as DuckDB's
    list_inner_product does it, so a pair of vectors has one value.
    """
    found = np.empty(len(i))
    n = a.features.shape[1]
    for start in range(0, len(i), _PAIRS):
        chunk = slice(start, start + _PAIRS)
        p, q = i[chunk], j[chunk]
        products = torch.from_numpy(a.features[p]).double()
        products *= torch.from_numpy(b.features[q])
        dots = products.cumsum(1)[:, -1].numpy()
        covariance = n * dots - a.totals[p] * b.totals[q]
        found[chunk] = covariance / (a.norms[p] * b.norms[q]) + 0.0
    return rounded(found, PAIR_PLACES)


def unit_vectors(vectors: Vectors, rows: slice | Ints, device: str) -> torch.Tensor:
    """(x − x̄) / ‖x − x̄‖ of some rows, (N, C) float32 on a device; 0 where the bound is infinite."""
    n = vectors.features.shape[1]
    means = vectors.totals[rows] / n
    scales = np.sqrt(n) / vectors.norms[rows]
    unit = _tensor(vectors.features[rows]).to(device) - _column(means, device)
    unit *= _column(scales, device)
    unit[torch.from_numpy(np.isinf(error_bounds(vectors, rows))).to(device)] = 0
    return unit


def _tensor(values: NDArray[np.float32]) -> torch.Tensor:
    with warnings.catch_warnings():  # it is read only: Ray's memory, which all workers share
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(values)


def _column(values: Floats, device: str) -> torch.Tensor:
    with np.errstate(over="ignore"):
        return torch.from_numpy(values.astype(np.float32)[:, None]).to(device)


def error_bounds(vectors: Vectors, rows: slice | Ints = slice(None)) -> Floats:
    """What each vector adds to the error of a dot product of unit vectors: (N,) float64.

    |float32 dot product − `pearson`| ≤ `product_bound(C)` + bound of one + bound of the other.
    With κ = ‖x‖² / ‖x − x̄‖²: rounding x − x̄, its scale and their product costs 3u, rounding the
    mean u·√κ; in float64, sums of C terms and the cancellation in `pearson` at most 8·γ·κ, where
    γ = n·u / (1 − n·u) (Higham 2002, §3.1). Infinite where it would be above LARGEST_BOUND, or
    float32 too narrow: a vector that is nearly constant, very small or very large.
    """
    n = vectors.features.shape[1]
    norms = vectors.norms[rows]
    kappa = 1 + (vectors.totals[rows] / norms) ** 2
    bounds = 3 * _U32 + _U32 * np.sqrt(kappa) + 8 * _gamma(n + 4, _U64) * kappa
    low, high = _SCALE
    bounds = _SECOND_ORDER * bounds
    poor = (bounds > LARGEST_BOUND) | (norms < low) | (norms > high)
    return np.where(poor, np.inf, bounds)


def product_bound(n: int) -> float:
    """The error of a float32 dot product of n terms of unit vectors, in any order of summation;
    and of rounding to 14 places.
    """
    return _SECOND_ORDER * _gamma(n, _U32) + 1e-14


def _gamma(n: int, u: float) -> float:
    return n * u / (1 - n * u)
