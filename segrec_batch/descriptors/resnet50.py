"""pool5 of ResNet-50: 2048 values, the network baseline of Ouni 2020, table 6.

Arguments, `weights` (default: imagenet) and `dtype` (float32 or bfloat16, which a GPU computes
faster; default: float32), and how pictures are resized: see `operators.networks`. Compare by L2.
"""

from collections.abc import Mapping

from segrec_batch.descriptors import Described, Parameters, Pictures, Samples, chosen
from segrec_batch.operators import networks
from segrec_batch.operators.networks import RESNET50


def fit(arguments: Mapping[str, str], samples: Samples) -> Parameters:
    """The network's weights; nothing is learned. Raises InputError, ModelError."""
    given = chosen(arguments, weights="imagenet", dtype="float32")
    return Parameters(*networks.fitted(RESNET50, given["weights"], given["dtype"]))


class Descriptor:
    """The vector of the whole picture, values 0 or above."""

    length = RESNET50.length
    reads_pixels = True
    on_device = True

    def __init__(self, parameters: Parameters, classes: int, device: str) -> None:
        self._device = device
        self._network = networks.Network(
            RESNET50, parameters.tensors, parameters.settings["dtype"], device
        )

    def __call__(self, pictures: Pictures) -> Described:
        """Describe pictures."""
        return Described(self._network(networks.as_images(pictures.pixels, self._device)))
