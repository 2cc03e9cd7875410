"""Mean and scatter of many vectors, computed in pieces without torch.

A *triple* is (n, mean (C,), scatter (C, C) = Σ (x − x̄)(x − x̄)ᵀ), float64.
"""

from collections.abc import Iterable, Sequence
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from segrec_batch.index.files import DataFile
from segrec_batch.index.parts import read_column

Matrix = NDArray[np.float64]
Triple = tuple[int, Matrix, Matrix]

_ROWS = 8192  # maximum rows that are float64 at a time


def from_rows(rows: NDArray[np.float32]) -> Triple:
    """Return the triple of the rows of (n, C), n ≥ 1."""
    exact = rows.astype(np.float64)
    mean = exact.mean(axis=0)
    exact -= mean
    return len(exact), mean, exact.T @ exact


def merge(triples: Iterable[Triple]) -> Triple:
    """Merge triples (Chan, Golub and LeVeque 1979, eq. 2.1, for vectors).

    The order changes the last digits only.
    """
    return reduce(_pair, triples)


def _pair(a: Triple, b: Triple) -> Triple:
    n, difference = a[0] + b[0], b[1] - a[1]
    mean = a[1] + difference * (b[0] / n)
    return n, mean, a[2] + b[2] + np.outer(difference, difference) * (a[0] * b[0] / n)


def from_files(job: tuple[str, Sequence[DataFile]]) -> Triple:
    """Return the triple of the features in files of `images`; `job` is the index and the files."""
    index, files = job
    return merge(_from_file(index, file) for file in files)


def _from_file(index: str, file: DataFile) -> Triple:
    column = read_column(index, file, "feature").combine_chunks()
    features = column.flatten().to_numpy().reshape(len(column), -1)
    return merge(from_rows(features[i : i + _ROWS]) for i in range(0, len(features), _ROWS))
