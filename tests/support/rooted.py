"""Vectors of root-pca, and oracles for them: scikit-learn's PCA, and augmentation by a loop."""

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from segrec_batch import descriptors
from segrec_batch.descriptors import ImageBatch, Parameters
from tests.support.described import Learned

Rows = NDArray[np.float64]
Features = NDArray[np.float32]
ROOT_PCA = descriptors.module("root-pca")


def features(n: int = 60, channels: int = 12, seed: int = 0, low: float = 0) -> Features:
    """Return clustered features; below `low` they are `low`."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).gamma(1, 2, (5, channels))
    x = centres[rng.integers(5, size=n)] + rng.normal(0, 0.5, (n, channels))
    return np.maximum(x, low).astype(np.float32)


def fitted(x: Features, **arguments: object) -> Parameters:
    parameters: Parameters = ROOT_PCA.fit({k: str(v) for k, v in arguments.items()}, Learned(x))
    return parameters


def described(parameters: Parameters, x: Features) -> Features:
    nothing = np.zeros((len(x), 0, 0), np.uint8)
    regions = np.zeros((len(x), 4, 0), np.float32)
    batch = ImageBatch(nothing, nothing, x, regions, np.zeros((len(x), 4), np.int64))
    vectors: Features = ROOT_PCA.Descriptor(parameters, 4, "cpu")(batch).vectors
    return vectors


def projections(x: Features, new: Features, dimension: int) -> NDArray[np.float64]:
    """Return the projections of the roots of `new` at unit length, up to signs of columns."""
    roots = [np.where(y >= 0, 1, -1) * np.abs(y.astype(np.float64)) ** 0.5 for y in (x, new)]
    z = PCA(dimension, svd_solver="full").fit(roots[0]).transform(roots[1])
    return z / np.sqrt((z**2).sum(axis=1, keepdims=True))


def move(x: Rows, own: Rows, reference: Rows, level: Rows) -> Rows:
    """Return one vector after a round, by sorting all similarities.

    Args:
        x: the vector. own: the vector before all rounds.
        reference: reference vectors before all rounds, by which copies are known.
        level: reference vectors as they are in this round.
    """
    neighbours = [j for j in range(len(level)) if reference[j] @ own < 0.999]
    neighbours.sort(key=lambda j: -(level[j] @ x))
    total = x.copy()
    for j in neighbours[:10]:
        total += max(level[j] @ x, 0.0) ** 3 * level[j]
    return total / np.sqrt((total**2).sum())


def augmented(reference: Rows, vectors: Rows, rounds: int) -> Rows:
    """Return vectors after rounds among reference vectors, each image on its own."""
    level = reference
    current = vectors
    for number in range(rounds):
        current = np.array(
            [move(x, own, reference, level) for x, own in zip(current, vectors, strict=True)]
        )
        if number + 1 < rounds:
            level = np.array(
                [move(x, own, reference, level) for x, own in zip(level, reference, strict=True)]
            )
    return current
