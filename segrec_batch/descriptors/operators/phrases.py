"""Visual phrases: words of a keypoint and its neighbours, or of one keypoint, counted together.

Ouni 2020 (section 2 and table 6) names two: n-BoVW (Ouni, Urruty, Visani 2018), which gives each
keypoint several words, and n-grams (Pedrosa, Traina 2013), which join the words of each keypoint
and its closest spatial neighbours.
"""

from math import comb

import numpy as np
from numpy.typing import NDArray

from segrec_batch.descriptors.operators.codebook import Vectors, nearest, nearest_words, unit
from segrec_batch.descriptors.operators.keypoints import Local

Ints = NDArray[np.int64]


def n_bovw(vectors: Vectors, words: Vectors, n: int) -> Vectors:
    """Return the histogram (K,) of the n nearest words of each vector (m, dim), at unit length.

    Each vector adds 1 to each of its n words; with n = 1 the result is BoVW. Without local
    descriptors the result is zero.

    Source: Ouni, Urruty, Visani 2018, without its compression of phrases.
    """
    indices = nearest_words(vectors, words, n)
    return unit(np.bincount(indices.ravel(), minlength=len(words)))


def n_grams(local: Local, words: Vectors, n: int) -> Vectors:
    """Return the histogram of n-grams (phrase_count(K, n),) of an image, at unit length.

    Each keypoint gives one n-gram: its word and those of the n − 1 closest other keypoints by the
    Euclidean distance of their pixels, without order. At equal distances the larger response comes
    first. With fewer than n keypoints the result is zero.

    Source: Pedrosa, Traina 2013, as Ouni 2020 describes it in section 2.
    """
    if len(local.vectors) < n:
        return unit(np.zeros(phrase_count(len(words), n)))
    groups = np.column_stack([np.arange(len(local.rows)), _closest(local, n - 1)])
    phrases = np.sort(nearest(local.vectors, words)[groups], axis=1)
    numbers = phrase_numbers(phrases, len(words))
    return unit(np.bincount(numbers, minlength=phrase_count(len(words), n)))


def phrase_count(words: int, n: int) -> int:
    """Return the number of phrases of n words without order, repetitions included."""
    return comb(words + n - 1, n)


def _closest(local: Local, count: int) -> Ints:
    """Return the positions (m, count) of the closest other keypoints of each keypoint."""
    places = np.column_stack([local.rows, local.columns])
    distances = ((places[:, None] - places) ** 2).sum(axis=2)
    np.fill_diagonal(distances, np.iinfo(np.int64).max)  # a keypoint is not its own neighbour
    return np.argsort(distances, axis=1, kind="stable")[:, :count]


def phrase_numbers(phrases: Ints, words: int) -> Ints:
    """Return the number of each phrase (m, n), words in ascending order: 0 to phrase_count − 1.

    It is Σ C(word_i + i, i + 1) over i = 0 … n − 1, the combinatorial number system.
    """
    n = phrases.shape[1]
    terms = np.array([[comb(word + i, i + 1) for i in range(n)] for word in range(words)])
    return np.asarray(terms[phrases, np.arange(n)].sum(axis=1), np.int64)
