"""fc7 of AlexNet: 4096 values, the network baseline of Ouni 2020, table 6.

The argument `weights` (default: imagenet), and how images are resized: see `operators.networks`.
Compare by L2.
"""

from collections.abc import Mapping
from typing import ClassVar

from segrec_batch.descriptors import Described, ImageBatch, Parameters, Samples, chosen
from segrec_batch.descriptors.operators import networks
from segrec_batch.descriptors.operators.networks import ALEXNET, Architecture


def fit(arguments: Mapping[str, str], samples: Samples) -> Parameters:
    """The network's weights; nothing is learned. Raises InputError, ModelError."""
    return weights_of(ALEXNET, arguments)


def weights_of(architecture: Architecture, arguments: Mapping[str, str]) -> Parameters:
    """The weights that arguments name, for a network. Raises InputError, ModelError."""
    given = chosen(arguments, weights="imagenet")
    return Parameters(*networks.fitted(architecture, given["weights"]))


class Descriptor:
    """The vector of the whole image, values 0 or above. Other networks differ in the
    architecture.
    """

    architecture: ClassVar[Architecture] = ALEXNET
    reads_pixels: ClassVar[bool] = True
    on_device: ClassVar[bool] = True

    def __init__(
        self, parameters: Parameters, classes: int, device: str, precision: str = "float32"
    ) -> None:
        self._device = device
        self._network = networks.Network(self.architecture, parameters.tensors, precision, device)
        self.length = self.architecture.length

    def __call__(self, images: ImageBatch) -> Described:
        """Describe images."""
        return Described(self._network(networks.as_images(images.pixels, self._device)))
