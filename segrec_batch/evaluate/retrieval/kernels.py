"""Products, distances and overlaps of a block of q vectors with n others, all at once.

Each value is the same whatever the blocks, the number of threads and the machine, so that equal
vectors have equal scores and ties are broken by image_id alone.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Features = NDArray[np.float32]
Words = NDArray[np.int64]
Prepare = Callable[[Features], Floats]

_TILE = 4096  # candidates whose vectors are in float64 at once: 16 KB each
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
    """x · y of prepared rows, of length 1 or less and of 512 values or fewer: (q, C), (n, C) →
    (q, n), exact but for 1e-13.

    A value is split into multiples of 2^-26 and 2^-48. Products of the first parts are multiples of
    2^-52 whose sums stay below 2, the mixed ones multiples of 2^-74 with sums below 2^-21: float64
    holds all of these, so no order of summation, as a matrix product may choose it, rounds.
    """
    high, low = _split(prepare(asked))
    both = np.hstack([high, low])
    found = np.empty((len(asked), len(features)))
    for start in range(0, len(features), _TILE):
        tile = slice(start, start + _TILE)
        first, second = _split(prepare(features[tile]))
        found[:, tile] = high @ first.T + both @ np.hstack([second, first]).T
    return found


def squares(features: Features, prepare: Prepare) -> Floats:
    """x · x of prepared rows: (n,), as `dots` gives it."""
    found = np.empty(len(features))
    for start in range(0, len(features), _TILE):
        tile = slice(start, start + _TILE)
        high, low = _split(prepare(features[tile]))
        found[tile] = (high * high).sum(axis=1) + 2 * (high * low).sum(axis=1)
    return found


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
