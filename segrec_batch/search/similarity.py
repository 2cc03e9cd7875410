"""Similarities of q vectors with n others, by matrix products of blocks.

A score is higher for more similar vectors, and NaN where it is undefined. It does not depend on
blocks, threads or the machine, so equal pairs have equal scores. Scores are rounded to 12 decimal
places, those of `dot` and `euclidean` relative to the longest vector.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Features = NDArray[np.float32]
Prepare = Callable[[Features], Floats]

PLACES = 12
"""Decimal places of scores by block products, which are exact to 1e-12."""
PAIR_PLACES = 14
"""Decimal places of scores of single pairs, as in the SQL macros `pearson` and `similarity`."""

_TILE = 2**21  # candidate values held in float64 at once: 16 MB
_COLUMNS = 512  # columns whose mixed products add up exactly, see `dot_products`
_HIGH, _LOW = 2.0**26, 2.0**48  # 1 / the grids of the two parts of a value


def standardise(features: Features) -> Floats:
    """Return (x − x̄) / ‖x − x̄‖ of rows, so that Pearson is a dot product; NaN for constant rows."""
    x = features.astype(np.float64)
    usable = np.isfinite(x).all(axis=1)
    x[~usable] = 0
    x -= x.mean(axis=1, keepdims=True)
    return _scale_to_unit(x, usable & (features.max(axis=1) > features.min(axis=1)))


def normalise(features: Features) -> Floats:
    """Return x / ‖x‖ of rows; NaN for zero rows."""
    x = features.astype(np.float64)
    usable = np.isfinite(x).all(axis=1)
    x[~usable] = 0
    return _scale_to_unit(x, usable & (x != 0).any(axis=1))


def reject_nonfinite(features: Features) -> Floats:
    """Return rows in float64; NaN for rows that are not finite."""
    x = features.astype(np.float64)
    x[~np.isfinite(x).all(axis=1)] = np.nan
    return x


def _scale_to_unit(x: Floats, usable: NDArray[np.bool_]) -> Floats:
    x[~usable] = np.nan
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x


def choose_scale(features: Features, factor: float = 1) -> tuple[float, Prepare]:
    """Return a power of two ≥ `factor` × the longest row, and a function that divides by it."""
    longest = 0.0
    for tile in _tiles(features):
        lengths = np.linalg.norm(features[tile].astype(np.float64), axis=1)
        longest = max(longest, float(lengths[np.isfinite(lengths)].max(initial=0)))
    scale = float(2.0 ** np.ceil(np.log2(factor * longest))) if longest else 1.0
    return scale, lambda rows: rows.astype(np.float64) / scale


def dot_products(queries: Features, features: Features, prepare: Prepare) -> Floats:
    """Return x · y of prepared rows of length 1 or less: (q, C), (n, C) → (q, n).

    The error is at most C · 2^-54 + √C · 2^-48: 1e-13 for 512 values, 1e-12 for 8192.

    A value is split into h, a multiple of 2^-26, and l, a multiple of 2^-48 of at most 2^-27.
    Products h·h are multiples of 2^-52, and any of them sum up to less than 2, as ‖h‖ is at most
    1 + √C · 2^-27 (Cauchy and Schwarz). Mixed products are multiples of 2^-74, and those of 512
    columns sum up to less than 2^-21. float64 holds all of these exactly, so a matrix product gives
    the same sums in any order of summation. The sums of 512 columns each are then added in order to
    that of h·h; this rounds, but always in the same way. The product l·l, at most C · 2^-54, is
    omitted, and l is rounded by at most √C · 2^-49 in each row.
    """
    high, low = _split(prepare(queries))
    products = np.empty((len(queries), len(features)))
    for tile in _tiles(features):
        tile_high, tile_low = _split(prepare(features[tile]))
        sums = high @ tile_high.T
        for columns in _columns(features):
            mixed = np.hstack([high[:, columns], low[:, columns]])
            sums += mixed @ np.hstack([tile_low[:, columns], tile_high[:, columns]]).T
        products[:, tile] = sums
    return products


def squared_norms(features: Features, prepare: Prepare) -> Floats:
    """Return x · x of prepared rows, equal to the diagonal of `dot_products`: (n,)."""
    values = np.empty(len(features))
    for tile in _tiles(features):
        high, low = _split(prepare(features[tile]))
        sums = (high * high).sum(axis=1)
        for columns in _columns(features):
            sums += 2 * (high[:, columns] * low[:, columns]).sum(axis=1)
        values[tile] = sums
    return values


def _tiles(features: Features) -> Iterator[slice]:
    """Yield slices of rows that are converted to float64 together."""
    step = max(_TILE // features.shape[1], 1)
    return (slice(start, start + step) for start in range(0, len(features), step))


def _columns(features: Features) -> Iterator[slice]:
    return (slice(c, c + _COLUMNS) for c in range(0, features.shape[1], _COLUMNS))


def _split(x: Floats) -> tuple[Floats, Floats]:
    high = np.rint(x * _HIGH) / _HIGH
    return high, np.rint((x - high) * _LOW) / _LOW


def round_half_away(values: Floats, places: int = PLACES) -> Floats:
    """Return values rounded to `places` decimals, halves away from 0 as in SQL.

    NumPy rounds halves to the even neighbour.
    """
    factor = 10.0**places
    magnitudes = np.abs(values) * factor
    whole = np.floor(magnitudes)
    return np.asarray(np.copysign(whole + (magnitudes - whole >= 0.5), values) / factor)


def rank_order(scores: Floats, ties: Ints | None = None, groups: Ints | None = None) -> Ints:
    """Return the indices that sort scores along the last axis, by the tie rule of all rankings.

    Groups ascend; in a group scores descend, NaN last. Equal scores follow ascending `ties`, or the
    order of the input. All arrays have the same shape.
    """
    return np.lexsort([key for key in (ties, -scores, groups) if key is not None])


@dataclass(frozen=True)
class Metric:
    """A similarity of vectors, higher for more similar ones.

    Attributes:
        name: as in `recommend(…, method := …)`, and in the SQL macros.
        label: one word for the score.
        text: name in a sentence.
        prepare: function that maps rows to those that the metric compares, (n, C) → (n, C) float64;
            NaN where undefined.
        is_angle: prepared rows have length 1, and the score is their product.
        is_distance: the score is −‖x − y‖ of rows, otherwise x · y.
    """

    name: str
    label: str
    text: str
    prepare: Prepare
    is_angle: bool = False
    is_distance: bool = False

    def scores(self, rows: Ints, vectors: Features) -> Floats:
        """Return the scores of `rows` of a matrix with all its rows: (q,), (n, C) → (q, n)."""
        queries = vectors[rows]
        if self.is_angle:
            return round_half_away(dot_products(queries, vectors, self.prepare))
        scale, prepare = choose_scale(vectors)
        products = dot_products(queries, vectors, prepare)
        if not self.is_distance:
            return scale**2 * round_half_away(products)
        lengths = squared_norms(vectors, prepare)
        gaps = lengths[rows][:, None] + lengths - 2 * products
        return -scale * np.sqrt(np.maximum(round_half_away(gaps), 0))

    def ranking_scores(self, queries: Features, vectors: Features) -> Floats:
        """Return scores that rank vectors (n, C) for queries (q, C) as the metric does: (q, n).

        Queries may be twice as long as the longest vector.
        """
        if self.is_angle:
            return round_half_away(dot_products(queries, vectors, self.prepare))
        _, prepare = choose_scale(vectors, 2)
        products = dot_products(queries, vectors, prepare)
        if not self.is_distance:
            return round_half_away(products)
        return round_half_away(2 * products - squared_norms(vectors, prepare))  # ‖q‖² − ‖q − x‖²

    def expanded(self, query: Features, results: Features, scores: Floats) -> Features:
        """Return the mean of a query, with weight 1, and its results, with weights max(s, 0)³.

        Vectors are prepared first. The query stays as it is if no result weighs more than 0, or if
        it has no direction. For metrics that are angles.

        Args:
            query: (C,).
            results: (m, C).
            scores: s, their similarities to the query, (m,).

        Source: Chum 2007; the weights of Radenović 2018.
        """
        weights = np.maximum(scores, 0) ** 3
        (prepared,) = self.prepare(query[None])
        if not (np.isfinite(prepared).all() and weights.any()):
            return query
        total = prepared + weights @ self.prepare(results)
        return np.asarray(total / (1 + weights.sum()), np.float32)


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("pearson", "Pearson", "Pearson correlation", standardise, is_angle=True),
        Metric("cosine", "Cosine", "cosine", normalise, is_angle=True),
        Metric("euclidean", "Distance", "Euclidean distance", reject_nonfinite, is_distance=True),
        Metric("dot", "Product", "inner product", reject_nonfinite),
    )
}
"""Metrics by name.

pearson: Σ(x−x̄)(y−ȳ) / ‖x−x̄‖‖y−ȳ‖ (Abdullah 2026, eq. 6), undefined for constant vectors. cosine:
x·y / ‖x‖‖y‖, undefined for zero vectors. euclidean: −‖x−y‖. dot: x·y.
"""


def semantic_distances(queries: Features, coverages: Features) -> Floats:
    """Return Σ_k |σ_k − σ_k'| over all classes and the background: (q, K), (n, K) → (q, n).

    Values are in [0, 2] (Ouni 2020, eq. 1). Terms are added in the order of the SQL macro
    `semantic_distance`.
    """
    distances = np.zeros((len(queries), len(coverages)))
    for a, b in zip(queries.T.astype(np.float64), coverages.T.astype(np.float64), strict=True):
        distances += np.abs(a[:, None] - b)
    return distances


def hamming_distances(queries: Ints, words: Ints) -> NDArray[np.int32]:
    """Return the number of bits that differ between rows of words: (q, W), (n, W) → (q, n)."""
    return _count_bits(np.bitwise_xor, queries, words)


def mask_overlaps(queries: Ints, words: Ints) -> Floats:
    """Return the IoU of masks, bitmaps of all classes together: (q, W), (n, W) → (q, n) in [0, 1].

    The IoU is cells in both masks / cells in either (Waqas 2023), NaN if both are empty.
    """
    both, either = (_count_bits(f, queries, words) for f in (np.bitwise_and, np.bitwise_or))
    undefined = np.full(both.shape, np.nan)
    return np.asarray(np.divide(both, either, out=undefined, where=either > 0))


def _count_bits(combine: np.ufunc, queries: Ints, words: Ints) -> NDArray[np.int32]:
    """Return the number of set bits in combinations of rows: (q, W), (n, W) → (q, n)."""
    counts = np.zeros((len(queries), len(words)), np.int32)
    # unsigned: NumPy counts the bits of the absolute value of a negative number
    for a, b in zip(queries.view(np.uint64).T, words.view(np.uint64).T, strict=True):
        counts += np.bitwise_count(combine(a[:, None], np.ascontiguousarray(b)))
    return counts
