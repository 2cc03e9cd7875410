"""n-grams of visual words of SIFT (Pedrosa 2013), a baseline of Ouni 2020: words of neighbours."""

from collections.abc import Mapping

from segrec_batch.common.errors import InputError
from segrec_batch.descriptors import Parameters, Samples, bovw, parse_integers
from segrec_batch.descriptors.operators import codebook, keypoints, phrases

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
    return bovw.fit_words(settings, samples)


class Descriptor(bovw.Descriptor):
    """Vector (C(words + n − 1, n),): shares of the phrases, at unit length."""

    def __init__(self, parameters: Parameters, classes: int, device: str) -> None:
        super().__init__(parameters, classes, device)
        self._n = int(parameters.settings["n"])
        self.length = phrases.phrase_count(len(self._words), self._n)

    def encode(self, local: keypoints.Local) -> codebook.Vectors:
        """Return the vector (length,) of an image from its local descriptors."""
        return phrases.n_grams(local, self._words, self._n)
