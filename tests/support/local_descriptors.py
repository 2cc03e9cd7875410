"""Images from which descriptors of local descriptors learn."""

from collections.abc import Iterator

import numpy as np

from segrec_batch.descriptors import ImageBatch, Moments, Vectors
from segrec_batch.sample_data import render_scene
from tests.support.builders import Pixels

PIXELS = np.stack([render_scene(place, 0, seed=0, size=(128, 96)).image for place in range(6)])


def images(pixels: Pixels) -> ImageBatch:
    n = len(pixels)
    return ImageBatch(
        pixels,
        np.zeros(pixels.shape[:3], np.uint8),
        np.zeros((n, 512), np.float32),
        np.zeros((n, 2, 512), np.float32),
        np.zeros((n, 2), np.int64),
    )


class Scenes:
    """The images above as the samples of an index, in twos."""

    def draw_images(self, count: int) -> Iterator[ImageBatch]:
        for i in range(0, min(count, len(PIXELS)), 2):
            yield images(PIXELS[i : min(i + 2, count)])

    def moments(self) -> Moments:
        raise AssertionError("visual words are not those of deep features")

    def labelled(self, count: int) -> tuple[Vectors, list[str]]:
        raise AssertionError("visual words need no labels")
