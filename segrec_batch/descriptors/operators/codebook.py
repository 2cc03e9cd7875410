"""Visual words and the vectors BoVW and VLAD of an image."""

from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from segrec_batch.common.errors import InputError
from segrec_batch.descriptors.operators.keypoints import Extractor
from segrec_batch.descriptors.operators.signature import sums

Vectors = NDArray[np.float32]
_CRITERIA = (cv2.TERM_CRITERIA_MAX_ITER | cv2.TERM_CRITERIA_EPS, 25, 0.1)


def learn_words(extract: Extractor, images: Iterable[NDArray[np.uint8]], words: int) -> Vectors:
    """Return visual words (words, dim) learned from images (H, W, 3). Raises InputError."""
    return vocabulary(sample(extract, images, words), words)


def sample(extract: Extractor, images: Iterable[NDArray[np.uint8]], words: int) -> Vectors:
    """Return the local descriptors (n, dim) of images; raise InputError if n < `words`."""
    samples = [extract(image).vectors for image in images]
    vectors = np.concatenate([np.zeros((0, extract.dim), np.float32), *samples])
    if len(vectors) < words:
        raise InputError(
            f"{len(samples)} images have {len(vectors)} local descriptors, too few for {words} "
            "words: use fewer words or more images"
        )
    return vectors


def vocabulary(vectors: Vectors, words: int, seed: int = 0) -> Vectors:
    """Return centres (words, dim) of k-means on vectors (n, dim), seeded by k-means++.

    It stops after 25 iterations, or when no centre moves by 0.1 (values of SIFT go up to 255).

    Source: Arthur, Vassilvitskii 2007.
    """
    cv2.setRNGSeed(seed)  # k-means++ draws from the generator of this thread
    labels = np.zeros((0, 1), np.int32)
    _, _, centres = cv2.kmeans(vectors, words, labels, _CRITERIA, 1, cv2.KMEANS_PP_CENTERS)
    return np.asarray(centres, np.float32)


def nearest(vectors: Vectors, words: Vectors) -> NDArray[np.int64]:
    """Return the nearest of the words (K, dim) to each vector (m, dim): (m,)."""
    return nearest_words(vectors, words, 1)[:, 0]


def nearest_words(vectors: Vectors, words: Vectors, n: int) -> NDArray[np.int64]:
    """Return the n nearest of the words (K, dim) to each vector (m, dim) by L2: (m, n)."""
    if not len(vectors):
        return np.zeros((0, n), np.int64)
    _, indices = cv2.batchDistance(vectors, words, cv2.CV_32F, normType=cv2.NORM_L2SQR, K=n)
    return np.asarray(indices, np.int64)


def bovw(vectors: Vectors, words: Vectors) -> Vectors:
    """Return the bag of visual words (K,) of vectors (n, dim): a histogram at unit length.

    At unit length, the Euclidean distance gives the same order as the normalised scalar product of
    Sivic and Zisserman (2003). Words are not weighted. Without local descriptors the result is
    zero.

    Source: Csurka 2004.
    """
    return unit(np.bincount(nearest(vectors, words), minlength=len(words)))


def vlad(vectors: Vectors, words: Vectors) -> Vectors:
    """Return VLAD (K · dim,) of vectors (n, dim): the sum of residuals x − c per word.

    The result has unit length; the power law of Jégou 2012 is not applied. Without local
    descriptors the result is zero.

    Source: Jégou 2010, eq. 1.
    """
    members = nearest(vectors, words)
    counts = np.bincount(members, minlength=len(words))
    return unit((sums(vectors, members, len(words)) - counts[:, None] * words).ravel())


def unit(vector: NDArray[Any]) -> Vectors:
    """Return a vector at unit length, float32; zero stays zero."""
    length = np.sqrt((vector.astype(np.float64) ** 2).sum())
    return (vector / length if length else vector).astype(np.float32)
