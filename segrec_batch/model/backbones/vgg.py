"""VGG: the convolution layers as in torchvision, each with its ReLU (Simonyan 2015)."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from segrec_batch.model.backbones.base import BackboneSpec, Graph, Layer

if TYPE_CHECKING:
    from torch import nn

_CHANNELS_PER_BLOCK = (64, 128, 256, 512, 512)


@dataclass(frozen=True, kw_only=True)
class Convolution(Layer):
    """A 3×3 convolution and its ReLU, which is block `node` of `features`.

    inputs: input channels.
    """

    inputs: int

    @property
    def weight(self) -> str:
        """Name of the weights (channels, inputs, 3, 3) in a state dict of `features`."""
        return f"{int(self.node) - 1}.weight"

    @property
    def bias(self) -> str:
        """Name of the biases (channels,) in a state dict of `features`."""
        return f"{int(self.node) - 1}.bias"


Layers = Mapping[str, Convolution]


def _layers(convs_per_block: tuple[int, ...]) -> Layers:
    layers, position, inputs = {}, 0, 3
    blocks = zip(convs_per_block, _CHANNELS_PER_BLOCK, strict=True)
    for block, (convs, channels) in enumerate(blocks):
        for conv in range(convs):
            position += 2  # convolution, ReLU
            layers[f"conv{block + 1}_{conv + 1}"] = Convolution(
                node=str(position - 1), channels=channels, stride=2**block, inputs=inputs
            )
            inputs = channels
        position += 1  # max pooling
    return layers


def _build(layers: Layers) -> "nn.Sequential":
    """Return `features` of torchvision's network on the meta device.

    Importing torchvision takes as long as importing torch, so this does without.
    """
    import torch
    from torch import nn

    blocks: list[nn.Module] = []
    stride = 1
    with torch.device("meta"):
        for layer in layers.values():
            if layer.stride > stride:
                blocks.append(nn.MaxPool2d(2))
                stride = layer.stride
            blocks += [nn.Conv2d(layer.inputs, layer.channels, 3, padding=1), nn.ReLU(inplace=True)]
        blocks.append(nn.MaxPool2d(2))
    return nn.Sequential(*blocks)


def _shapes(layers: Layers) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in layers.values():
        shapes[layer.weight] = (layer.channels, layer.inputs, 3, 3)
        shapes[layer.bias] = (layer.channels,)
    return shapes


def _add_to_graph(
    layers: Layers,
    graph: Graph,
    blob: str,
    state: Mapping[str, NDArray[Any]],
    used: Collection[str],
) -> None:
    names = list(layers)
    depth = max(map(names.index, used)) + 1
    stride = 1
    for name in names[:depth]:
        layer = layers[name]
        if layer.stride > stride:
            # 2 × 2 cells to one; 5=1: an odd last row or column is dropped
            blob = graph.add("Pooling", f"pool{layer.stride}", [blob], "0=0 1=2 2=2 5=1")
            stride = layer.stride
        blob = graph.convolve(name, blob, state[layer.weight], state[layer.bias], relu=True)


def _vgg(depth: int, layers: Layers) -> BackboneSpec:
    """Return the network of a depth; the taps are the last layers of blocks 3 to 5."""
    c3, c4, c5 = ([name for name in layers if name.startswith(f"conv{b}_")][-1] for b in (3, 4, 5))
    return BackboneSpec(
        name=f"vgg{depth}",
        title=f"VGG-{depth}",
        layers=layers,
        feature_layer=c5,
        default_layers=f"{c3},{c4},{c5},{c4}@5,{c5}@11",
        build=partial(_build, layers),
        prefix="features.",
        shapes=partial(_shapes, layers),
        add_to_graph=partial(_add_to_graph, layers),
    )


VGG16_LAYERS = _layers((2, 2, 3, 3, 3))
VGG16 = _vgg(16, VGG16_LAYERS)
VGG19 = _vgg(19, _layers((2, 2, 4, 4, 4)))
