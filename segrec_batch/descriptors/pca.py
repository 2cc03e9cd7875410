"""Principal components of the feature: 64 values, after Krupa 2022; compare by cosine.

The components are computed from the features of all images of the index (Krupa 2022, section 3.3;
Pearson 1901). The argument `dimension` (default: 64) is their number. Projections are nested: the
first d values of a longer projection are the projection of dimension d.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segrec_batch.common.errors import InputError
from segrec_batch.descriptors import (
    Described,
    ImageBatch,
    Moments,
    Parameters,
    Samples,
    parse_integers,
)


def fit(arguments: Mapping[str, str], samples: Samples) -> Parameters:
    """Compute the projection on principal components. Raises InputError."""
    dimension = parse_integers(arguments, dimension=64)["dimension"]
    return fit_projection(samples.compute_moments(), dimension)


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

    def __init__(self, parameters: Parameters) -> None:
        self._mean = parameters.tensors["mean"].astype(np.float64)
        self._components = parameters.tensors["components"].astype(np.float64)
        self.length = len(self._components)

    def __call__(self, rows: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Return the projections, the same in any batch after rounding to float32."""
        return np.asarray((rows - self._mean) @ self._components.T)


class Descriptor:
    """Projection of the feature, centred on the mean of the index."""

    reads_pixels = False
    on_device = False

    def __init__(self, parameters: Parameters, classes: int, device: str) -> None:
        self._projection = Projection(parameters)
        self.length = self._projection.length

    def __call__(self, images: ImageBatch) -> Described:
        """Return the vectors of images."""
        return Described(self._projection(images.feature).astype(np.float32))
