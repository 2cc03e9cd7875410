"""Semantic signature of SIFT (Ouni 2020), see `operators.signature`."""

from collections.abc import Callable, Mapping
from typing import ClassVar

from segrec_batch.descriptors import Described, ImageBatch, Parameters, Samples, parse_integers
from segrec_batch.descriptors.operators import keypoints
from segrec_batch.descriptors.operators.signature import signatures


def fit(arguments: Mapping[str, str], samples: Samples) -> Parameters:
    """Parse `keypoints`, the maximum per image by largest response. Raises InputError."""
    return Parameters(parse_integers(arguments, keypoints=500))


class Descriptor:
    """Vector (classes · 128,): one centre per class, background first.

    Subclasses set another `extractor` of local descriptors, which is called with the settings.
    """

    reads_pixels: ClassVar[bool] = True
    on_device: ClassVar[bool] = False
    extractor: ClassVar[Callable[..., keypoints.Extractor]] = staticmethod(keypoints.sift)

    def __init__(self, parameters: Parameters, classes: int, device: str) -> None:
        self._extract = self.extractor(**parameters.settings)
        self._classes = classes
        self.length = classes * self._extract.dim

    def __call__(self, images: ImageBatch) -> Described:
        """Return the vectors of images; zero for an image without keypoints."""
        return Described(signatures(self._extract, images.pixels, images.labels, self._classes))
