"""The backbones by name, and taps of the SVM."""

import re
from dataclasses import dataclass

from segrec_batch.common.errors import ModelError
from segrec_batch.model.backbones.base import BackboneSpec, Layer
from segrec_batch.model.backbones.torchvision_networks import CONVNEXT_TINY, RESNET18, RESNET50
from segrec_batch.model.backbones.vgg import VGG16, VGG19

BACKBONES: dict[str, BackboneSpec] = {
    backbone.name: backbone for backbone in (VGG16, VGG19, RESNET18, RESNET50, CONVNEXT_TINY)
}
DEFAULT_BACKBONE = VGG16

_ODD = re.compile(r"[0-9]{0,2}[13579]")


def find_backbone(name: str) -> BackboneSpec:
    """Return the backbone of this name. Raises ModelError if there is none."""
    if name not in BACKBONES:
        raise ModelError(f"there is no backbone {name[:80]}; there are {', '.join(BACKBONES)}")
    return BACKBONES[name]


@dataclass(frozen=True)
class Tap:
    """A layer as the SVM reads it, named `conv4_3` or `conv5_3@11` by `str(tap)`.

    window: each cell is the mean of `window` × `window` cells, for context; 1 takes the map itself.
    """

    layer: str
    window: int = 1
    backbone: str = DEFAULT_BACKBONE.name

    @classmethod
    def parse(cls, text: str, backbone: BackboneSpec = DEFAULT_BACKBONE) -> "Tap":
        """Return the tap of a name. Raises ModelError unless it is `LAYER` or `LAYER@ODD`."""
        layer, at, window = text.partition("@")
        if layer not in backbone.layers:
            raise ModelError(
                f"{text[:80]}: no such layer; {backbone.title} has {', '.join(backbone.layers)}"
            )
        if at and not _ODD.fullmatch(window):
            raise ModelError(
                f"{text[:80]}: the window after @ must be an odd number of cells with at most 3 "
                "digits"
            )
        return cls(layer, int(window) if at else 1, backbone.name)

    def __str__(self) -> str:
        return f"{self.layer}@{self.window}" if self.window > 1 else self.layer

    @property
    def source(self) -> Layer:
        """The layer of the backbone."""
        return BACKBONES[self.backbone].layers[self.layer]


__all__ = ["BACKBONES", "DEFAULT_BACKBONE", "BackboneSpec", "Layer", "Tap", "find_backbone"]
