"""pool5 of ResNet-50: 2048 values, the network baseline of Ouni 2020, table 6.

The argument `weights` (default: imagenet), and how images are resized: see `operators.networks`.
Compare by L2.
"""

from collections.abc import Mapping

from segrec_batch.descriptors import Parameters, Samples, alexnet
from segrec_batch.descriptors.operators.networks import RESNET50


def fit(arguments: Mapping[str, str], samples: Samples) -> Parameters:
    """The network's weights; nothing is learned. Raises InputError, ModelError."""
    return alexnet.weights_of(RESNET50, arguments)


class Descriptor(alexnet.Descriptor):
    """The vector of the whole image, values 0 or above."""

    architecture = RESNET50
