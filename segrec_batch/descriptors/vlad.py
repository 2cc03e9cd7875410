"""VLAD of SIFT (Jégou 2010): a baseline of Ouni 2020, see `operators.codebook`.

Of the whole image: classes play no part.
"""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from segrec_batch.descriptors import Described, ImageBatch, Parameters, Samples, whole_numbers
from segrec_batch.descriptors.bovw import with_words
from segrec_batch.descriptors.operators import codebook, keypoints


def fit(arguments: Mapping[str, str], samples: Samples) -> Parameters:
    """`words`, learned from so many `images` of the index; `keypoints`: at most, of an image.

    Raises InputError.
    """
    return with_words(whole_numbers(arguments, words=16, keypoints=500, images=500), samples)


class Descriptor:
    """(words · 128,): residuals by word, at unit length."""

    reads_pixels: ClassVar[bool] = True
    on_device: ClassVar[bool] = False

    def __init__(self, parameters: Parameters, classes: int, device: str) -> None:
        self._words = parameters.tensors["words"]
        self._extract = keypoints.sift(parameters.settings["keypoints"])
        self.length = self._words.size

    def __call__(self, images: ImageBatch) -> Described:
        """Describe images; of one without keypoints the vector is zero."""
        found = [codebook.vlad(self._extract(p).vectors, self._words) for p in images.pixels]
        return Described(np.array(found, np.float32).reshape(len(images), self.length))
