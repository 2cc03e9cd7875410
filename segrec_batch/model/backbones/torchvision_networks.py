"""Backbones that torchvision builds; they run in torch.

Another member of a family is one line here, and its name in `BACKBONES`.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from segrec_batch.model.backbones.base import BackboneSpec, Layer

if TYPE_CHECKING:
    from torch import nn


def _build(name: str, classifier: str) -> "nn.Module":
    """Return a network of torchvision without its classifier, on the meta device."""
    import torch
    from torch import nn
    from torchvision.models import get_model

    with torch.device("meta"):
        network: nn.Module = get_model(name, weights=None)
    setattr(network, classifier, nn.Identity())
    return network


def _resnet(depth: int, expansion: int, last_norm: str) -> BackboneSpec:
    """Return a ResNet (He 2016).

    Its strided kernels have odd sizes and are centred on the first pixel of a cell.

    Args:
        depth: 18, 34, 50, 101 or 152.
        expansion: 1 for basic blocks, 4 for bottlenecks.
        last_norm: name of the last normalisation of a block.
    """
    layers = {"stem": Layer("relu", 64, 2, offset=0.5)}
    for i in range(4):
        stride = 4 * 2**i
        name = f"layer{i + 1}"
        layers[name] = Layer(name, 64 * 2**i * expansion, stride, offset=(stride - 1) / 2)
    name = f"resnet{depth}"
    return BackboneSpec(
        name=name,
        title=f"ResNet-{depth}",
        layers=layers,
        feature_layer="layer4",
        default_layers="layer1,layer2,layer3,layer4,layer4@5",
        build=partial(_build, name, "fc"),
        classifier="fc",
        residual_scale=f"{last_norm}.weight",
    )


def _convnext(size: str, channels: Sequence[int]) -> BackboneSpec:
    """Return a ConvNeXt (Liu 2022) with some channels in its four stages.

    Its maps have no ReLU: values may be negative.
    """
    layers = {"stem": Layer("features.0", channels[0], 4)}
    for i, width in enumerate(channels):
        layers[f"stage{i + 1}"] = Layer(f"features.{2 * i + 1}", width, 4 * 2**i)
    name = f"convnext_{size}"
    return BackboneSpec(
        name=name,
        title=f"ConvNeXt-{size.title()}",
        layers=layers,
        feature_layer="stage4",
        default_layers="stage1,stage2,stage3,stage4,stage4@5",
        build=partial(_build, name, "classifier"),
        residual_scale="layer_scale",
    )


RESNET18 = _resnet(18, 1, "bn2")
RESNET50 = _resnet(50, 4, "bn3")
CONVNEXT_TINY = _convnext("tiny", (96, 192, 384, 768))
