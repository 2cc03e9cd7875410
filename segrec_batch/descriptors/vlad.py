"""VLAD of SIFT (Jégou 2010), a baseline of Ouni 2020; classes are not used."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from segrec_batch.descriptors import Described, ImageBatch, Parameters, Samples, parse_integers
from segrec_batch.descriptors.bovw import fit_words
from segrec_batch.descriptors.operators import codebook, keypoints


def fit(arguments: Mapping[str, str], samples: Samples) -> Parameters:
    """Learn visual words from images of the index. Raises InputError.

    Arguments: `words`, `images`: numbers of words and images; `keypoints`: maximum per image.
    """
    return fit_words(parse_integers(arguments, words=16, keypoints=500, images=500), samples)


class Descriptor:
    """Vector (words · 128,): residuals by word, at unit length."""

    reads_pixels: ClassVar[bool] = True
    on_device: ClassVar[bool] = False

    def __init__(self, parameters: Parameters, classes: int, device: str) -> None:
        self._words = parameters.tensors["words"]
        self._extract = keypoints.sift(parameters.settings["keypoints"])
        self.length = self._words.size

    def __call__(self, images: ImageBatch) -> Described:
        """Return the vectors of images; zero for an image without keypoints."""
        rows = [codebook.vlad(self._extract(p).vectors, self._words) for p in images.pixels]
        return Described(np.array(rows, np.float32).reshape(len(images), self.length))
