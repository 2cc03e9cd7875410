"""Mixtures of Gaussians with diagonal covariances."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.mixture import GaussianMixture

Floats = NDArray[np.float64]

_ITERATIONS = 200
_TOLERANCE = 0.01  # of the mean log-likelihood, nats per vector


def fit_mixture(vectors: Floats, count: int) -> dict[str, Floats]:
    """Fit a mixture by expectation maximisation that starts from k-means, with a fixed seed.

    Args:
        vectors: (n, dim), n ≥ `count`.
        count: number of Gaussians.

    Returns:
        `weights` (count,), `means` and `variances` (count, dim).
    """
    mixture = GaussianMixture(
        count, covariance_type="diag", random_state=0, max_iter=_ITERATIONS, tol=_TOLERANCE
    ).fit(vectors)
    return {
        "weights": mixture.weights_,
        "means": mixture.means_,
        "variances": mixture.covariances_,
    }


def restore_mixture(tensors: Mapping[str, Floats]) -> Any:
    """Return the `GaussianMixture` with the parameters that `fit_mixture` returned."""
    count, dim = tensors["means"].shape
    mixture = GaussianMixture(count, covariance_type="diag")
    mixture.weights_, mixture.means_ = tensors["weights"], tensors["means"]
    mixture.covariances_ = tensors["variances"]
    mixture.precisions_cholesky_ = 1 / np.sqrt(tensors["variances"])
    mixture.n_features_in_ = dim
    return mixture
