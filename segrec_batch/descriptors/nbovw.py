"""n-BoVW of SIFT (Ouni 2018), a baseline of Ouni 2020: several visual words for each keypoint."""

from collections.abc import Mapping

from segrec_batch.common.errors import InputError
from segrec_batch.descriptors import Parameters, Samples, bovw, parse_integers
from segrec_batch.descriptors.operators import codebook, keypoints, phrases


def fit(arguments: Mapping[str, str], samples: Samples) -> Parameters:
    """Learn visual words from images of the index. Raises InputError.

    Arguments: `n`, words of a keypoint; `words`, `images`: numbers of words and images;
    `keypoints`: maximum per image.
    """
    settings = parse_integers(arguments, n=3, words=500, keypoints=500, images=500)
    if settings["n"] > settings["words"]:
        raise InputError(f"n={settings['n']} is more than words={settings['words']}")
    return bovw.fit_words(settings, samples)


class Descriptor(bovw.Descriptor):
    """Vector (words,): shares of the words, at unit length."""

    def __init__(self, parameters: Parameters, classes: int, device: str) -> None:
        super().__init__(parameters, classes, device)
        self._n = int(parameters.settings["n"])

    def encode(self, local: keypoints.Local) -> codebook.Vectors:
        """Return the vector (length,) of an image from its local descriptors."""
        return phrases.n_bovw(local.vectors, self._words, self._n)
