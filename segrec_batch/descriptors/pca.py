"""Principal components of the feature: 64 values, after Krupa 2022; compare by cosine.

The components are computed from the features of all images of the index (Krupa 2022, section 3.3;
Pearson 1901). The argument `dimension` (default: 64) is their number. Projections are nested: the
first d values of a longer projection are the projection of dimension d.
"""

from collections.abc import Mapping

import numpy as np

from segrec_batch.descriptors import Described, ImageBatch, Parameters, Samples, parse_integers
from segrec_batch.descriptors.operators.projection import Projection, fit_projection


def fit(arguments: Mapping[str, str], samples: Samples) -> Parameters:
    """Compute the projection on principal components. Raises InputError."""
    dimension = parse_integers(arguments, dimension=64)["dimension"]
    return fit_projection(samples.compute_moments(), dimension)


class Descriptor:
    """Projection of the feature, centred on the mean of the index."""

    reads_pixels = False
    on_device = False

    def __init__(self, parameters: Parameters, classes: int, device: str) -> None:
        self._projection = Projection(parameters.tensors)
        self.length = self._projection.length

    def __call__(self, images: ImageBatch) -> Described:
        """Return the vectors of images."""
        return Described(self._projection(images.feature).astype(np.float32))
