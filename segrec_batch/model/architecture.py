"""The layers of VGG-16 and the taps of the SVM by name; needs neither torch nor weights."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from segrec_batch.common.errors import ModelError

CONVS_PER_BLOCK = (2, 2, 3, 3, 3)
CHANNELS_PER_BLOCK = (64, 128, 256, 512, 512)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Layer:
    """One convolution layer of VGG-16, with its ReLU.

    position: index of the ReLU in torchvision's `features`. inputs, channels: of the convolution.
    stride: input pixels per cell of its map.
    """

    position: int
    inputs: int
    channels: int
    stride: int

    @property
    def weight(self) -> str:
        """Name of the weights (channels, inputs, 3, 3) in a state dict of `features`."""
        return f"{self.position - 1}.weight"

    @property
    def bias(self) -> str:
        """Name of the biases (channels,) in a state dict of `features`."""
        return f"{self.position - 1}.bias"


def _layers() -> dict[str, Layer]:
    layers, position, inputs = {}, 0, 3
    blocks = zip(CONVS_PER_BLOCK, CHANNELS_PER_BLOCK, strict=True)
    for block, (convs, channels) in enumerate(blocks):
        for conv in range(convs):
            position += 2  # convolution, ReLU
            layers[f"conv{block + 1}_{conv + 1}"] = Layer(position - 1, inputs, channels, 2**block)
            inputs = channels
        position += 1  # max pooling
    return layers


LAYERS: Mapping[str, Layer] = _layers()
_ODD = re.compile(r"[0-9]{0,2}[13579]")
DEEPEST = "conv5_3"


@dataclass(frozen=True)
class Tap:
    """A layer as the SVM sees it: as it is (`conv4_3`), or averaged over a window of `window` ×
    `window` cells for context (`conv5_3@11`). `str(tap)` gives that name back.
    """

    layer: str
    window: int = 1

    @classmethod
    def parse(cls, text: str) -> "Tap":
        """Return the tap of a name. Raises ModelError for what is not `LAYER` or `LAYER@ODD`."""
        layer, at, window = text.partition("@")
        if layer not in LAYERS:
            raise ModelError(f"{text[:80]}: no such layer; VGG-16 has {', '.join(LAYERS)}")
        if at and not _ODD.fullmatch(window):
            raise ModelError(
                f"{text[:80]}: the window behind @ must be an odd number of cells, of 3 digits "
                "at most"
            )
        return cls(layer, int(window) if at else 1)

    def __str__(self) -> str:
        return f"{self.layer}@{self.window}" if self.window > 1 else self.layer

    @property
    def source(self) -> Layer:
        """The layer of VGG-16 behind this tap."""
        return LAYERS[self.layer]
