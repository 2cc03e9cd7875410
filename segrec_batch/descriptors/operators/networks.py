"""AlexNet, ResNet-50 and VGG-16 of torchvision, up to the layer whose values are the vector.

Images of any aspect ratio are resized to 224 × 224 by antialiased bilinear interpolation and
normalised by ImageNet's mean and deviation. The ImageNet weights are IMAGENET1K_V1, as in the
papers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from segrec_batch.common.errors import ModelError
from segrec_batch.model.backbones.base import IMAGENET_MEAN, IMAGENET_STD
from segrec_batch.model.device import full_float32
from segrec_batch.model.head import resize
from segrec_batch.model.torch_engine import as_tensors
from segrec_batch.model.weights import BATCH_COUNT, download, read_state, seed_generator
from segrec_batch.sources import storage

SIDE = 224
_CONVOLUTIONS = "features."  # prefixes in state dicts of AlexNet and VGG-16
_CLASSIFIER = "classifier."


def _alexnet() -> nn.Module:
    from torchvision.models import alexnet  # takes longer to import than torch

    network: Any = alexnet(weights=None)
    network.classifier = network.classifier[:6]
    return network  # type: ignore[no-any-return]


def _resnet50() -> nn.Module:
    from torchvision.models import resnet50

    network: nn.Module = resnet50(weights=None)
    network.fc = nn.Identity()
    return network


def _vgg16(blocks: int) -> nn.Module:
    """Return VGG-16 with the first blocks of its classifier: 2 end with fc6, 5 with fc7."""
    from torchvision.models import vgg16

    network: Any = vgg16(weights=None)
    network.classifier = network.classifier[:blocks]
    return network  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Architecture:
    """A network up to a layer whose `length` values, 0 or above, are the vector."""

    name: str
    length: int
    imagenet: str
    build: Callable[[], nn.Module]


ALEXNET = Architecture("AlexNet", 4096, "AlexNet_Weights.IMAGENET1K_V1", _alexnet)
"""Krizhevsky 2012 in the variant of Krizhevsky 2014; the vector is fc7, after the ReLU."""
RESNET50 = Architecture("ResNet-50", 2048, "ResNet50_Weights.IMAGENET1K_V1", _resnet50)
"""He 2016; the vector is the global average of the last block (pool5)."""
VGG16 = {
    layer: Architecture("VGG-16", length, "VGG16_Weights.IMAGENET1K_V1", partial(_vgg16, blocks))
    for layer, length, blocks in (("fc7", 4096, 5), ("fc6", 4096, 2), ("pool5", 512 * 7 * 7, 0))
}
"""Simonyan and Zisserman 2014, by layer; fc6 and fc7 are taken after the ReLU."""


def load_weights(
    architecture: Architecture, weights: str
) -> tuple[dict[str, str], dict[str, NDArray[Any]]]:
    """Return settings and state dict of a network.

    Args:
        weights: `imagenet` (torchvision's, downloaded on first use), `random:SEED` (torchvision's
            initialisation), or path or URI of a state dict (.pth, .safetensors).

    Raises:
        ModelError: the weights are not those of the network.
    """
    named = weights == "imagenet" or weights.startswith("random:")
    state = _load_state(architecture, weights)
    settings = {"weights": weights if named else storage.name(weights)}
    return settings, {name: tensor.numpy() for name, tensor in state.items()}


def _load_state(architecture: Architecture, weights: str) -> dict[str, Tensor]:
    if weights == "imagenet":
        from torchvision.models import get_weight

        state = download(get_weight(architecture.imagenet), f"{architecture.name} {weights}")
    elif weights.startswith("random:"):
        with torch.random.fork_rng(devices=[]):
            seed_generator(torch.default_generator, weights)
            state = architecture.build().state_dict()
    else:
        state = read_state(weights, f"{architecture.name} weights")
    return _select_parameters(architecture, state, weights)


def _select_parameters(
    architecture: Architecture, state: Mapping[str, Any], origin: str
) -> dict[str, Tensor]:
    """Return the entries that inference uses, float32.

    A state dict of the convolutions alone, with or without their prefix, has all of pool5.
    """
    names = map(str, state)
    state = {f"{_CONVOLUTIONS}{n}" if n[:1].isdecimal() else n: state[n] for n in names}
    has_classifier = any(name.startswith(_CLASSIFIER) for name in state)
    parameters = {}
    for name, parameter in _build_empty(architecture).state_dict().items():
        if name.endswith(BATCH_COUNT):
            continue
        value = state.get(name)
        if name.startswith(_CLASSIFIER) and not has_classifier:
            raise ModelError(
                f"{origin} has only the convolution layers of {architecture.name}; give a state "
                "dict of the whole network, or describe by another layer (vgg16:layer=pool5)"
            )
        if not isinstance(value, Tensor) or value.shape != parameter.shape:
            problem = (
                f"has shape {tuple(value.shape)}" if isinstance(value, Tensor) else "is missing"
            )
            raise ModelError(f"{origin} is not torchvision's {architecture.name}: {name} {problem}")
        parameters[name] = value.detach().float().contiguous()
    return parameters


def _build_empty(architecture: Architecture) -> nn.Module:
    """Return the network on the meta device, without memory for its parameters."""
    with torch.device("meta"):
        return architecture.build()


class Network:
    """A network on a device; maps images (B, 3, H, W) in [0, 1] to vectors (B, length) float32.

    Args:
        precision: arithmetic of the network, float32 or bfloat16.
    """

    def __init__(
        self,
        architecture: Architecture,
        state: Mapping[str, NDArray[Any]],
        precision: str,
        device: str,
    ) -> None:
        network = _build_empty(architecture)
        network.load_state_dict(as_tensors(state), assign=True)  # sets the counters to 0
        self._dtype: torch.dtype = getattr(torch, precision)
        network.eval().requires_grad_(False)
        self._network = network.to(device, self._dtype).to(memory_format=torch.channels_last)
        self._mean = torch.tensor(IMAGENET_MEAN, device=device)[:, None, None]
        self._std = torch.tensor(IMAGENET_STD, device=device)[:, None, None]

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> NDArray[np.float32]:
        """Return the vectors of images."""
        x = (resize(images, (SIDE, SIDE)) - self._mean) / self._std
        x = x.to(self._dtype, memory_format=torch.channels_last)
        with full_float32():
            vectors: NDArray[np.float32] = self._network(x).float().cpu().numpy()
        return vectors


def as_images(pixels: NDArray[np.uint8], device: str) -> Tensor:
    """Convert uint8 (B, H, W, 3) to float32 (B, 3, H, W) in [0, 1] on a device."""
    return torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float() / 255
