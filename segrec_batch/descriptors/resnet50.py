"""pool5 of ResNet-50: 2048 values, a baseline of Ouni 2020, table 6; compare by L2.

For the argument `weights` (default: imagenet) and the resizing see `operators.networks`.
"""

from collections.abc import Mapping

from segrec_batch.descriptors import Parameters, Samples, alexnet
from segrec_batch.descriptors.operators.networks import RESNET50


def fit(arguments: Mapping[str, str], samples: Samples) -> Parameters:
    """Load the weights of the network. Raises InputError, ModelError."""
    return alexnet.fit_network(RESNET50, arguments)


class Descriptor(alexnet.Descriptor):
    """Vector of the whole image, values ≥ 0."""

    architecture = RESNET50
