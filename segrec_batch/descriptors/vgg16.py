"""A layer of VGG-16 (Ouni 2020, table 6; Krupa 2022): fc7, fc6 or pool5; compare by L2 or cosine.

The argument `layer` is one of

    fc7      4,096 values after the ReLU (default)
    fc6      4,096 values after the ReLU
    pool5    25,088 values, the last map of 7 × 7 cells with 512 channels, channel by channel

For the arguments `weights` and `pca` see `operators.whole_image`. A file of the convolution layers
alone is enough for pool5. The average of conv5_3 is the feature itself, and `pca` its components.
"""

from collections.abc import Mapping
from dataclasses import replace

from segrec_batch.common.errors import InputError
from segrec_batch.descriptors import Parameters, Samples, parse_arguments
from segrec_batch.descriptors.operators.networks import VGG16
from segrec_batch.descriptors.operators.whole_image import DEFAULTS, NetworkDescriptor, fit_network


def fit(arguments: Mapping[str, str], samples: Samples) -> Parameters:
    """Load the weights, see `fit_network`. Raises InputError, ModelError."""
    values = parse_arguments(arguments, layer="fc7", **DEFAULTS)
    layer = values["layer"]
    if layer not in VGG16:
        raise InputError(f"layer={layer}; known are {', '.join(VGG16)}")
    parameters = fit_network(VGG16[layer], values, samples)
    return replace(parameters, settings={**parameters.settings, "layer": layer})


class Descriptor(NetworkDescriptor):
    """The layer of the setting `layer`, or its principal components."""

    def __init__(
        self, parameters: Parameters, classes: int, device: str, precision: str = "float32"
    ) -> None:
        super().__init__(VGG16[parameters.settings["layer"]], parameters, device, precision)
