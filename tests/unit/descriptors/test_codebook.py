"""Tests of visual words and of the descriptors that use them."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from segrec_batch import descriptors
from segrec_batch.common.errors import InputError
from segrec_batch.descriptors import Descriptor, Parameters
from segrec_batch.descriptors.operators import codebook, keypoints
from tests.support.builders import quick
from tests.support.local_descriptors import PIXELS, Scenes, images

LENGTHS = {
    "bovw": 12,
    "vlad": 12 * 128,
    "nbovw": 12,
    "ngram": 12 * 13 // 2,
    "fisher": 12 * (2 * 64 + 1),
}


def fitted(name: str, **arguments: str) -> Parameters:
    made: Parameters = descriptors.module(name).fit({"words": "12", **arguments}, Scenes())
    return made


def descriptor(name: str, parameters: Parameters) -> Descriptor:
    made: Descriptor = descriptors.module(name).Descriptor(parameters, 2, "cpu")
    return made


def nearest(x: NDArray[np.float64], words: NDArray[np.float64]) -> int:
    return min(range(len(words)), key=lambda k: sum((x - words[k]) ** 2))


@given(
    n=st.integers(0, 20), dim=st.integers(1, 8), words=st.integers(1, 6), seed=st.integers(0, 99)
)
@quick
def test_bovw_and_vlad_equal_plain_loops(n: int, dim: int, words: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, c = (rng.normal(size=(m, dim)).astype(np.float32).astype(float) for m in (n, words))
    histogram, residuals = np.zeros(words), np.zeros((words, dim))
    for i in range(n):
        k = nearest(x[i], c)
        histogram[k] += 1  # Csurka 2004, section 3.3
        residuals[k] += x[i] - c[k]  # Jégou 2010, eq. 1
    for expected, function in (
        (histogram, codebook.bovw),
        (residuals.ravel(), codebook.vlad),
    ):
        actual = function(x.astype(np.float32), c.astype(np.float32))
        assert (actual.shape, actual.dtype) == (expected.shape, np.float32)
        unit = expected / (np.linalg.norm(expected) or 1)
        np.testing.assert_allclose(actual, unit, atol=1e-5)


def test_vocabulary_finds_cluster_centres() -> None:
    rng = np.random.default_rng(0)
    centres = rng.uniform(0, 255, (5, 128))
    points = (centres.repeat(30, axis=0) + rng.normal(0, 2, (150, 128))).astype(np.float32)
    result = codebook.vocabulary(points[rng.permutation(150)], 5)
    order = [nearest(c, result.astype(float)) for c in centres]
    assert sorted(order) == list(range(5))
    means = points.reshape(5, 30, 128).mean(axis=1)
    np.testing.assert_allclose(result[order], means, rtol=1e-4)


def test_vocabulary_depends_on_seed_only() -> None:
    points = np.random.default_rng(0).uniform(0, 255, (200, 16)).astype(np.float32)
    first = codebook.vocabulary(points, 8)
    cv2.setRNGSeed(77)
    try:
        cv2.setNumThreads(4)
        np.testing.assert_array_equal(codebook.vocabulary(points, 8), first)
    finally:
        cv2.setNumThreads(1)
    assert not np.array_equal(codebook.vocabulary(points, 8, seed=1), first)


def test_vocabulary_of_n_points_is_the_points() -> None:
    points = np.random.default_rng(0).uniform(0, 255, (7, 16)).astype(np.float32)
    result = codebook.vocabulary(points, 7)
    np.testing.assert_allclose(np.sort(result, axis=0), np.sort(points, axis=0), rtol=1e-5)


@pytest.mark.parametrize("name", ["bovw", "vlad"])
def test_fit_learns_words_from_index_images(name: str) -> None:
    actual = fitted(name, keypoints="40", images="5")
    assert actual.settings == {"words": 12, "keypoints": 40, "images": 5}
    words = actual.tensors["words"]
    assert (words.shape, words.dtype) == ((12, 128), np.float32)
    np.testing.assert_array_equal(words, fitted(name, keypoints="40", images="5").tensors["words"])
    seen = [keypoints.sift(40)(p).vectors for p in PIXELS[:5]]
    expected = codebook.vocabulary(np.concatenate(seen), 12)
    np.testing.assert_array_equal(words, expected)


@pytest.mark.parametrize("name", LENGTHS)
def test_vectors_are_independent_of_batch(name: str) -> None:
    describe = descriptor(name, fitted(name))
    assert (describe.length, describe.reads_pixels) == (LENGTHS[name], True)
    result = describe(images(PIXELS)).vectors
    assert result.shape == (6, LENGTHS[name])
    np.testing.assert_allclose(np.linalg.norm(result, axis=1), 1, rtol=1e-5)
    for i in (4, 0):
        np.testing.assert_array_equal(describe(images(PIXELS[i : i + 1])).vectors[0], result[i])


@pytest.mark.parametrize("name", LENGTHS)
def test_vector_of_rotated_image_is_nearest(name: str) -> None:
    describe = descriptor(name, fitted(name))
    result, turned = (
        describe(images(p)).vectors for p in (PIXELS, np.rot90(PIXELS, axes=(1, 2)).copy())
    )
    distances = np.linalg.norm(turned[:, None] - result, axis=2)
    np.testing.assert_array_equal(distances.argmin(axis=1), np.arange(6))
    assert distances.diagonal().max() < 0.6


@pytest.mark.parametrize("name", LENGTHS)
def test_vector_without_keypoints_is_zero(name: str) -> None:
    describe = descriptor(name, fitted(name))
    assert (describe(images(np.full_like(PIXELS[:2], 128))).vectors == 0).all()


@pytest.mark.parametrize(
    "name", sorted(set(LENGTHS) - {"ngram"})
)  # whose vectors would be too long
def test_fit_rejects_more_words_than_descriptors(name: str) -> None:
    with pytest.raises(InputError, match=r"2 images have \d+ local descriptors, too few for 999"):
        fitted(name, words="999", images="2")
