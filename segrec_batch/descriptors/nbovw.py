"""n-BoVW of SIFT (Ouni 2018), a baseline of Ouni 2020: several visual words for each keypoint."""

from collections.abc import Mapping

import numpy as np

from segrec_batch.common.errors import InputError
from segrec_batch.descriptors import Described, ImageBatch, Parameters, Samples, parse_integers
from segrec_batch.descriptors.bovw import fit_words
from segrec_batch.descriptors.operators import keypoints, phrases


def fit(arguments: Mapping[str, str], samples: Samples) -> Parameters:
    """Learn visual words from images of the index. Raises InputError.

    Arguments: `n`, words of a keypoint; `words`, `images`: numbers of words and images;
    `keypoints`: maximum per image.
    """
    settings = parse_integers(arguments, n=3, words=500, keypoints=500, images=500)
    if settings["n"] > settings["words"]:
        raise InputError(f"n={settings['n']} is more than words={settings['words']}")
    return fit_words(settings, samples)


class Descriptor:
    """Vector (words,): shares of the words, at unit length."""

    reads_pixels = True
    on_device = False

    def __init__(self, parameters: Parameters, classes: int, device: str) -> None:
        self._n = int(parameters.settings["n"])
        self._words = parameters.tensors["words"]
        self._extract = keypoints.sift(parameters.settings["keypoints"])
        self.length = len(self._words)

    def __call__(self, images: ImageBatch) -> Described:
        """Return the vectors of images; zero for an image without keypoints."""
        rows = [
            phrases.n_bovw(self._extract(p).vectors, self._words, self._n) for p in images.pixels
        ]
        return Described(np.array(rows, np.float32).reshape(len(images), self.length))
