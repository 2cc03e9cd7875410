"""Visual words, and vectors of an image by the words of its local descriptors: BoVW and VLAD."""

from collections.abc import Iterable

import cv2
import numpy as np
from numpy.typing import NDArray

from segrec_batch.common.errors import InputError
from segrec_batch.descriptors.operators.keypoints import Extractor
from segrec_batch.descriptors.operators.signature import sums

Vectors = NDArray[np.float32]
_UNTIL = (cv2.TERM_CRITERIA_MAX_ITER | cv2.TERM_CRITERIA_EPS, 25, 0.1)


def learn(extract: Extractor, images: Iterable[NDArray[np.uint8]], words: int) -> Vectors:
    """The visual words of images, each (H, W, 3) → (words, dim). Raises InputError."""
    found = [extract(image).vectors for image in images]
    vectors = np.concatenate([np.zeros((0, extract.dim), np.float32), *found])
    if len(vectors) < words:
        raise InputError(
            f"{len(found)} images have {len(vectors)} local descriptors, too few for {words} "
            "words: ask for fewer words, or for more images"
        )
    return vocabulary(vectors, words)


def vocabulary(vectors: Vectors, words: int, seed: int = 0) -> Vectors:
    """Centres of k-means from k-means++ (Arthur, Vassilvitskii 2007): (n, dim) → (words, dim).

    At most 25 rounds, until no centre moves by 0.1: SIFT's values go to 255.
    """
    cv2.setRNGSeed(seed)  # of this thread, from which k-means++ draws
    labels = np.zeros((0, 1), np.int32)
    _, _, centres = cv2.kmeans(vectors, words, labels, _UNTIL, 1, cv2.KMEANS_PP_CENTERS)
    return np.asarray(centres, np.float32)


def nearest(vectors: Vectors, words: Vectors) -> NDArray[np.int64]:
    """The nearest word of each vector by Euclidean distance: (n, dim), (K, dim) → (n,)."""
    if not len(vectors):
        return np.zeros(0, np.int64)
    _, found = cv2.batchDistance(vectors, words, cv2.CV_32F, normType=cv2.NORM_L2SQR, K=1)
    return np.asarray(found[:, 0], np.int64)


def bovw(vectors: Vectors, words: Vectors) -> Vectors:
    """The bag of visual words: a histogram of words (Csurka 2004) at unit length: (n, dim) → (K,).

    Unit length makes the Euclidean distance an order by the normalised scalar product of Sivic and
    Zisserman (2003). Words are not weighted. Zero where there are no local descriptors.
    """
    return _unit(np.bincount(nearest(vectors, words), minlength=len(words)).astype(np.float64))


def vlad(vectors: Vectors, words: Vectors) -> Vectors:
    """VLAD: per word the sum of residuals x − c (Jégou 2010, eq. 1): (n, dim) → (K · dim,).

    The whole at unit length, as there; without the power law of later work (Jégou 2012). Zero where
    there are no local descriptors.
    """
    found = nearest(vectors, words)
    counts = np.bincount(found, minlength=len(words))
    return _unit((sums(vectors, found, len(words)) - counts[:, None] * words).ravel())


def _unit(vector: NDArray[np.float64]) -> Vectors:
    length = np.sqrt((vector**2).sum())
    return (vector / length if length else vector).astype(np.float32)
