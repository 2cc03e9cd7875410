"""Principal components of the image's feature: 64 values, after Krupa 2022; compare by cosine.

The components are those of the features of all images of the index (Krupa 2022, section 3.3;
Pearson 1901). The argument `dimension` (default: 64) is how many of them are kept. Projections are
nested: the first d values of a longer one are the one of dimension d.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from segrec_batch.common.errors import InputError
from segrec_batch.descriptors import (
    Described,
    ImageBatch,
    Moments,
    Parameters,
    Samples,
    whole_numbers,
)


def fit(arguments: Mapping[str, str], samples: Samples) -> Parameters:
    """Tensors `mean` (C,) and `components` (d, C), float32; the setting `explained_variance_ratio`
    is what share of the features' variance each keeps. Raises InputError.
    """
    dimension = whole_numbers(arguments, dimension=64)["dimension"]
    moments = samples.moments()
    components, variances = principal_components(moments)
    if dimension > len(components):
        raise InputError(
            f"dimension={dimension}, but the features of {moments.n:,} images span only "
            f"{len(components)} dimensions, and no more can be kept"
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
    """Orthonormal rows (rank, C) and the scatter (rank,) along each, the largest first.

    Of a row the value that is largest without its sign is positive, so that fits repeat.
    """
    values, vectors = np.linalg.eigh(moments.scatter)
    values, rows = values[::-1], vectors.T[::-1]
    noise = np.finfo(np.float64).eps * len(values) * max(values[0], 0)
    rank = min(int((values > noise).sum()), moments.n - 1)
    values, rows = values[:rank], rows[:rank]
    largest = np.abs(rows).argmax(axis=1)
    signs = np.sign(rows[np.arange(rank), largest])
    return np.ascontiguousarray(rows * signs[:, None]), values


class Descriptor:
    """The feature's projection, centred on the mean of the index."""

    reads_pixels = False
    on_device = False

    def __init__(self, parameters: Parameters, classes: int, device: str) -> None:
        self._mean = parameters.tensors["mean"].astype(np.float64)
        self._components = parameters.tensors["components"].astype(np.float64)
        self.length = len(self._components)

    def __call__(self, images: ImageBatch) -> Described:
        """Describe images."""
        centred = images.feature - self._mean  # float64, so that no batch shows in float32
        return Described((centred @ self._components.T).astype(np.float32))
