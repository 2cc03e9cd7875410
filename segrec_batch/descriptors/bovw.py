"""The bag of visual words of SIFT (Csurka 2004): a baseline of Ouni 2020, see `operators.codebook`.

Of the whole image: classes play no part.
"""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from segrec_batch.descriptors import Described, ImageBatch, Parameters, Samples, whole_numbers
from segrec_batch.descriptors.operators import codebook, keypoints


def fit(arguments: Mapping[str, str], samples: Samples) -> Parameters:
    """`words`, learned from so many `images` of the index; `keypoints`: at most, of an image.

    Raises InputError.
    """
    return with_words(whole_numbers(arguments, words=500, keypoints=500, images=500), samples)


def with_words(settings: Mapping[str, int], samples: Samples) -> Parameters:
    """The settings, and the visual words (words, 128). Raises InputError."""
    seen = (one for some in samples.draw_images(settings["images"]) for one in some.pixels)
    words = codebook.learn(keypoints.sift(settings["keypoints"]), seen, settings["words"])
    return Parameters(settings, {"words": words})


class Descriptor:
    """(words,): shares of the words, at unit length."""

    reads_pixels: ClassVar[bool] = True
    on_device: ClassVar[bool] = False

    def __init__(self, parameters: Parameters, classes: int, device: str) -> None:
        self._words = parameters.tensors["words"]
        self._extract = keypoints.sift(parameters.settings["keypoints"])
        self.length = len(self._words)

    def __call__(self, images: ImageBatch) -> Described:
        """Describe images; of one without keypoints the vector is zero."""
        found = [codebook.bovw(self._extract(p).vectors, self._words) for p in images.pixels]
        return Described(np.array(found, np.float32).reshape(len(images), self.length))
