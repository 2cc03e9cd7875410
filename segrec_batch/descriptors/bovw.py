"""Bag of visual words of SIFT (Csurka 2004), a baseline of Ouni 2020; classes are not used."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from segrec_batch.descriptors import Described, ImageBatch, Parameters, Samples, parse_integers
from segrec_batch.descriptors.operators import codebook, keypoints


def fit(arguments: Mapping[str, str], samples: Samples) -> Parameters:
    """Learn visual words from images of the index. Raises InputError.

    Arguments: `words`, `images`: numbers of words and images; `keypoints`: maximum per image.
    """
    return fit_words(parse_integers(arguments, words=500, keypoints=500, images=500), samples)


def fit_words(settings: Mapping[str, int], samples: Samples) -> Parameters:
    """Learn visual words (words, 128). Raises InputError."""
    images = (image for b in samples.draw_images(settings["images"]) for image in b.pixels)
    words = codebook.learn_words(keypoints.sift(settings["keypoints"]), images, settings["words"])
    return Parameters(settings, {"words": words})


class Descriptor:
    """Vector (words,): shares of the words, at unit length.

    Subclasses set another `encode` and `length`.
    """

    reads_pixels: ClassVar[bool] = True
    on_device: ClassVar[bool] = False

    def __init__(self, parameters: Parameters, classes: int, device: str) -> None:
        self._words = parameters.tensors["words"]
        self._extract = keypoints.sift(parameters.settings["keypoints"])
        self.length = len(self._words)

    def __call__(self, images: ImageBatch) -> Described:
        """Return the vectors of images; zero for an image without keypoints."""
        rows = [self.encode(self._extract(p)) for p in images.pixels]
        return Described(np.array(rows, np.float32).reshape(len(images), self.length))

    def encode(self, local: keypoints.Local) -> codebook.Vectors:
        """Return the vector (length,) of an image from its local descriptors."""
        return codebook.bovw(local.vectors, self._words)
