"""Projection of vectors on principal components (Pearson 1901)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segrec_batch.common.errors import InputError
from segrec_batch.descriptors import Moments, Parameters


def fit_projection(moments: Moments, dimension: int) -> Parameters:
    """Return the tensors `mean` (C,) and `components` (d, C), float32.

    The setting `explained_variance_ratio` is the share of the variance along each component.

    Raises:
        InputError: the vectors span less than `dimension` dimensions.
    """
    components, variances = principal_components(moments)
    if dimension > len(components):
        raise InputError(
            f"dimension={dimension}, but the features of {moments.n:,} images span only "
            f"{len(components)} dimensions: give a smaller dimension"
        )
    shares = variances[:dimension] / np.trace(moments.scatter)
    return Parameters(
        {"dimension": dimension, "explained_variance_ratio": shares.round(6).tolist()},
        {
            "mean": moments.mean.astype(np.float32),
            "components": components[:dimension].astype(np.float32),
        },
    )


def principal_components(moments: Moments) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return orthonormal rows (rank, C) and the scatter (rank,) along each, largest first.

    The value of largest magnitude in a row is positive, so that results are reproducible.
    """
    values, vectors = np.linalg.eigh(moments.scatter)
    values, rows = values[::-1], vectors.T[::-1]
    noise = np.finfo(np.float64).eps * len(values) * max(values[0], 0)
    rank = min(int((values > noise).sum()), moments.n - 1)
    values, rows = values[:rank], rows[:rank]
    largest = np.abs(rows).argmax(axis=1)
    signs = np.sign(rows[np.arange(rank), largest])
    return np.ascontiguousarray(rows * signs[:, None]), values


class Projection:
    """Projection of rows (n, C) on the components of `fit_projection`: (n, d) float64."""

    def __init__(self, tensors: Mapping[str, NDArray[Any]], prefix: str = "") -> None:
        self._mean = tensors[f"{prefix}mean"].astype(np.float64)
        self._components = tensors[f"{prefix}components"].astype(np.float64)
        self.length = len(self._components)

    def __call__(self, rows: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Return the projections, the same in any batch after rounding to float32."""
        return np.asarray((rows - self._mean) @ self._components.T)
