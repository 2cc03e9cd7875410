"""Tests of root-pca: roots, components and unit vectors against scikit-learn."""

import numpy as np
import pytest

from segrec_batch import descriptors
from segrec_batch.common.errors import InputError, ModelError
from segrec_batch.model.names import is_descriptor_id, is_descriptor_name
from segrec_batch.model.spec import DescriptorSpec
from segrec_batch.search.filters import Method
from segrec_batch.search.similarity import METRICS
from tests.support.described import Learned
from tests.support.rooted import ROOT_PCA, described, features, fitted, projections


@pytest.mark.parametrize("low", [0, -9])
@pytest.mark.parametrize("dimension", [2, 5, 12])
def test_vectors_equal_scikit_learn(dimension: int, low: float) -> None:
    x, new = features(low=low), features(9, seed=1, low=low)
    assert (new < 0).any() == (low < 0)
    vectors = described(fitted(x, dimension=dimension), new)
    assert (vectors.shape, vectors.dtype) == ((9, dimension), np.float32)
    projected = projections(x, new, dimension)
    np.testing.assert_allclose(np.abs(vectors), np.abs(projected), atol=1e-5)
    np.testing.assert_allclose(vectors @ vectors.T, projected @ projected.T, atol=1e-5)


def test_metrics_rank_alike() -> None:
    x = features()
    vectors = described(fitted(x, dimension=5), x)
    rows = np.arange(len(x))
    by_cosine = METRICS["cosine"].scores(rows, vectors)
    by_distance = METRICS["euclidean"].scores(rows, vectors)
    np.testing.assert_allclose(2 - by_distance**2, 2 * by_cosine, atol=1e-5)


def test_image_at_the_mean_has_no_vector() -> None:
    x = np.array([[1, 4], [9, 16]], np.float32)  # roots 1, 2 and 3, 4: their mean is 2, 3
    vectors = described(fitted(x, dimension=1), np.array([[4, 9], [1, 4]], np.float32))
    assert np.isnan(vectors[0]).all()
    np.testing.assert_allclose(np.abs(vectors[1]), 1)


def test_vector_is_independent_of_batch() -> None:
    new = features(9, 512, seed=2)
    parameters = fitted(features(300, 512), dimension=64)
    alone = np.concatenate([described(parameters, row[None]) for row in new])
    np.testing.assert_array_equal(alone, described(parameters, new))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dimension": "0"}, "dimension=0 is not a whole number of 1 or more"),
        ({"dimension": "13"}, "dimension=13, but the features of 60 images span only 12"),
        ({"dimensions": "3"}, "unknown argument 'dimensions'; known are dimension"),
    ],
)
def test_fit_rejects_bad_arguments(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ROOT_PCA.fit(arguments, Learned(features()))


def test_name_has_a_hyphen_and_its_module_an_underscore() -> None:
    assert ROOT_PCA.__name__ == "segrec_batch.descriptors.root_pca"
    assert "root-pca" in descriptors.names()
    assert descriptors.summaries()["root-pca"].startswith("Principal components of the square root")
    with pytest.raises(InputError, match=r"unknown descriptor 'root_pca'; known are .*root-pca"):
        descriptors.module("root_pca")


def test_no_descriptor_name_is_ambiguous_as_a_method() -> None:
    for name in descriptors.names():
        assert is_descriptor_name(name)
        assert is_descriptor_id(DescriptorSpec(name, {}, "0" * 64).id)
        assert Method.of(name) == Method(name, "euclidean")
        for metric in METRICS:
            assert Method.of(f"{name}-{metric}") == Method(name, metric)


@pytest.mark.parametrize("name", ["", "-", "a-", "-a", "a--b", "a/b", "a.b", "x" * 65, "é"])
def test_names_that_no_descriptor_has(name: str) -> None:
    assert not is_descriptor_name(name)
    assert not is_descriptor_id(f"{name}-01234567")
    with pytest.raises(ModelError, match="letters, digits and _, and single hyphens"):
        DescriptorSpec(name, {}, "0" * 64)
