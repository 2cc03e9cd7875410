"""The bag of visual words of SIFT (Csurka 2004): a baseline of Ouni 2020, see `operators.codebook`.

Of the whole picture: classes play no part.
"""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from segrec_batch.descriptors import Described, Parameters, Pictures, Samples, whole_numbers
from segrec_batch.descriptors.operators import codebook, keypoints


def fit(arguments: Mapping[str, str], samples: Samples) -> Parameters:
    """`words`, learned from so many `pictures` of the index; `keypoints`: at most, of a picture.

    Raises InputError.
    """
    return with_words(whole_numbers(arguments, words=500, keypoints=500, pictures=500), samples)


def with_words(settings: Mapping[str, int], samples: Samples) -> Parameters:
    """The settings, and the visual words (words, 128). Raises InputError."""
    seen = (one for some in samples.pictures(settings["pictures"]) for one in some.pixels)
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

    def __call__(self, pictures: Pictures) -> Described:
        """Describe pictures; of one without keypoints the vector is zero."""
        found = [codebook.bovw(self._extract(p).vectors, self._words) for p in pictures.pixels]
        return Described(np.array(found, np.float32).reshape(len(pictures), self.length))
