"""The semantic signature of deep features: those of each class, in place of local descriptors.

Ouni 2020, section 3.1: a vector per class, null where it is absent. A cell of the feature map
stands for a keypoint, so that the centre of a class is its region feature.
"""

from collections.abc import Mapping
from typing import ClassVar

from segrec_batch.descriptors import Described, ImageBatch, Parameters, Samples, whole_numbers


def fit(arguments: Mapping[str, str], samples: Samples) -> Parameters:
    """Take the length of a feature from the index. Raises InputError for any argument."""
    return Parameters({**whole_numbers(arguments), "feature_length": samples.feature_length})


class Descriptor:
    """(classes · C,): the region feature of each class, background first."""

    reads_pixels: ClassVar[bool] = False
    on_device: ClassVar[bool] = False

    def __init__(self, parameters: Parameters, classes: int, device: str) -> None:
        self.length = classes * int(parameters.settings["feature_length"])

    def __call__(self, images: ImageBatch) -> Described:
        """Describe images."""
        return Described(images.region_features.reshape(len(images), self.length))
