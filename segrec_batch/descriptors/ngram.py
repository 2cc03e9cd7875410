"""n-grams of visual words of SIFT (Pedrosa 2013), a baseline of Ouni 2020: words of neighbours."""

from collections.abc import Mapping

import numpy as np

from segrec_batch.common.errors import InputError
from segrec_batch.descriptors import Described, ImageBatch, Parameters, Samples, parse_integers
from segrec_batch.descriptors.bovw import fit_words
from segrec_batch.descriptors.operators import keypoints, phrases

_MAX_LENGTH = 2**16


def fit(arguments: Mapping[str, str], samples: Samples) -> Parameters:
    """Learn visual words from images of the index. Raises InputError.

    Arguments: `n`, words of a phrase; `words`, `images`: numbers of words and images; `keypoints`:
    maximum per image. The vector has C(words + n − 1, n) values, at most 65,536.
    """
    settings = parse_integers(arguments, n=2, words=50, keypoints=500, images=500)
    length = phrases.phrase_count(settings["words"], settings["n"])
    if length > _MAX_LENGTH:
        raise InputError(
            f"words={settings['words']} with n={settings['n']} gives vectors of {length:,} values, "
            f"more than {_MAX_LENGTH:,}: give fewer words or a smaller n"
        )
    return fit_words(settings, samples)


class Descriptor:
    """Vector (C(words + n − 1, n),): shares of the phrases, at unit length."""

    reads_pixels = True
    on_device = False

    def __init__(self, parameters: Parameters, classes: int, device: str) -> None:
        self._n = int(parameters.settings["n"])
        self._words = parameters.tensors["words"]
        self._extract = keypoints.sift(parameters.settings["keypoints"])
        self.length = phrases.phrase_count(len(self._words), self._n)

    def __call__(self, images: ImageBatch) -> Described:
        """Return the vectors of images; zero for an image with fewer than n keypoints."""
        rows = [phrases.n_grams(self._extract(p), self._words, self._n) for p in images.pixels]
        return Described(np.array(rows, np.float32).reshape(len(images), self.length))
