"""Backbone networks as data: layers, tensors, normalisation and builders; imports no torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Layer:
    """A layer whose map the SVM can use.

    position: index of the block of the network after which the map is taken.
    channels: of the map.
    stride: input pixels per cell of the map.
    """

    position: int
    channels: int
    stride: int


class Graph(Protocol):
    """A network under construction for ncnn."""

    def add(self, kind: str, name: str, inputs: Sequence[str], parameters: str = "") -> str:
        """Append a layer; return the name of its output."""

    def convolve(
        self, name: str, source: str, weight: NDArray[Any], bias: NDArray[Any], relu: bool
    ) -> str:
        """Append a convolution of weight (C', C, k, k), padded to keep the size of the map."""


@dataclass(frozen=True)
class BackboneSpec:
    """A backbone network.

    name: as `model.json` states it.
    title: as messages state it.
    layers: by name, in the order of computation.
    feature_layer: the layer that is averaged to features and whose grid holds the class map.
    default_layers: taps of the SVM unless the user names others, comma-separated.
    build: makes the network as blocks in sequence, without memory for its parameters. Names in
        its state dict are torchvision's without `prefix`.
    torchvision: `ENUM.MEMBER` in `torchvision.models` of the weights called `imagenet`.
    prefix: of the network's tensors in a state dict of the whole classifier; may be empty.
    mean, std: normalisation by RGB channel that the ImageNet weights were trained with.
    shapes: makes the shapes of the tensors by name without torch; None takes those of `build`.
    add_to_graph: appends the layers up to a position to an ncnn network, input blob first; None if
        the backbone runs in torch only.
    """

    name: str
    title: str
    layers: Mapping[str, Layer]
    feature_layer: str
    default_layers: str
    build: "Callable[[], nn.Sequential]"
    torchvision: str
    prefix: str = ""
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    shapes: Callable[[], Mapping[str, tuple[int, ...]]] | None = None
    add_to_graph: Callable[[Graph, str, Mapping[str, NDArray[Any]], int], None] | None = None

    @property
    def feature_length(self) -> int:
        """Values of a feature."""
        return self.layers[self.feature_layer].channels

    @property
    def sign_words(self) -> int:
        """Words of 64 bits that hold one bit for each value of a feature."""
        return -(-self.feature_length // 64)

    @property
    def stride(self) -> int:
        """Input pixels per cell of the class map's grid."""
        return self.layers[self.feature_layer].stride

    @property
    def engines(self) -> tuple[str, ...]:
        """Engines that can run the network."""
        return ("torch",) if self.add_to_graph is None else ("ncnn", "torch")

    @cached_property
    def tensors(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the float32 tensors of the network, by name in its state dict."""
        if self.shapes is not None:
            return self.shapes()
        return {name: tuple(value.shape) for name, value in self.build().state_dict().items()}
