"""Semantic signatures: one centre of local descriptors for each class of an image.

Source: Ouni, Royer, Chevaldonné, Dhome, A hybrid approach for improved image similarity using
semantic segmentation, ISVC 2020: section 3.1 and algorithm 1.
"""

import numpy as np
from numpy.typing import NDArray

from segrec_batch.descriptors.operators.keypoints import Extractor, Local


def signatures(
    extract: Extractor, images: NDArray[np.uint8], labels: NDArray[np.uint8], classes: int
) -> NDArray[np.float32]:
    """Return signatures (B, classes · dim) of images (B, H, W, 3) and class maps (B, H, W)."""
    rows = [
        centres(extract(image), map_, classes).ravel()
        for image, map_ in zip(images, labels, strict=True)
    ]
    return np.array(rows, np.float32).reshape(len(images), classes * extract.dim)


def centres(local: Local, labels: NDArray[np.uint8], classes: int) -> NDArray[np.float32]:
    """Return the centre of each class (classes, dim), background first, for labels (H, W).

    `Kmeans(SG, 1)` of the algorithm is the mean of the descriptors. An absent class has the null
    vector (section 3.1). The paper specifies none for a class without keypoints: also the null
    vector.

    Source: algorithm 1.
    """
    members = labels[local.rows, local.columns]
    counts = np.bincount(members, minlength=classes)
    means = sums(local.vectors, members, classes) / np.maximum(counts, 1)[:, None]
    return np.asarray(means, np.float32)


def sums(
    vectors: NDArray[np.float32], members: NDArray[np.integer], groups: int
) -> NDArray[np.float64]:
    """Return the sum (groups, dim) of each group of vectors (n, dim), members (n,) in 0..groups-1.

    It is not a matrix product, whose rounding depends on the number of threads.
    """
    totals = np.zeros((groups, vectors.shape[1]))
    for group in np.unique(members):
        totals[group] = vectors[members == group].sum(axis=0, dtype=np.float64)
    return totals
