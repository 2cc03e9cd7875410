"""Fisher vectors of SIFT (Perronnin 2010), named in Ouni 2020 beside VLAD; classes are not used.

SIFT is projected on its principal components, whose distribution is a mixture of Gaussians with
diagonal covariances. The vector has the gradients of the log-likelihood of an image with respect to
the weights, means and deviations of the mixture, normalised by the Fisher information (Perronnin
2007), then the signed root of each value, at unit length (Perronnin 2010, sections 3.1 and 3.2).
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
    Vectors,
    parse_integers,
)
from segrec_batch.descriptors.operators import codebook, keypoints
from segrec_batch.descriptors.operators.projection import Projection, principal_components

_LOCAL = 50_000  # maximum number of local descriptors for the mixture


def fit(arguments: Mapping[str, str], samples: Samples) -> Parameters:
    """Fit components and mixture to SIFT of images of the index.

    Arguments: `words`, number of Gaussians; `dimension`, number of components of SIFT;
    `keypoints`, maximum per image; `images`, number of images. Tensors: `mean` (128,) and
    `components` (dimension, 128) of SIFT; `weights`, `means` and `variances` of the mixture.

    Raises:
        InputError: an argument is wrong, or the images have too few local descriptors.
    """
    settings = parse_integers(arguments, words=16, dimension=64, keypoints=500, images=500)
    from segrec_batch.training.mixtures import fit_mixture  # scikit-learn

    extract = keypoints.sift(settings["keypoints"])
    images = (image for b in samples.draw_images(settings["images"]) for image in b.pixels)
    vectors = codebook.sample(extract, images, settings["words"])
    mean, components = _components(vectors, settings["dimension"])
    step = -(-len(vectors) // _LOCAL)
    mixture = fit_mixture((vectors[::step] - mean) @ components.T, settings["words"])
    return Parameters(settings, {"mean": mean, "components": components, **mixture})


def _components(
    vectors: Vectors, dimension: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    mean = vectors.mean(axis=0, dtype=np.float64)
    centred = vectors - mean
    components, _ = principal_components(Moments(len(vectors), mean, centred.T @ centred))
    if dimension > len(components):
        raise InputError(
            f"dimension={dimension}, but {len(vectors):,} local descriptors span only "
            f"{len(components)} dimensions: give a smaller dimension, or more images"
        )
    return mean, components[:dimension]


class Descriptor:
    """Vector (words · (2 · dimension + 1),) at unit length: weights, means, deviations."""

    reads_pixels = True
    on_device = False

    def __init__(self, parameters: Parameters, classes: int, device: str) -> None:
        from segrec_batch.training.mixtures import restore_mixture  # scikit-learn

        self._project = Projection(parameters.tensors)
        self._mixture = restore_mixture(parameters.tensors)
        self._extract = keypoints.sift(parameters.settings["keypoints"])
        words, dimension = parameters.tensors["means"].shape
        self.length = words * (2 * dimension + 1)

    def __call__(self, images: ImageBatch) -> Described:
        """Return the vectors of images; zero for an image without keypoints."""
        rows = [self._fisher_vector(self._extract(p).vectors) for p in images.pixels]
        return Described(np.array(rows, np.float32).reshape(len(images), self.length))

    def _fisher_vector(self, vectors: Vectors) -> NDArray[np.float64]:
        from skimage.feature import fisher_vector  # imports scikit-learn

        if not len(vectors):
            return np.zeros(self.length)
        encode: Any = fisher_vector  # scikit-image has no types
        return np.asarray(encode(self._project(vectors), self._mixture, improved=True, alpha=0.5))
