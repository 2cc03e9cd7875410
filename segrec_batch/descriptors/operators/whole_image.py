"""Descriptors that are networks: weights, vectors of whole images, principal components.

All take two arguments. `weights` is that of `networks.load_weights` (default: imagenet). `pca` is a
number of principal components (default: no, the vector itself): the components are those of the
vectors of sample images of the index, and the result is the projection of the centred vector on
them, to be compared by cosine (Krupa 2022, sections 3.2 and 3.3).
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from segrec_batch.common.errors import InputError
from segrec_batch.descriptors import (
    Described,
    ImageBatch,
    Parameters,
    Samples,
    Vectors,
    parse_integers,
)
from segrec_batch.descriptors.operators import networks
from segrec_batch.descriptors.operators.networks import Architecture
from segrec_batch.descriptors.operators.projection import Projection
from segrec_batch.model.device import resolve_device

DEFAULTS = {"weights": "imagenet", "pca": "no"}
_SAMPLES = 2000  # maximum number of images whose vectors give the components
_PCA = "pca."  # prefix of the tensors of the projection


def fit_network(
    architecture: Architecture, arguments: Mapping[str, str], samples: Samples
) -> Parameters:
    """Load the weights and, for `pca`, compute components from images of the index.

    Args:
        architecture: network up to the layer of the vector.
        arguments: `DEFAULTS`, or other values for them.
        samples: images of the index.

    Returns:
        The weights and, for `pca`, the tensors `pca.mean` (C,) and `pca.components` (d, C),
        float32. The setting `explained_variance_ratio` is the share of the samples' variance along
        each component.

    Raises:
        InputError: `pca` is no number, or larger than the samples allow.
        ModelError: the weights are not those of the network.
    """
    if arguments["pca"] == "no":
        return Parameters(*networks.load_weights(architecture, arguments["weights"]))
    dimension = parse_integers({"pca": arguments["pca"]}, pca=1)["pca"]
    settings, state = networks.load_weights(architecture, arguments["weights"])
    device = resolve_device("auto")
    network = networks.Network(architecture, state, "float32", device)
    batches = samples.draw_images(_SAMPLES)
    vectors = np.concatenate([network(networks.as_images(b.pixels, device)) for b in batches])
    shares, projection = _principal_components(vectors, dimension)
    return Parameters(
        {**settings, "pca": dimension, "explained_variance_ratio": shares},
        {**state, **{f"{_PCA}{name}": tensor for name, tensor in projection.items()}},
    )


def _principal_components(
    vectors: Vectors, dimension: int
) -> tuple[list[float], dict[str, NDArray[Any]]]:
    """Return shares of the variance, and `mean` and `components` of vectors (n, C).

    A singular value decomposition needs n · C numbers, the covariance of long vectors C².
    """
    mean = vectors.mean(axis=0, dtype=np.float64)
    _, singular, rows = np.linalg.svd(vectors - mean, full_matrices=False)
    variances = singular**2
    noise = (np.finfo(np.float32).eps * np.linalg.norm(vectors)) ** 2  # rounding of the vectors
    rank = min(int((variances > noise).sum()), len(vectors) - 1)
    if dimension > rank:
        raise InputError(
            f"pca={dimension}, but the vectors of {len(vectors):,} images span only {rank} "
            "dimensions: give a smaller number, or draw more images by --samples"
        )
    shares = (variances[:dimension] / variances.sum()).round(6).tolist()
    return shares, {
        "mean": mean.astype(np.float32),
        "components": rows[:dimension].astype(np.float32),
    }


class NetworkDescriptor:
    """Vector of the whole image: values ≥ 0 of a layer, or their projection on components."""

    reads_pixels: ClassVar[bool] = True
    on_device: ClassVar[bool] = True

    def __init__(
        self, architecture: Architecture, parameters: Parameters, device: str, precision: str
    ) -> None:
        self._device = device
        state = {n: t for n, t in parameters.tensors.items() if not n.startswith(_PCA)}
        self._network = networks.Network(architecture, state, precision, device)
        self._project: Projection | None = None
        self.length = architecture.length
        if "pca" in parameters.settings:
            self._project = Projection(parameters.tensors, _PCA)
            self.length = self._project.length

    def __call__(self, images: ImageBatch) -> Described:
        """Return the vectors of images."""
        vectors = self._network(networks.as_images(images.pixels, self._device))
        if self._project:
            vectors = self._project(vectors).astype(np.float32)
        return Described(vectors)
