"""Semantic signatures: one centre of local descriptors for each class of an image.

Ouni, Royer, Chevaldonné, Dhome, A hybrid approach for improved image similarity using semantic
segmentation, ISVC 2020: section 3.1 and algorithm 1.
"""

import numpy as np
from numpy.typing import NDArray

from segrec_batch.descriptors.operators.keypoints import Extractor, Local


def signatures(
    extract: Extractor, images: NDArray[np.uint8], labels: NDArray[np.uint8], classes: int
) -> NDArray[np.float32]:
    """Of images (B, H, W, 3) and the class of each pixel (B, H, W) → (B, classes · dim)."""
    found = [
        centres(extract(image), map_, classes).ravel()
        for image, map_ in zip(images, labels, strict=True)
    ]
    return np.array(found, np.float32).reshape(len(images), classes * extract.dim)


def centres(local: Local, labels: NDArray[np.uint8], classes: int) -> NDArray[np.float32]:
    """The centre of each class, background first (algorithm 1): labels (H, W) → (classes, dim).

    `Kmeans(SG, 1)` of the algorithm is the mean: one cluster holds all, and of all points their
    mean has the least sum of squared distances. A class that is absent has the null vector (section
    3.1). So has one that is present without a keypoint, of which the paper says nothing.
    """
    members = labels[local.rows, local.columns]
    counts = np.bincount(members, minlength=classes)
    means = sums(local.vectors, members, classes) / np.maximum(counts, 1)[:, None]
    return np.asarray(means, np.float32)


def sums(
    vectors: NDArray[np.float32], members: NDArray[np.integer], groups: int
) -> NDArray[np.float64]:
    """The sum of each group of vectors (n, dim), members (n,) in 0..groups-1 → (groups, dim).

    Not a matrix product, whose rounding would depend on the number of threads.
    """
    found = np.zeros((groups, vectors.shape[1]))
    for group in np.unique(members):
        found[group] = vectors[members == group].sum(axis=0, dtype=np.float64)
    return found
