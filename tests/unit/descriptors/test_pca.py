"""Tests of PCA and moments."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from segrec_batch.common.errors import InputError
from segrec_batch.descriptors import ImageBatch, Parameters, pca
from segrec_batch.descriptors.operators import projection
from segrec_batch.pipeline import moments
from tests.support.builders import quick
from tests.support.described import Learned

Features = NDArray[np.float32]


def features(n: int = 60, channels: int = 12, seed: int = 0) -> Features:
    """Values above 0 of which some go together, as those of a network."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(n, channels)) * np.linspace(3, 0.3, channels)
    return np.maximum(mixed @ rng.normal(size=(channels, channels)) + 2, 0).astype(np.float32)


def fitted(x: Features, dimension: int) -> Parameters:
    return pca.fit({"dimension": str(dimension)}, Learned(x))


def projected(parameters: Parameters, x: Features) -> Features:
    nothing = np.zeros((len(x), 0, 0), np.uint8)
    described = pca.Descriptor(parameters, 4, "cpu")(
        ImageBatch(nothing, nothing, x, np.zeros((len(x), 4, 0), np.float32), np.zeros((len(x), 4)))
    )
    assert described.categories is None
    return described.vectors


def unit(x: NDArray[np.floating]) -> NDArray[np.floating]:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("dimension", [1, 5, 12])
def test_projections_equal_scikit_learn(dimension: int) -> None:
    x, new = features(), features(9, seed=1)
    actual = fitted(x, dimension)
    expected = PCA(dimension, svd_solver="full").fit(x.astype(np.float64))
    shares = actual.settings["explained_variance_ratio"]
    np.testing.assert_allclose(shares, expected.explained_variance_ratio_, atol=1e-6)
    components = actual.tensors["components"]
    signs = np.sign((components * expected.components_).sum(axis=1))
    np.testing.assert_allclose(components, expected.components_ * signs[:, None], atol=1e-5)
    vectors = projected(actual, new)
    assert (vectors.shape, vectors.dtype) == ((9, dimension), np.float32)
    np.testing.assert_allclose(vectors, expected.transform(new) * signs, rtol=1e-4, atol=1e-4)


def test_components_are_singular_vectors() -> None:
    x = features()
    components = fitted(x, 12).tensors["components"]
    _, singular, rows = np.linalg.svd(x.astype(np.float64) - x.mean(axis=0, dtype=np.float64))
    np.testing.assert_allclose(np.abs((components * rows).sum(axis=1)), 1, atol=1e-5)
    largest = np.abs(components).argmax(axis=1)
    assert (components[np.arange(12), largest] > 0).all()
    _, variances = projection.principal_components(Learned(x).compute_moments())
    np.testing.assert_allclose(variances, singular**2, rtol=1e-9)


def test_fit_is_independent_of_order() -> None:
    x = features()
    for dimension in (3, 12):
        one, other = fitted(x, dimension), fitted(x[::-1], dimension)
        assert one.settings == other.settings
        for name, tensor in one.tensors.items():
            np.testing.assert_allclose(tensor, other.tensors[name], atol=1e-6)


def test_projections_are_nested() -> None:
    x = features()
    longest = projected(fitted(x, 12), x)
    for dimension in (1, 4, 11):
        np.testing.assert_array_equal(projected(fitted(x, dimension), x), longest[:, :dimension])


def test_cosine_in_full_rank_equals_centred_cosine() -> None:
    x = features()
    vectors = unit(projected(fitted(x, 12), x))
    centred = unit(x - x.mean(axis=0))
    np.testing.assert_allclose(vectors @ vectors.T, centred @ centred.T, atol=1e-5)


def test_vector_is_independent_of_batch() -> None:
    x, new = features(700, 512), features(9, 512, seed=2)
    result = fitted(x, 64)
    alone = np.concatenate([projected(result, row[None]) for row in new])
    np.testing.assert_array_equal(alone, projected(result, new))


def test_fit_rejects_more_dimensions_than_rank() -> None:
    few = features(5)
    assert fitted(few, 4).tensors["components"].shape == (4, 12)
    with pytest.raises(InputError, match=r"dimension=5, .* of 5 images span only 4"):
        fitted(few, 5)
    doubled = np.repeat(features(40)[:, :6], 2, axis=1)
    assert len(fitted(doubled, 6).tensors["components"]) == 6
    with pytest.raises(InputError, match=r"dimension=7, .* of 40 images span only 6"):
        fitted(doubled, 7)
    with pytest.raises(InputError, match=r"dimension=64, .* span only 12 dimensions"):
        pca.fit({}, Learned(features()))
    for same in (few[:1], np.repeat(few[:1], 3, axis=0)):
        with pytest.raises(InputError, match="span only 0"):
            fitted(same, 1)


@pytest.mark.parametrize("text", ["0", "-3", "2.5", "many", ""])
def test_fit_rejects_bad_dimension(text: str) -> None:
    with pytest.raises(InputError, match=f"dimension={text} is not a whole number"):
        pca.fit({"dimension": text}, Learned(features()))


def test_fit_rejects_unknown_arguments() -> None:
    with pytest.raises(InputError, match="unknown argument 'dimensions'; known are dimension"):
        pca.fit({"dimensions": "3"}, Learned(features()))


@given(cuts=st.lists(st.integers(1, 39), unique=True), seed=st.integers(0, 99), far=st.booleans())
@quick
def test_moments_merge_in_any_order(cuts: list[int], seed: int, far: bool) -> None:
    x = features(40, 5, seed) + (1e3 if far else 0)
    parts = [moments.compute_moments(rows) for rows in np.split(x, sorted(cuts))]
    order = np.random.default_rng(seed).permutation(len(parts))
    merged = moments.merge_moments([parts[i] for i in order])
    exact = x.astype(np.float64)
    assert merged.n == 40
    np.testing.assert_allclose(merged.mean, exact.mean(axis=0), rtol=1e-12)
    expected = np.cov(exact.T, bias=True) * 40
    np.testing.assert_allclose(merged.scatter, expected, atol=1e-9 * np.trace(expected))
