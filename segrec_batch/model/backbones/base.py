"""Backbone networks as data: layers, tensors, normalisation and builders; imports no torch."""

from collections.abc import Callable, Collection, Mapping, Sequence
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

    node: name of the module or operation of the network whose output is the map.
    channels: of the map.
    stride: input pixels per cell of the map.
    offset: pixels from the centre of a cell up and left to the centre of its receptive field.
        Strided kernels of even size are centred on a cell; those of odd size are not.
    """

    node: str
    channels: int
    stride: int
    offset: float = 0.0

    @property
    def shift(self) -> float:
        """Offset in cells."""
        return self.offset / self.stride


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

    name: as `model.json` states it and torchvision names the network.
    title: as messages state it.
    layers: by name, in the order of computation.
    feature_layer: the layer that is averaged to features and whose grid holds the class map.
    default_layers: taps of the SVM unless the user names others, comma-separated.
    build: makes the network without its classifier and without memory for its parameters; a
        `Sequential` of blocks, or any module that `torch.fx` can trace. Names in its state dict are
        torchvision's without `prefix`.
    classifier: name of the module of torchvision's network that `build` omits.
    prefix: of the network's tensors in a state dict of the whole network; may be empty.
    mean, std: normalisation by RGB channel for state dicts from a file, and for random weights.
    residual_scale: end of the names of tensors that scale residual branches; empty if there are
        none. Random weights set them to a small number, so that maps keep their magnitude.
    shapes: makes the shapes of the tensors by name without torch; None takes those of `build`.
    add_to_graph: appends the layers up to the deepest of some to an ncnn network, input blob first;
        None if the backbone runs in torch only.
    """

    name: str
    title: str
    layers: Mapping[str, Layer]
    feature_layer: str
    default_layers: str
    build: "Callable[[], nn.Module]"
    classifier: str = "classifier"
    prefix: str = ""
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    residual_scale: str = ""
    shapes: Callable[[], Mapping[str, tuple[int, ...]]] | None = None
    add_to_graph: (
        Callable[[Graph, str, Mapping[str, NDArray[Any]], Collection[str]], None] | None
    ) = None

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
        """Shapes of the float32 tensors of the network, by name in its state dict.

        The counts of batches in normalisation layers are integers; only training uses them.
        """
        if self.shapes is not None:
            return self.shapes()
        state = self.build().state_dict()
        return {n: tuple(value.shape) for n, value in state.items() if value.is_floating_point()}
