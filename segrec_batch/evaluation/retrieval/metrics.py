"""How alike vectors are: of some rows of a matrix (n, C) with all of them, (q, n).

Higher is more alike, NaN where it is not defined, as for all that is compared with a row of NaN.
Equal vectors have equal values (see `kernels`). All are rounded to 12 decimal places, `dot` and
`euclidean` relative to the longest vector, so that values that are equal in mathematics only are so
here, unless they lie where two rounded values meet.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from segrec_batch.evaluation.retrieval import kernels
from segrec_batch.evaluation.retrieval.kernels import Features, Floats

Metric = Callable[[NDArray[np.int64], Features], Floats]


def pearson(rows: NDArray[np.int64], vectors: Features) -> Floats:
    """Σ(x−x̄)(y−ȳ) / ‖x−x̄‖‖y−ȳ‖ (Abdullah 2026, eq. 6); not defined for constant vectors."""
    return _products(rows, vectors, kernels.standardised)


def cosine(rows: NDArray[np.int64], vectors: Features) -> Floats:
    """x·y / ‖x‖‖y‖; not defined for zero vectors."""
    return _products(rows, vectors, kernels.normalised)


def euclidean(rows: NDArray[np.int64], vectors: Features) -> Floats:
    """−‖x−y‖."""
    scale, scaled = _scaled(vectors)
    squares = kernels.squares(vectors, scaled)
    gaps = squares[rows][:, None] + squares - 2 * kernels.dots(vectors[rows], vectors, scaled)
    return -scale * np.sqrt(np.maximum(rounded(gaps), 0))


def dot(rows: NDArray[np.int64], vectors: Features) -> Floats:
    """x·y."""
    scale, scaled = _scaled(vectors)
    return scale**2 * _products(rows, vectors, scaled)


METRICS: Mapping[str, Metric] = {
    "pearson": pearson,
    "cosine": cosine,
    "euclidean": euclidean,
    "dot": dot,
}


def rounded(values: Floats) -> Floats:
    """To 12 decimal places."""
    return np.asarray(np.round(values, 12))


def _products(rows: NDArray[np.int64], vectors: Features, prepare: kernels.Prepare) -> Floats:
    return rounded(kernels.dots(vectors[rows], vectors, prepare))


def _scaled(vectors: Features) -> tuple[float, kernels.Prepare]:
    """A power of two that no vector is longer than, and what divides by it."""
    longest = kernels.longest(vectors)
    scale = float(2.0 ** np.ceil(np.log2(longest))) if longest else 1.0
    return scale, lambda features: features.astype(np.float64) / scale
