"""Products, distances and overlaps of a block of q vectors with n others, all at once.

Each value is the same whatever the blocks, the number of threads and the machine, so that equal
vectors have equal scores and ties are broken by image_id alone.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Features = NDArray[np.float32]
Words = NDArray[np.int64]
Prepare = Callable[[Features], Floats]

_TILE = 2**21  # values of candidates that are in float64 at once: 16 MB
_COLUMNS = 512  # whose mixed products are exact, see `dots`
_HIGH, _LOW = 2.0**26, 2.0**48  # 1 / the grids of the two parts of a value


def standardised(features: Features) -> Floats:
    """(x − x̄) / ‖x − x̄‖ of rows, so that Pearson is a dot product; NaN for constant rows."""
    x = features.astype(np.float64)
    usable = np.isfinite(x).all(axis=1)
    x[~usable] = 0
    x -= x.mean(axis=1, keepdims=True)
    return _unit(x, usable & (features.max(axis=1) > features.min(axis=1)))


def normalised(features: Features) -> Floats:
    """x / ‖x‖ of rows; NaN for zero rows."""
    x = features.astype(np.float64)
    usable = np.isfinite(x).all(axis=1)
    x[~usable] = 0
    return _unit(x, usable & (x != 0).any(axis=1))


def _unit(x: Floats, usable: NDArray[np.bool_]) -> Floats:
    x[~usable] = np.nan
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x


def dots(asked: Features, features: Features, prepare: Prepare) -> Floats:
    """x · y of prepared rows, of length 1 or less: (q, C), (n, C) → (q, n), exact but for
    C · 2^-54 + √C · 2^-48: 1e-13 for 512 values, 1e-12 for 8192.

    A value is split into h, a multiple of 2^-26, and l, a multiple of 2^-48 of at most 2^-27.
    Products h·h are multiples of 2^-52, and any of them sum up to less than 2, as ‖h‖ is at most
    1 + √C · 2^-27 (Cauchy and Schwarz). Mixed products are multiples of 2^-74, and those of 512
    columns sum up to less than 2^-21. float64 holds all of these, so that no order of summation, as
    a matrix product may choose it, rounds. The sums of 512 columns each are then added, first to
    last, to that of h·h: this does round, but always in the same way. What is left out is l·l, at
    most C · 2^-54, and what l was rounded by, at most √C · 2^-49 in each row.
    """
    high, low = _split(prepare(asked))
    found = np.empty((len(asked), len(features)))
    for tile in _tiles(features):
        first, second = _split(prepare(features[tile]))
        sums = high @ first.T
        for some in _columns(features):
            mixed = np.hstack([high[:, some], low[:, some]])
            sums += mixed @ np.hstack([second[:, some], first[:, some]]).T
        found[:, tile] = sums
    return found


def squares(features: Features, prepare: Prepare) -> Floats:
    """x · x of prepared rows: (n,), as `dots` gives it."""
    found = np.empty(len(features))
    for tile in _tiles(features):
        high, low = _split(prepare(features[tile]))
        sums = (high * high).sum(axis=1)
        for some in _columns(features):
            sums += 2 * (high[:, some] * low[:, some]).sum(axis=1)
        found[tile] = sums
    return found


def longest(features: Features) -> float:
    """The length of the longest row that is finite, 0 without any."""
    found = 0.0
    for tile in _tiles(features):
        lengths = np.linalg.norm(features[tile].astype(np.float64), axis=1)
        found = max(found, lengths[np.isfinite(lengths)].max(initial=0))
    return float(found)


def _tiles(features: Features) -> Iterator[slice]:
    """Rows that may be in float64 at once."""
    step = max(_TILE // features.shape[1], 1)
    return (slice(start, start + step) for start in range(0, len(features), step))


def _columns(features: Features) -> Iterator[slice]:
    return (slice(c, c + _COLUMNS) for c in range(0, features.shape[1], _COLUMNS))


def _split(x: Floats) -> tuple[Floats, Floats]:
    high = np.rint(x * _HIGH) / _HIGH
    return high, np.rint((x - high) * _LOW) / _LOW


def semantic_distances(asked: NDArray[np.float32], shares: NDArray[np.float32]) -> Floats:
    """Σ_k |a_k − b_k| over all classes and the background (Ouni 2020, eq. 1), added in the order of
    the SQL macro `semantic_distance`: (q, K), (n, K) → (q, n) in [0, 2].
    """
    found = np.zeros((len(asked), len(shares)))
    for a, b in zip(asked.T.astype(np.float64), shares.T.astype(np.float64), strict=True):
        found += np.abs(a[:, None] - b)
    return found


def hamming_distances(asked: Words, words: Words) -> NDArray[np.int32]:
    """In how many bits two rows of words differ: (q, W), (n, W) → (q, n)."""
    return _counted(np.bitwise_xor, asked, words)


def overlaps(asked: Words, words: Words) -> Floats:
    """Cells in both masks / cells in either, of all classes together (Waqas 2023): the bitmaps of
    the classes one after the other (q, W), (n, W) → (q, n) in [0, 1], NaN if both are empty.
    """
    shared, either = _counted(np.bitwise_and, asked, words), _counted(np.bitwise_or, asked, words)
    nothing = np.full(shared.shape, np.nan)
    return np.asarray(np.divide(shared, either, out=nothing, where=either > 0))


def _counted(combine: np.ufunc, asked: Words, words: Words) -> NDArray[np.int32]:
    """The bits that are set in combinations of rows: (q, W), (n, W) → (q, n)."""
    found = np.zeros((len(asked), len(words)), np.int32)
    # without a sign: of a negative number NumPy counts the bits of its absolute value
    for a, b in zip(asked.view(np.uint64).T, words.view(np.uint64).T, strict=True):
        found += np.bitwise_count(combine(a[:, None], np.ascontiguousarray(b)))
    return found
