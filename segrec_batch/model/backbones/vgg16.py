"""VGG-16: the 13 convolution layers as in torchvision, each with its ReLU."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from segrec_batch.model.backbones.base import BackboneSpec, Graph, Layer

if TYPE_CHECKING:
    from torch import nn

_CONVS_PER_BLOCK = (2, 2, 3, 3, 3)
_CHANNELS_PER_BLOCK = (64, 128, 256, 512, 512)


@dataclass(frozen=True)
class Convolution(Layer):
    """A 3×3 convolution and its ReLU, at `position` in `features`, with `inputs` input channels."""

    inputs: int

    @property
    def weight(self) -> str:
        """Name of the weights (channels, inputs, 3, 3) in a state dict of `features`."""
        return f"{self.position - 1}.weight"

    @property
    def bias(self) -> str:
        """Name of the biases (channels,) in a state dict of `features`."""
        return f"{self.position - 1}.bias"


def _layers() -> dict[str, Convolution]:
    layers, position, inputs = {}, 0, 3
    blocks = zip(_CONVS_PER_BLOCK, _CHANNELS_PER_BLOCK, strict=True)
    for block, (convs, channels) in enumerate(blocks):
        for conv in range(convs):
            position += 2  # convolution, ReLU
            layer = Convolution(position - 1, channels, 2**block, inputs)
            layers[f"conv{block + 1}_{conv + 1}"] = layer
            inputs = channels
        position += 1  # max pooling
    return layers


LAYERS: Mapping[str, Convolution] = _layers()


def _build() -> "nn.Sequential":
    """Return `torchvision.models.vgg16().features` on the meta device."""
    import torch
    from torch import nn

    blocks: list[nn.Module] = []
    stride = 1
    with torch.device("meta"):
        for layer in LAYERS.values():
            if layer.stride > stride:
                blocks.append(nn.MaxPool2d(2))
                stride = layer.stride
            blocks += [nn.Conv2d(layer.inputs, layer.channels, 3, padding=1), nn.ReLU(inplace=True)]
        blocks.append(nn.MaxPool2d(2))
    return nn.Sequential(*blocks)


def _shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in LAYERS.values():
        shapes[layer.weight] = (layer.channels, layer.inputs, 3, 3)
        shapes[layer.bias] = (layer.channels,)
    return shapes


def _add_to_graph(graph: Graph, blob: str, state: Mapping[str, NDArray[Any]], last: int) -> None:
    stride = 1
    for name, layer in LAYERS.items():
        if layer.position > last:
            return
        if layer.stride > stride:
            # 2 × 2 cells to one; 5=1: an odd last row or column is dropped
            blob = graph.add("Pooling", f"pool{layer.stride}", [blob], "0=0 1=2 2=2 5=1")
            stride = layer.stride
        blob = graph.convolve(name, blob, state[layer.weight], state[layer.bias], relu=True)


VGG16 = BackboneSpec(
    name="vgg16",
    title="VGG-16",
    layers=LAYERS,
    feature_layer="conv5_3",
    default_layers="conv3_3,conv4_3,conv5_3,conv4_3@5,conv5_3@11",
    build=_build,
    torchvision="VGG16_Weights.IMAGENET1K_V1",
    prefix="features.",
    shapes=_shapes,
    add_to_graph=_add_to_graph,
)
