"""The semantic signature of SIFT (Ouni 2020), see `operators.signature`."""

from collections.abc import Callable, Mapping
from typing import ClassVar

from segrec_batch.descriptors import Described, ImageBatch, Parameters, Samples, whole_numbers
from segrec_batch.descriptors.operators import keypoints
from segrec_batch.descriptors.operators.signature import signatures


def fit(arguments: Mapping[str, str], samples: Samples) -> Parameters:
    """`keypoints`: at most so many, those of the largest response. Raises InputError."""
    return Parameters(whole_numbers(arguments, keypoints=500))


class Descriptor:
    """(classes · 128,): a centre for each class, background first.

    extractor: of local descriptors, made with the settings. Other signatures differ in it only.
    """

    reads_pixels: ClassVar[bool] = True
    on_device: ClassVar[bool] = False
    extractor: ClassVar[Callable[..., keypoints.Extractor]] = staticmethod(keypoints.sift)

    def __init__(self, parameters: Parameters, classes: int, device: str) -> None:
        self._extract = self.extractor(**parameters.settings)
        self._classes = classes
        self.length = classes * self._extract.dim

    def __call__(self, images: ImageBatch) -> Described:
        """Describe images; of one without keypoints the vector is zero."""
        found = signatures(self._extract, images.pixels, images.labels, self._classes)
        return Described(found)
