"""Semantic signature of deep features: the region feature of each class (Ouni 2020, section 3.1).

Cells of the feature map replace keypoints, so the centre of a class is its region feature. An
absent class has the null vector.
"""

from collections.abc import Mapping
from typing import ClassVar

from segrec_batch.common.errors import ModelError
from segrec_batch.descriptors import Described, ImageBatch, Parameters, Samples, parse_integers


def fit(arguments: Mapping[str, str], samples: Samples) -> Parameters:
    """Read the length of a feature from the index. Raises InputError for any argument."""
    return Parameters({**parse_integers(arguments), "feature_length": samples.feature_length})


class Descriptor:
    """Vector (classes · C,): the region feature of each class, background first."""

    reads_pixels: ClassVar[bool] = False
    on_device: ClassVar[bool] = False

    def __init__(self, parameters: Parameters, classes: int, device: str) -> None:
        length = parameters.settings.get("feature_length")
        if type(length) is not int:
            raise ModelError("descriptor signature has no feature_length: drop it, then add it")
        self.length = classes * length

    def __call__(self, images: ImageBatch) -> Described:
        """Return the vectors of images."""
        return Described(images.region_features.reshape(len(images), self.length))
