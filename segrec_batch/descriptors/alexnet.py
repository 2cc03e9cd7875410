"""fc7 of AlexNet: 4096 values, a baseline of Ouni 2020, table 6; compare by L2.

For the argument `weights` (default: imagenet) and the resizing see `operators.networks`.
"""

from collections.abc import Mapping
from typing import ClassVar

from segrec_batch.descriptors import Described, ImageBatch, Parameters, Samples, parse_arguments
from segrec_batch.descriptors.operators import networks
from segrec_batch.descriptors.operators.networks import ALEXNET, Architecture


def fit(arguments: Mapping[str, str], samples: Samples) -> Parameters:
    """Load the weights of the network. Raises InputError, ModelError."""
    return fit_network(ALEXNET, arguments)


def fit_network(architecture: Architecture, arguments: Mapping[str, str]) -> Parameters:
    """Load the weights named by the arguments. Raises InputError, ModelError."""
    values = parse_arguments(arguments, weights="imagenet")
    return Parameters(*networks.load_weights(architecture, values["weights"]))


class Descriptor:
    """Vector of the whole image, values ≥ 0. Subclasses set another `architecture`."""

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
        """Return the vectors of images."""
        return Described(self._network(networks.as_images(images.pixels, self._device)))
