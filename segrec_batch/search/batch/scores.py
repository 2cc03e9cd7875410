"""Pearson correlation of many pairs: exact in float64, and fast in float32 with an error bound.

`pearson` returns the same value as the SQL macro of this name, bit for bit, at any position in a
block. The dot product of `unit_vectors` in float32 (Abdullah 2026, eq. 6, of centred vectors
of length 1) differs from it by at most `error_bounds` and `product_bound`.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray

from segrec_batch.search.similarity import (
    PAIR_PLACES,
    Features,
    Floats,
    Ints,
    rank_order,
    round_half_away,
)

_PAIRS = 2048  # pairs multiplied at once, 3 × 8 bytes × C each
_U32, _U64 = 2.0**-24, 2.0**-53  # unit roundoff
_NORMS = 1e-30, 1e30  # norms for which float32 neither underflows nor overflows
_SECOND_ORDER = 1.05  # factor for products of errors, each below 0.01
LARGEST_BOUND = 64 * _U32  # of a vector; finite if its centred norm is above 1.6 % of its length


@dataclass(frozen=True)
class Vectors:
    """Raw vectors with their sums and norms as DuckDB computes them.

    Attributes:
        features: (N, C) float32.
        totals: Σx, (N,) float64.
        norms: sqrt(C · Σx² − (Σx)²), (N,) float64, above 0.
    """

    features: Features
    totals: Floats
    norms: Floats

    def __len__(self) -> int:
        return len(self.totals)


def pearson(a: Vectors, i: Ints, b: Vectors, j: Ints) -> Floats:
    """Return Pearson of rows i (P,) of `a` and rows j (P,) of `b`: (P,) in [-1, 1], 14 places.

    Products of two float32 are exact in float64. They are added one after the other, as DuckDB's
    list_inner_product does, so that a pair of vectors has one value.
    """
    scores = np.empty(len(i))
    n = a.features.shape[1]
    for start in range(0, len(i), _PAIRS):
        chunk = slice(start, start + _PAIRS)
        p, q = i[chunk], j[chunk]
        products = torch.from_numpy(a.features[p]).double()
        products *= torch.from_numpy(b.features[q])
        dots = products.cumsum(1)[:, -1].numpy()
        covariance = n * dots - a.totals[p] * b.totals[q]
        scores[chunk] = covariance / (a.norms[p] * b.norms[q]) + 0.0
    return round_half_away(scores, PAIR_PLACES)


def unit_vectors(vectors: Vectors, rows: slice | Ints, device: str) -> torch.Tensor:
    """Return (x − x̄) / ‖x − x̄‖ of rows, (N, C) float32; 0 where the error bound is infinite."""
    n = vectors.features.shape[1]
    means = vectors.totals[rows] / n
    scales = np.sqrt(n) / vectors.norms[rows]
    unit = _tensor(vectors.features[rows]).to(device) - _column(means, device)
    unit *= _column(scales, device)
    unit[torch.from_numpy(np.isinf(error_bounds(vectors, rows))).to(device)] = 0
    return unit


def _tensor(values: NDArray[np.float32]) -> torch.Tensor:
    with warnings.catch_warnings():  # read only: memory of Ray, shared by all workers
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(values)


def _column(values: Floats, device: str) -> torch.Tensor:
    with np.errstate(over="ignore"):
        return torch.from_numpy(values.astype(np.float32)[:, None]).to(device)


def error_bounds(vectors: Vectors, rows: slice | Ints = slice(None)) -> Floats:
    """Return the error that each vector adds to a dot product of unit vectors: (N,) float64.

    |float32 dot product − `pearson`| ≤ `product_bound(C)` + bound of each of the two vectors.
    With κ = ‖x‖² / ‖x − x̄‖²: rounding x − x̄, its scale and their product costs 3u, rounding the
    mean u·√κ; in float64, sums of C terms and the cancellation in `pearson` at most 8·γ·κ, where
    γ = n·u / (1 − n·u) (Higham 2002, §3.1). The bound is infinite above
    LARGEST_BOUND, or where float32 is too narrow: for a vector that is nearly constant, very small
    or very large.
    """
    n = vectors.features.shape[1]
    norms = vectors.norms[rows]
    kappa = 1 + (vectors.totals[rows] / norms) ** 2
    bounds = 3 * _U32 + _U32 * np.sqrt(kappa) + 8 * _gamma(n + 4, _U64) * kappa
    low, high = _NORMS
    bounds = _SECOND_ORDER * bounds
    is_unbounded = (bounds > LARGEST_BOUND) | (norms < low) | (norms > high)
    return np.where(is_unbounded, np.inf, bounds)


def product_bound(n: int) -> float:
    """Return the error of a float32 dot product of n terms of unit vectors and of rounding.

    It holds for any order of summation.
    """
    return _SECOND_ORDER * _gamma(n, _U32) + 1e-14


def _gamma(n: int, u: float) -> float:
    return n * u / (1 - n * u)


@dataclass(frozen=True)
class Pairs:
    """Scored pairs of a query and a candidate.

    Attributes:
        query: index of the query in its block, (P,).
        row: number of the candidate among those of all blocks, (P,).
        pearson: (P,) float64.
        place: rank of the candidate's image_id in the index, (P,); it breaks ties.
        content: the same number for images of equal content, (P,).
    """

    query: Ints
    row: Ints
    pearson: Floats
    place: Ints
    content: Ints

    def __len__(self) -> int:
        return len(self.query)

    def take(self, which: np.ndarray) -> "Pairs":
        """Return the pairs that a mask or indices select."""
        return Pairs(*(getattr(self, f.name)[which] for f in fields(self)))


def empty_pairs() -> Pairs:
    """Return an empty set of pairs."""
    empty = np.empty(0, np.int64)
    return Pairs(empty, empty, np.empty(0), empty, empty)


def join(parts: Sequence[Pairs]) -> Pairs:
    """Concatenate pairs."""
    columns = ([getattr(p, f.name) for p in parts] for f in fields(Pairs))
    return Pairs(*(np.concatenate(column) for column in columns))


def take_best(pairs: Pairs, count: int, distinct: bool) -> Pairs:
    """Return the `count` best pairs of each query, by Pearson, ties by place.

    With `distinct`, only the best of a query's candidates with equal content is returned. The best
    of joined results of two sets are the best of the joined sets.
    """
    pairs = pairs.take(rank_order(pairs.pearson, ties=pairs.place, groups=pairs.query))
    if distinct:
        pairs = pairs.take(_first_of_content(pairs))
    return pairs.take(ranks(pairs) < count)


def ranks(pairs: Pairs) -> Ints:
    """Return the position, from 0, of each pair in its query; pairs are sorted by query."""
    return np.arange(len(pairs)) - np.searchsorted(pairs.query, pairs.query)


def _first_of_content(pairs: Pairs) -> np.ndarray:
    """Return whether each pair is the first of its query and content: (P,)."""
    order = np.lexsort((pairs.content, pairs.query))  # stable: equal ones stay in order
    query, content = pairs.query[order], pairs.content[order]
    first = np.ones(len(pairs), bool)
    first[1:] = (query[1:] != query[:-1]) | (content[1:] != content[:-1])
    is_first = np.empty(len(pairs), bool)
    is_first[order] = first
    return is_first
