"""The semantic signature of deep features: those of each class, in place of local descriptors.

Ouni 2020, section 3.1: a vector per class, null where it is absent. A cell of the feature map
stands for a keypoint, so that the centre of a class is its region feature.
"""

from collections.abc import Mapping
from typing import ClassVar

from segrec_batch.descriptors import Described, ImageBatch, Parameters, Samples, whole_numbers
from segrec_batch.index.schema import FEATURE_LENGTH


def fit(arguments: Mapping[str, str], samples: Samples) -> Parameters:
    """There is nothing to set. Raises InputError."""
    return Parameters(whole_numbers(arguments))


class Descriptor:
    """(classes · 512,): the region feature of each class, background first."""

    reads_pixels: ClassVar[bool] = False
    on_device: ClassVar[bool] = False

    def __init__(self, parameters: Parameters, classes: int, device: str) -> None:
        self.length = classes * FEATURE_LENGTH

    def __call__(self, images: ImageBatch) -> Described:
        """Describe images."""
        return Described(images.region_features.reshape(len(images), self.length))
