"""Tests of n-BoVW and n-grams."""

from itertools import combinations_with_replacement

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segrec_batch.common.errors import InputError
from segrec_batch.descriptors import module
from segrec_batch.descriptors.operators.keypoints import Local
from segrec_batch.descriptors.operators.phrases import (
    n_bovw,
    n_grams,
    phrase_count,
    phrase_numbers,
)
from tests.support.builders import quick
from tests.support.described import Learned

WORDS = np.array([[0], [10], [20]], np.float32)


def local(*points: tuple[int, int, float]) -> Local:
    """Return local descriptors of one value from (row, column, value)."""
    rows, columns, values = np.array(points).reshape(-1, 3).T
    vectors = values[:, None].astype(np.float32)
    return Local(rows.astype(np.int64), columns.astype(np.int64), vectors)


def test_n_bovw_of_known_values() -> None:
    """4 is nearest to 0 and 10, 16 to 20 and 10, 19 to 20 and 10."""
    vectors = np.array([[4], [16], [19]], np.float32)
    expected = {1: [1, 0, 2], 2: [1, 3, 2], 3: [3, 3, 3]}
    for n, counts in expected.items():
        unit = np.array(counts) / np.linalg.norm(counts)
        np.testing.assert_allclose(n_bovw(vectors, WORDS, n), unit, rtol=1e-6)


@given(m=st.integers(0, 20), words=st.integers(1, 6), data=st.data(), seed=st.integers(0, 99))
@quick
def test_n_bovw_equals_plain_loops(m: int, words: int, data: st.DataObject, seed: int) -> None:
    n = data.draw(st.integers(1, words))
    rng = np.random.default_rng(seed)
    x, c = (rng.normal(size=(k, 5)).astype(np.float32) for k in (m, words))
    histogram = np.zeros(words)
    for vector in x.astype(float):
        by_distance = sorted(range(words), key=lambda k: float(((vector - c[k]) ** 2).sum()))
        histogram[by_distance[:n]] += 1
    actual = n_bovw(x, c, n)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, histogram / (np.linalg.norm(histogram) or 1), atol=1e-6)


def test_n_grams_of_known_values() -> None:
    """Words 0, 1, 2, 2; the first two and the last two are neighbours of each other.

    The pairs of words are 00, 01, 11, 02, 12, 22.
    """
    image = local((0, 0, 1), (0, 1, 9), (0, 5, 18), (0, 7, 22))
    expected = np.array([0, 2, 0, 0, 0, 2]) / np.sqrt(8)
    np.testing.assert_allclose(n_grams(image, WORDS, 2), expected, rtol=1e-6)
    np.testing.assert_allclose(n_grams(image, WORDS, 1), np.array([1, 1, 2]) / np.sqrt(6))


def test_n_grams_join_keypoints_of_one_pixel() -> None:
    """SIFT has a keypoint for each orientation of a pixel."""
    image = local((3, 3, 0), (3, 3, 10), (9, 9, 20))
    expected = np.array([0, 2, 0, 1, 0, 0]) / np.sqrt(5)  # the third is as close to the first
    np.testing.assert_allclose(n_grams(image, WORDS, 2), expected, rtol=1e-6)


@given(m=st.integers(0, 12), n=st.integers(1, 4), seed=st.integers(0, 99))
@quick
def test_n_grams_equal_plain_loops(m: int, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    places, kinds = rng.integers(0, 6, (m, 2)), rng.integers(0, 3, m)
    phrases = list(combinations_with_replacement(range(3), n))
    phrases.sort(key=lambda phrase: phrase[::-1])
    histogram = np.zeros(len(phrases))
    for i in range(m if m >= n else 0):
        others = [j for j in range(m) if j != i]
        others.sort(key=lambda j: int(((places[i] - places[j]) ** 2).sum()))
        phrase = sorted(int(kinds[j]) for j in [i, *others[: n - 1]])
        histogram[phrases.index(tuple(phrase))] += 1
    image = local(*((y, x, 10 * k) for (y, x), k in zip(places, kinds, strict=True)))
    actual = n_grams(image, WORDS, n)
    assert (actual.shape, actual.dtype) == (histogram.shape, np.float32)
    np.testing.assert_allclose(actual, histogram / (np.linalg.norm(histogram) or 1), atol=1e-6)


@pytest.mark.parametrize(("words", "n"), [(1, 3), (4, 1), (5, 2), (4, 4)])
def test_phrases_have_consecutive_numbers(words: int, n: int) -> None:
    phrases = np.array(list(combinations_with_replacement(range(words), n)))
    assert phrase_count(words, n) == len(phrases)
    assert sorted(phrase_numbers(phrases, words)) == list(range(len(phrases)))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("nbovw", {"n": "6", "words": "5"}, "n=6 is more than words=5"),
        ("nbovw", {"n": "0"}, "n=0 is not a whole number of 1 or more"),
        ("ngram", {"n": "4"}, "words=50 with n=4 gives vectors of 292,825 values, more than"),
        ("ngram", {"phrase": "2"}, "unknown argument 'phrase'; known are n, words, keypoints"),
    ],
)
def test_fit_rejects_bad_arguments(name: str, arguments: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        module(name).fit(arguments, Learned())
