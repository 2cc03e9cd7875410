"""Inputs of descriptors for tests: images with class maps and features, random networks."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import NDArray

from segrec_batch.descriptors import (
    ImageBatch,
    Moments,
    Parameters,
    Prepare,
    Result,
    Value,
    Vectors,
    module,
)
from segrec_batch.pipeline.moments import compute_moments
from tests.support.builders import smooth_batch

CLASSES = ("background", "car", "person", "tree")


@dataclass(frozen=True)
class Learned:
    """Samples of an index that has no images: features (n, C), and the folder of each."""

    features: Vectors = field(default_factory=lambda: np.zeros((0, 8), np.float32))
    folders: Sequence[str] = ()
    classes: Sequence[str] = CLASSES

    def compute_moments(self, prepare: Prepare | None = None) -> Moments:
        return compute_moments(prepare(self.features) if prepare else self.features)

    def draw_images(self, count: int) -> Iterator[ImageBatch]:
        raise NotImplementedError

    def draw_features(self, count: int) -> Iterator[tuple[Vectors, NDArray[np.uint8]]]:
        for start in range(0, min(count, len(self.features)), 7):
            rows = self.features[start : min(start + 7, count)]
            yield (
                rows,
                (np.arange(start, start + len(rows)) % 256).astype(np.uint8)[:, None].repeat(16, 1),
            )

    def map_slices(
        self, function: Callable[[Value, slice], Result], value: Value, rows: int
    ) -> Iterator[Result]:
        return (function(value, slice(i, i + 5)) for i in range(0, rows, 5))

    def read_labelled_features(self, count: int) -> tuple[Vectors, Sequence[str]]:
        return self.features[:count], self.folders[:count]


def images_of(
    pixels: NDArray[np.uint8], labels: NDArray[np.uint8], feature: Vectors | None = None
) -> ImageBatch:
    """Return images whose cells are their pixels."""
    n, k = len(pixels), len(CLASSES)
    counts = np.array([np.bincount(one.ravel(), minlength=k) for one in labels])
    feature = np.ones((n, 8), np.float32) if feature is None else feature
    regions = np.zeros((n, k, feature.shape[1]), np.float32)
    return ImageBatch(pixels, labels, feature, regions, counts)


def some_images(n: int = 4, seed: int = 0) -> ImageBatch:
    """Return soft images of 80 × 112, each with a car in a different box."""
    labels = np.zeros((n, 80, 112), np.uint8)
    for i in range(n):
        labels[i, 10 + i : 40 + 2 * i, 20 : 70 + 3 * i] = 1
    return images_of(smooth_batch(n, 80, 112, seed), labels)


@cache
def random_network(name: str) -> Parameters:
    """Return the parameters of alexnet or resnet50 with `random:0` weights."""
    result: Parameters = module(name).fit({"weights": "random:0"}, Learned())
    return result
