"""Tests of Fisher vectors."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.decomposition import PCA

from segrec_batch.common.errors import InputError
from segrec_batch.descriptors import Parameters, fisher
from segrec_batch.descriptors.operators import keypoints
from segrec_batch.training.mixtures import fit_mixture, restore_mixture
from tests.support.local_descriptors import PIXELS, Scenes, images

Floats = NDArray[np.float64]
ARGUMENTS = {"words": "3", "dimension": "8", "keypoints": "60"}


@pytest.fixture(scope="module")
def fitted() -> Parameters:
    return fisher.fit(ARGUMENTS, Scenes())


def local_descriptors(i: int) -> Floats:
    return keypoints.sift(60)(PIXELS[i]).vectors.astype(np.float64)


def posteriors(x: Floats, weights: Floats, means: Floats, variances: Floats) -> Floats:
    """Return γ_t(k) (n, K), Perronnin 2007, eq. 6."""
    densities = [
        w * norm.pdf(x, m, np.sqrt(v)).prod(axis=1)
        for w, m, v in zip(weights, means, variances, strict=True)
    ]
    return np.array(densities).T / np.sum(densities, axis=0)[:, None]


def fisher_by_hand(x: Floats, weights: Floats, means: Floats, variances: Floats) -> Floats:
    """Return the improved Fisher vector by loops over Gaussians: Perronnin 2010, eq. 5, 6, 9."""
    gamma = posteriors(x, weights, means, variances)
    blocks: list[list[Floats]] = [[], [], []]
    for k, (w, m, v) in enumerate(zip(weights, means, variances, strict=True)):
        z = (x - m) / np.sqrt(v)
        g = gamma[:, k, None]
        blocks[0].append(np.atleast_1d((gamma[:, k] - w).mean() / np.sqrt(w)))
        blocks[1].append((g * z).mean(axis=0) / np.sqrt(w))
        # scikit-image has the opposite sign, which changes no distance
        blocks[2].append(-(g * (z**2 - 1)).mean(axis=0) / np.sqrt(2 * w))
    vector = np.concatenate([np.concatenate(block) for block in blocks])
    vector = np.sign(vector) * np.sqrt(np.abs(vector))
    return vector / np.linalg.norm(vector)


def test_vectors_equal_formula(fitted: Parameters) -> None:
    described = fisher.Descriptor(fitted, 4, "cpu")
    actual = described(images(PIXELS)).vectors
    assert (described.length, actual.shape, actual.dtype) == (51, (6, 51), np.float32)
    t = fitted.tensors
    for i, vector in enumerate(actual):
        x = (local_descriptors(i) - t["mean"]) @ t["components"].T
        expected = fisher_by_hand(x, t["weights"], t["means"], t["variances"])
        np.testing.assert_allclose(vector, expected, atol=1e-4)


def test_components_equal_scikit_learn(fitted: Parameters) -> None:
    vectors = np.concatenate([local_descriptors(i) for i in range(6)])
    pca = PCA(8, svd_solver="full").fit(vectors)
    components = fitted.tensors["components"]
    signs = np.sign((components * pca.components_).sum(axis=1))
    np.testing.assert_allclose(components, pca.components_ * signs[:, None], atol=1e-4)
    np.testing.assert_allclose(fitted.tensors["mean"], pca.mean_, rtol=1e-6)


def test_mixture_is_a_fixed_point(fitted: Parameters) -> None:
    """Expectation and maximisation change it little."""
    t = fitted.tensors
    vectors = np.concatenate([local_descriptors(i) for i in range(6)])
    x = (vectors - t["mean"]) @ t["components"].T
    gamma = posteriors(x, t["weights"], t["means"], t["variances"])
    np.testing.assert_allclose(gamma.mean(axis=0), t["weights"], atol=0.02)
    means = gamma.T @ x / gamma.sum(axis=0)[:, None]
    np.testing.assert_allclose(means, t["means"], atol=0.1 * x.std())


def test_fit_mixture_returns_moments_of_clusters() -> None:
    rng = np.random.default_rng(0)
    sizes, centres, spreads = (100, 300), ([0, 50], [80, -20]), ([1, 4], [2, 3])
    clusters = [rng.normal(c, s, (n, 2)) for n, c, s in zip(sizes, centres, spreads, strict=True)]
    mixture = fit_mixture(rng.permutation(np.concatenate(clusters)), 2)
    order = np.argsort(mixture["weights"])
    np.testing.assert_allclose(mixture["weights"][order], [0.25, 0.75], atol=1e-6)
    np.testing.assert_allclose(mixture["means"][order], [c.mean(axis=0) for c in clusters])
    variances = [c.var(axis=0) for c in clusters]
    np.testing.assert_allclose(mixture["variances"][order], variances, rtol=1e-4)


def test_restored_mixture_has_the_posteriors_of_its_parameters(fitted: Parameters) -> None:
    mixture = {name: fitted.tensors[name] for name in ("weights", "means", "variances")}
    x = np.random.default_rng(0).normal(0, 100, (20, 8))
    actual = restore_mixture(mixture).predict_proba(x)
    np.testing.assert_allclose(actual, posteriors(x, **mixture), atol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dimension": "129"}, r"dimension=129, but [\d,]+ local descriptors span only 128 dim"),
        ({"words": "0"}, "words=0 is not a whole number of 1 or more"),
        ({"gaussians": "4"}, "unknown argument 'gaussians'; known are words, dimension"),
    ],
)
def test_fit_rejects_bad_arguments(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fisher.fit(arguments, Scenes())
