"""fc7 of AlexNet: 4096 values, a baseline of Ouni 2020, table 6; compare by L2.

For the arguments `weights` and `pca` see `operators.whole_image`.
"""

from collections.abc import Mapping

from segrec_batch.descriptors import Parameters, Samples, parse_arguments
from segrec_batch.descriptors.operators.networks import ALEXNET
from segrec_batch.descriptors.operators.whole_image import DEFAULTS, NetworkDescriptor, fit_network


def fit(arguments: Mapping[str, str], samples: Samples) -> Parameters:
    """Load the weights, see `fit_network`. Raises InputError, ModelError."""
    return fit_network(ALEXNET, parse_arguments(arguments, **DEFAULTS), samples)


class Descriptor(NetworkDescriptor):
    """fc7 after the ReLU, or its principal components."""

    def __init__(
        self, parameters: Parameters, classes: int, device: str, precision: str = "float32"
    ) -> None:
        super().__init__(ALEXNET, parameters, device, precision)
