"""Moments of many vectors, computed in pieces without torch."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segrec_batch.descriptors import Moments, Prepare
from segrec_batch.index.files import DataFile
from segrec_batch.index.parts import read_column

_ROWS = 8192  # maximum number of rows that are converted to float64 at once


def compute_moments(vectors: NDArray[np.floating[Any]]) -> Moments:
    """Return the moments of vectors (n, C), n ≥ 1."""
    centred = vectors.astype(np.float64)
    mean = centred.mean(axis=0)
    centred -= mean
    return Moments(len(centred), mean, centred.T @ centred)


def merge_moments(parts: Iterable[Moments]) -> Moments:
    """Return the moments of the vectors of all parts; their order changes the last digits only.

    Source: Chan, Golub and LeVeque 1979, eq. 2.1, for vectors.
    """
    return reduce(_merge_pair, parts)


def _merge_pair(a: Moments, b: Moments) -> Moments:
    n, difference = a.n + b.n, b.mean - a.mean
    between = np.outer(difference, difference) * (a.n * b.n / n)
    return Moments(n, a.mean + difference * (b.n / n), a.scatter + b.scatter + between)


@dataclass(frozen=True)
class MomentsTask:
    """Files of `images` to read, and the function that prepares their features, if any."""

    index: str
    files: Sequence[DataFile]
    prepare: Prepare | None = None


def compute_file_moments(task: MomentsTask) -> Moments:
    """Return the moments of the features in files of `images`."""
    return merge_moments(part for file in task.files for part in _iter_moments(task, file))


def _iter_moments(task: MomentsTask, file: DataFile) -> Iterator[Moments]:
    column = read_column(task.index, file, "feature").combine_chunks()
    features = column.flatten().to_numpy().reshape(len(column), -1)
    for start in range(0, len(features), _ROWS):
        rows = features[start : start + _ROWS]
        yield compute_moments(task.prepare(rows) if task.prepare else rows)
