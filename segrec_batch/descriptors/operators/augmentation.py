"""Augmentation: a vector becomes the weighted mean of itself and its nearest reference vectors.

Source: Turcot and Lowe 2009; Arandjelović and Zisserman 2012. The weight of a neighbour is the cube
of its similarity (Radenović 2018).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float64]
Reference = NDArray[np.float16]
Ints = NDArray[np.int64]
Places = tuple[NDArray[np.intp], ...]

NEIGHBOURS = 10
POWER = 3
COPY = 0.999
"""Similarity from which a reference vector is that of the image itself, or of a copy."""

_TILE = 4096  # reference vectors that are float64 at a time
_BATCH = 256  # vectors that are compared with a tile at once: 8 MiB of similarities


def unit(rows: Rows) -> Rows:
    """Return rows at length 1; NaN for a zero row."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    defined = np.where(lengths > 0, lengths, np.nan)
    return np.asarray(rows / defined)


def augment(vectors: Rows, references: Sequence[Reference]) -> Rows:
    """Return vectors after a round with each of `references`, at length 1.

    A round replaces x by x + Σ s³ r over the NEIGHBOURS reference vectors r of greatest similarity
    s = x · r above 0. Reference vectors of copies, by the similarity before the first round, are
    no neighbours in any round: an image of the reference set counts once, like any other.

    Args:
        vectors: (n, d) of length 1, or NaN.
        references: (R, d), R ≥ 1, for each round, of the same images in the same order: as they are
            after the rounds before.
    """
    result = np.full_like(vectors, np.nan)
    defined = np.flatnonzero(np.isfinite(vectors).all(axis=1))
    for start in range(0, len(defined), _BATCH):
        rows = defined[start : start + _BATCH]
        x = vectors[rows]
        copies: list[Places] = []
        for reference in references:
            x = _round(x, reference, copies)
        result[rows] = x
    return result


def _round(x: Rows, reference: Reference, copies: list[Places]) -> Rows:
    """Return rows after a round; the first round fills `copies`, the places of copies by tile."""
    best = np.full((len(x), NEIGHBOURS), -np.inf)
    rows = np.zeros((len(x), NEIGHBOURS), np.int64)
    is_first = not copies
    for i, start in enumerate(range(0, len(reference), _TILE)):
        similarities = x @ reference[start : start + _TILE].astype(np.float64).T
        if is_first:
            copies.append(np.nonzero(similarities >= COPY))
        similarities[copies[i]] = -np.inf
        best, rows = _merge(best, rows, similarities, start)
    weights = np.maximum(best, 0) ** POWER
    return unit(x + np.einsum("nk,nkd->nd", weights, reference[rows].astype(np.float64)))


def _merge(best: Rows, rows: Ints, similarities: Rows, start: int) -> tuple[Rows, Ints]:
    """Return the NEIGHBOURS greatest of `best` (n, k) and a tile (n, t), and their rows."""
    values = np.hstack([best, similarities])
    tile = np.broadcast_to(np.arange(start, start + similarities.shape[1]), similarities.shape)
    first = np.argpartition(-values, NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS]
    return (
        np.take_along_axis(values, first, axis=1),
        np.take_along_axis(np.hstack([rows, tile]), first, axis=1),
    )
