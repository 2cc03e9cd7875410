"""VLAD of SIFT (Jégou 2010), a baseline of Ouni 2020; classes are not used."""

from collections.abc import Mapping

from segrec_batch.descriptors import Parameters, Samples, bovw, parse_integers
from segrec_batch.descriptors.operators import codebook, keypoints


def fit(arguments: Mapping[str, str], samples: Samples) -> Parameters:
    """Learn visual words from images of the index. Raises InputError.

    Arguments: `words`, `images`: numbers of words and images; `keypoints`: maximum per image.
    """
    return bovw.fit_words(parse_integers(arguments, words=16, keypoints=500, images=500), samples)


class Descriptor(bovw.Descriptor):
    """Vector (words · 128,): residuals by word, at unit length."""

    def __init__(self, parameters: Parameters, classes: int, device: str) -> None:
        super().__init__(parameters, classes, device)
        self.length = self._words.size

    def encode(self, local: keypoints.Local) -> codebook.Vectors:
        """Return the vector (length,) of an image from its local descriptors."""
        return codebook.vlad(local.vectors, self._words)
